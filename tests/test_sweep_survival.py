"""A study whose workers, drivers and machines are killed again and again ends as if nothing had happened."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import runtime, sweep

SCRIPT = Path(__file__).with_name("survival.py")
MEASURED = ["seconds", "tokens_per_second"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes as POSIX systems do"),
]


def rows_after(engine: str, folder: Path) -> tuple[dict, pd.DataFrame]:
    """What was killed, and the rows that were there at the end."""
    environment = os.environ | {
        "HELPERS_CACHE": str(folder / "cache"),
        "HELPERS_PRECISION": "fp32",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (Path(sweep.__file__).parents[2], SCRIPT.parent))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # 15 by default: on a busy machine such workers hardly start
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), engine, str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/row.json")]
    return json.loads(done.stdout.splitlines()[-1]), pd.DataFrame(rows).sort_values(
        "run_id", ignore_index=True
    )


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """The rows of the study when nothing is killed."""
    folder, threads = tmp_path_factory.mktemp("undisturbed"), torch.get_num_threads()
    path = folder / "study.toml"
    path.write_text(SCRIPT.read_text().split('"""')[3])
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "device", lambda: torch.device("cpu"))
        patch.setenv("HELPERS_PRECISION", "fp32")
        rows = [sweep.run_family(family, corpus, folder) for family in sweep.Study.read(path).families()]
    torch.set_num_threads(threads)
    return pd.DataFrame(sum(rows, [])).sort_values("run_id", ignore_index=True)


def check(engine: str, folder: Path, undisturbed: pd.DataFrame, killed: list[str]) -> None:
    told, rows = rows_after(engine, folder)
    assert told["killed"] == killed
    assert told["drivers"] == 1 + killed.count("driver")
    assert told["twice"] == [] and rows["run_id"].is_unique
    pd.testing.assert_frame_equal(rows.drop(columns=MEASURED), undisturbed.drop(columns=MEASURED))


def test_local_workers_and_drivers_may_die(undisturbed, tmp_path):
    killed = ["worker", "worker", "driver", "worker", "driver", "driver"]
    check("local", tmp_path, undisturbed, killed)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra 'ray')")
def test_a_ray_cluster_may_lose_workers_drivers_and_a_machine(undisturbed, tmp_path):
    check("ray", tmp_path, undisturbed, ["worker", "node", "driver"])
