"""`make test-gpu` without a GPU: the record, failures as they come, the time limit, and what it says where none is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import time

def test_good(): ...
def test_bad(): assert 1 == 2, "one is not two"
def test_stuck(): time.sleep(60)
"""
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu
code, progress = gpu.run(["-n", "1", "-p", "no:cacheprovider", "--tb=short", "--no-summary", "-v"], 6, 2)
print(gpu.summary("pytest", progress, ["here"]))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "tests/gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module
    spec.loader.exec_module(module)
    return module


def test_the_record_says_what_ran_where_and_what_did_not_pass(gpu):
    progress = gpu.Progress(450)
    progress.counts.update(passed=135, failed=1)
    progress.failures["tests/a.py::test_b[1]"] = "a.py:3: in test_b\n    assert x\nE   AssertionError: no x\n"
    progress.cut_off = ["tests/a.py::test_c"]
    lines = gpu.summary("pytest -m gpu", progress, ["2026-11-26, commit abc", "NVIDIA H200"]).splitlines()
    assert lines == [
        "pytest -m gpu",
        "135 passed, 1 failed, 0 skipped in 0 s",
        "2026-11-26, commit abc",
        "NVIDIA H200",
        "failed: tests/a.py::test_b[1]",
        "    E   AssertionError: no x",
        "still running at the limit of 450 s: tests/a.py::test_c",
    ]


@pytest.mark.slow
def test_a_failure_is_told_at_once_and_a_stuck_test_by_name(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-c", RUN, str(ROOT / "tests")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    said = done.stdout
    assert done.returncode == 2, said + done.stderr
    told, running, record = (said.index(x) for x in ("one is not two", "s: test_it.py::test_stuck", "pytest\n1 passed"))
    assert told < running < record
    assert "\n1 passed, 1 failed, 0 skipped in " in said[record:]
    assert "failed: test_it.py::test_bad\n    E   AssertionError: one is not two" in said
    assert said.rstrip().endswith("still running at the limit of 6 s: test_it.py::test_stuck")


def test_the_machine_is_named(gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("NSA_COMMIT", "abc123")
    day, device, versions = gpu.machine()
    assert day.endswith(", commit abc123") and device.startswith("NVIDIA H100 80GB HBM3, driver ")
    assert all(f"{name} " in versions for name in ("Python", "torch", "triton", "transformers", "fla-core"))
    assert gpu._slug(device) == "h100-80gb-hbm3"


def test_without_a_gpu_it_says_so_in_one_line():
    environment = os.environ | {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "tests/gpu.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: torch ") and done.stderr.count("\n") == 1
    assert "finds no CUDA device" in done.stderr


def test_what_is_missing_is_named_with_its_remedy(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda module: None if module == "xdist" else module)
    assert gpu.reason_not_to().startswith("the GPU tests need pytest-xdist; run: ")
    assert gpu.reason_not_to().endswith("-m pip install pytest-xdist")
