"""The benchmarks' tables: what README and CSV say, and how JSON lines get there."""

import json
import os
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shared import allocator, children, tabulate


def lines(tmp_path: Path, *found: dict) -> list[Path]:
    path = tmp_path / "lines.jsonl"
    path.write_text("a word of a library\n" + "".join(json.dumps(line) + "\n" for line in found))
    return [path]


def a_line(**changes) -> dict:
    values = {"benchmark": "distributed", "size": "4x256", "ratio": 1.2, "ratio_low_high": [1.1, 1.3]}
    values |= {"two_processes": [30, 20, 40], "one_process": [25, 25, 25], "repeats": 3}
    return values | {"command": "python benchmarks/distributed.py", "machine": "M", "threads": 2} | changes


def test_the_readme_shows_what_is_stored():
    text = tabulate.PAGE.read_text()
    assert tabulate.page(text, pd.read_csv(tabulate.STORED)) == text


def test_every_benchmark_has_a_table():
    files = {path.stem for path in tabulate.PAGE.parent.glob("*.py")}
    assert files == set(tabulate.TABLES)


def test_a_line_becomes_a_row_with_its_spread(tmp_path):
    table = tabulate.rows(lines(tmp_path, a_line()))
    assert table.loc[0, ["ratio", "ratio_low", "ratio_high", "two_processes_high"]].tolist() == [
        1.2,
        1.1,
        1.3,
        40,
    ]
    text = tabulate.tables(table)
    assert "| 4x256 | 25 | 30 (20 to 40) | 1.20 (1.10 to 1.30) |  | 3 |" in text
    assert "`python benchmarks/distributed.py`: M, 2 threads." in text
    assert "No numbers here from `throughput.py`" in text and "`distributed.py`" not in text.splitlines()[-1]


def test_a_new_row_takes_the_place_of_the_old_one_and_of_no_other(tmp_path):
    old = tabulate.rows(
        lines(tmp_path, a_line(), a_line(size="2x64"), a_line(benchmark="throughput", recipe="x"))
    )
    new = tabulate.rows(lines(tmp_path, a_line(ratio=2.0), a_line(benchmark="memory", model="m")))
    both = tabulate.merged(old, new)
    assert both["benchmark"].tolist() == ["throughput", "distributed", "distributed", "memory"]
    assert both.loc[both["size"] == "4x256", "ratio"].tolist() == [1.2, 2.0, 1.2]


def test_smoke_tests_and_empty_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"smoke test mean nothing: python x.py --quick"):
        tabulate.rows(lines(tmp_path, a_line(command="python x.py --quick")))
    with pytest.raises(ValueError, match=r"no JSON line in .*lines.jsonl"):
        tabulate.rows(lines(tmp_path))


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="no place for the tables"):
        tabulate.page("text", pd.DataFrame())


def test_a_published_line_names_its_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/distributed.py", "--repeats", "3"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    children.publish({"benchmark": "distributed", "precision": "bf16"})
    line = json.loads(capsys.readouterr().out)
    assert line["command"] == "OMP_NUM_THREADS=1 python benchmarks/distributed.py --repeats 3"
    assert line["precision"] == "bf16" and line["machine"]


def faults_of_large_arrays():
    """Page faults while 64 MiB are asked for, filled and freed, eight times."""
    import resource

    np.full(2**23, 1.0)  # whatever the first one does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.full(2**23, 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_memory_that_is_kept_is_not_cleared_again_and_goes_back_at_the_end():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    usual, before = faults_of_large_arrays(), resident()
    with allocator.memory_kept():
        with allocator.memory_kept():
            pass
        assert faults_of_large_arrays() < 0.1 * usual
        assert resident() > before + 2**25
    assert resident() < before + 2**25
    assert faults_of_large_arrays() > 0.5 * usual


def test_without_glibc_keeping_memory_does_nothing(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    with allocator.memory_kept():
        assert np.ones(3).sum() == 3
