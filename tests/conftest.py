"""Where there is no GPU, Triton kernels run in Triton's interpreter; this must be said before triton is imported.

Processes that tests start find the same packages, wherever pytest was called and whether or not they are installed.
"""

import gc
import multiprocessing
import os
import signal
import sys
from collections import defaultdict

import pytest
import torch

from nsa_testing import covering, tiny_tokenizer

os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") == "1":
    from nsa_kernels.testing import quicken_interpreter

    quicken_interpreter()
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores; each with a thread per core, they stand still


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="slow tests too, and products whole instead of sampled")
    parser.addoption("--update-golden", action="store_true", help="record tests/golden anew instead of comparing")


TOGETHER = {"pairwise": 2, "singly": 1}
"""By the marker of a test that the quick suite samples: of how many parameters every combination of values is run."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leave the quick suite, unless all is asked for, or tests are named one by one (`file.py::test`)."""
    if config.getoption("all") or any("::" in argument for argument in config.args):
        return
    quick = set(_quick(items))
    config.hook.pytest_deselected(items=[item for item in items if item not in quick])
    items[:] = [item for item in items if item in quick]


def pytest_collection_finish():
    _freeze()


def pytest_unconfigure():
    gc.unfreeze()  # else libraries that look at the end find that nothing was given back


def _freeze():
    """What is there now is no garbage later: else it is gone through again and again, and so copied in every fork."""
    gc.collect()
    gc.freeze()


def _quick(items):
    """What is not slow; of a test that is sampled, as many cases as hold what its marker asks for."""
    cases = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for test in cases.values():
        together = [n for marker, n in TOGETHER.items() if test[0].get_closest_marker(marker)]
        yield from _sample(test, *together) if together else test


def _sample(cases, together):
    rows = [{name: repr(value) for name, value in case.callspec.params.items()} for case in cases]
    return [cases[i] for i in covering(rows, together)]


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
    if request.param == "fork":
        import nsa_lab.api  # noqa: F401 -- what every worker imports, and a forked one has then
    context = multiprocessing.get_context(request.param)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    _freeze()


@pytest.fixture
def ctrl_c():
    """Ctrl-C is heard: whoever starts the tests in the background lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
