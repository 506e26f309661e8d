"""Where there is no GPU, Triton kernels run in Triton's interpreter; this must be said before triton is imported.

Processes that tests start find the same packages, wherever pytest was called and whether or not they are installed.
"""

import multiprocessing
import os
import sys

import pytest
import torch

from nsa_lab.testing import tiny_tokenizer

os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") == "1":
    from nsa_kernels.testing import quicken_interpreter

    quicken_interpreter()


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="record tests/golden anew instead of comparing")


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """The folder where task clips and the offline tokenizer are written once for all tests."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def tokenizer(clips):
    return tiny_tokenizer(clips)


@pytest.fixture(params=["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def workers(request, monkeypatch):
    """How worker processes start: in earnest they are spawned, and import for five seconds what a fork has already."""
    context = multiprocessing.get_context(request.param)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
