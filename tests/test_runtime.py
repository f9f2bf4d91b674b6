"""Profiles, precision, random streams, and files that are whole or absent."""

import os
import time

import pytest
import torch
import transformers

from helpers import models, runtime


def test_the_profile_is_the_argument_then_the_environment_then_quick(monkeypatch):
    monkeypatch.setenv("BOOK_PROFILE", "colab")
    assert runtime.profile("full") == "full"
    assert runtime.profile() == "colab"
    monkeypatch.setenv("BOOK_PROFILE", "")
    assert runtime.profile() == "quick"
    monkeypatch.delenv("BOOK_PROFILE")
    assert runtime.profile() == "quick"


def test_an_unknown_profile_is_refused_with_its_name(monkeypatch):
    monkeypatch.setenv("BOOK_PROFILE", "fast")
    with pytest.raises(ValueError, match="unknown profile 'fast'.*quick, colab, full"):
        runtime.profile()
    with pytest.raises(ValueError, match="unknown profile ''"):
        runtime.profile("")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"amx_bf16"}, "bf16"), ({"avx512_bf16"}, "bf16"), ({"avx2"}, "fp32"), (set(), "fp32")],
)
def test_precision_follows_the_matrix_units(flags, expected, monkeypatch):
    monkeypatch.delenv("HELPERS_PRECISION", raising=False)
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset(flags))
    assert runtime.precision(torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_precision_of_a_gpu_follows_its_generation(capability, expected, monkeypatch):
    monkeypatch.delenv("HELPERS_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert runtime.precision(torch.device("cuda")) == expected


def test_precision_can_be_forced_and_a_bad_name_is_refused(monkeypatch):
    monkeypatch.setenv("HELPERS_PRECISION", "fp16")
    assert runtime.precision() == "fp16"
    monkeypatch.setenv("HELPERS_PRECISION", "fp8")
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        runtime.precision()
    with pytest.raises(ValueError, match="unknown precision 'int8'"):
        runtime.autocast("int8", torch.device("cpu"))


def test_autocast_computes_in_its_precision():
    x = torch.ones(2, 2)
    with runtime.autocast("bf16", torch.device("cpu")):
        assert (x @ x).dtype == torch.bfloat16
    with runtime.autocast("fp32", torch.device("cpu")):
        assert (x @ x).dtype == torch.float32


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not runtime.can_compile(torch.device("cpu"))
    assert runtime.can_compile(torch.device("cuda"))


def draws(*key: int) -> list[int]:
    return torch.randint(0, 2**31, (8,), generator=runtime.generator(*key)).tolist()


def test_a_generator_depends_on_its_whole_key_and_nothing_else():
    torch.manual_seed(1)
    first = draws(0, 1, 2)
    torch.manual_seed(2)
    assert draws(0, 1, 2) == first
    keys = [(seed, step, use) for seed in range(4) for step in range(4) for use in (1, 2)]
    assert len({tuple(draws(*key)) for key in keys}) == len(keys)
    with pytest.raises(ValueError, match="non-negative"):
        runtime.generator(-1)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "row.json"
    with runtime.write_atomically(path) as temporary:
        assert temporary.suffix == ".json" and temporary.parent == tmp_path
        temporary.write_text("one")
    with pytest.raises(RuntimeError, match="cut"), runtime.write_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("cut")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_made_for_a_file(tmp_path):
    with runtime.write_atomically(tmp_path / "a" / "b" / "row.json") as temporary:
        temporary.write_text("one")
    assert (tmp_path / "a" / "b" / "row.json").read_text() == "one"


def test_a_file_has_the_mode_of_what_it_replaces_or_the_usual_one(tmp_path):
    (plain := tmp_path / "plain").touch()
    for path in (new := tmp_path / "new", plain):
        with runtime.write_atomically(path) as temporary:
            temporary.write_text("one")
    assert new.stat().st_mode == plain.stat().st_mode and new.stat().st_mode & 0o400
    plain.chmod(0o440)
    with runtime.write_atomically(plain) as temporary:
        temporary.write_text("two")
    assert plain.stat().st_mode & 0o777 == 0o440 and plain.read_text() == "two"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    with runtime.write_atomically(tmp_path / "row.json") as temporary:
        temporary.write_text("one")
    assert calls == ["fsync", "replace"]


def test_the_cache_folder_is_made_where_the_environment_says(cache):
    assert runtime.cache_dir() == cache and cache.is_dir()


def test_clock_and_versions_are_told():
    with runtime.timer() as clock:
        time.sleep(0.01)
    assert 0.01 <= clock.seconds < 1
    assert runtime.versions()["torch"] == torch.__version__
    assert runtime.cpu_name()


def test_saving_and_loading_a_model_writes_nothing_to_the_screen(tmp_path, capfd):
    model = models.build(models.Size(1, 32), vocab_size=100, max_positions=16)
    assert transformers.utils.logging.is_progress_bar_enabled()
    with runtime.without_bars():
        model.save_pretrained(tmp_path)
        transformers.AutoModel.from_pretrained(tmp_path)
    assert "%" not in capfd.readouterr().err
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_the_precision_of_a_launcher_counts_unless_it_is_overridden(monkeypatch):
    monkeypatch.delenv("HELPERS_PRECISION", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert runtime.precision() == "fp16"
    monkeypatch.setenv("HELPERS_PRECISION", "fp32")
    assert runtime.precision() == "fp32"
    monkeypatch.delenv("HELPERS_PRECISION")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert runtime.precision(torch.device("cpu")) in ("bf16", "fp32")
