"""The shape of the repository: who may import what, and that everything shipped loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nsa_lab.comparison.spec import load_comparison
from nsa_lab.config import load_config
from nsa_lab.config.sizes import model_size
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.config import config_from_size
from nsa_lab.search.spec import load_sweep

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "nsa_lab").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
COMPARISONS = sorted((ROOT / "experiments").rglob("*.py"))
SWEEPS = sorted((ROOT / "sweeps").glob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "kernels").rglob("*.py")), *COMPARISONS, *SWEEPS]

# Where each library may be imported.
LIBRARIES = {
    "optuna": ("nsa_lab/search/", "sweeps/"),
    "mlflow": ("nsa_lab/tracking/",),
    "lightning": ("nsa_lab/training/",),
    "omegaconf": ("nsa_lab/config/",),
    "torchvision": (),
    "kernels": (),
    "pytest": ("nsa_lab/testing.py",),
}
# What the files of a folder may not import, and what they may all the same.
FORBIDDEN = {
    "nsa_lab/partition/": ("nsa_lab", ("nsa_lab.errors", "nsa_lab.layout", "nsa_lab.partition", "nsa_lab.plugin")),
    "nsa_lab/attention/": (
        "nsa_lab",
        ("nsa_lab.errors", "nsa_lab.layout", "nsa_lab.partition", "nsa_lab.plugin", "nsa_lab.attention"),
    ),
    "nsa_lab/baselines/": ("nsa_lab", ("nsa_lab.attention", "nsa_lab.baselines", "nsa_lab.errors", "nsa_lab.plugin")),
    "nsa_lab/tasks/": (
        "nsa_lab",
        ("nsa_lab.errors", "nsa_lab.files", "nsa_lab.layout", "nsa_lab.plugin", "nsa_lab.tasks"),
    ),
    "nsa_lab/config/": (
        "nsa_lab",
        (
            "nsa_lab.attention",
            "nsa_lab.baselines",
            "nsa_lab.config",
            "nsa_lab.errors",
            "nsa_lab.partition",
            "nsa_lab.plugin",
            "nsa_lab.tasks",
        ),
    ),
    "nsa_lab/model/": (("nsa_lab.training", "nsa_lab.search", "nsa_lab.tracking"), ()),
    "nsa_lab/data/": (("nsa_lab.model", "nsa_lab.training", "nsa_lab.search"), ()),
    "nsa_lab/analysis/": (("nsa_lab.training", "nsa_lab.search", "nsa_lab.tracking"), ()),
    "nsa_lab/tracking/": (("nsa_lab.model", "nsa_lab.training", "nsa_lab.runner", "nsa_lab.search"), ()),
    "nsa_lab/training/": (("nsa_lab.runner", "nsa_lab.search", "nsa_lab.comparison"), ()),
    "nsa_lab/runner/": (("nsa_lab.model", "nsa_lab.training", "nsa_lab.search", "nsa_lab.comparison"), ()),
    "nsa_lab/search/": ("nsa_lab.comparison", ()),
    "nsa_lab/comparison/": ("nsa_lab.search", ()),
    "nsa_lab/files.py": ("nsa_lab", ("nsa_lab.errors",)),
    "nsa_lab/origin.py": ("nsa_lab", ()),
    "nsa_lab/": ("nsa_lab.testing", ()),
    "kernels/": ("nsa_lab", ()),
}


def imports_of(source, package=""):
    """Every module that `source` imports, anywhere in it, and every name that it takes out of one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of_file(path):
    place = path.relative_to(ROOT)
    return sorted(set(imports_of(path.read_text(), ".".join(place.parts[:-1]))))


def is_part_of(name, packages):
    """Whether `name` is one of `packages` or inside."""
    packages = (packages,) if isinstance(packages, str) else packages
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_imports_are_found_wherever_they_stand():
    source = """
import a.b as c
from d import e
from . import f
from ..g import h
def later():
    if True:
        import i
"""
    wanted = {"a.b", "d", "d.e", "x.y", "x.y.f", "x.g", "x.g.h", "i"}
    assert set(imports_of(source, "x.y")) == wanted
    assert is_part_of("nsa_lab.tracking.record", "nsa_lab.tracking") and not is_part_of("optunax", "optuna")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_in_its_place(library):
    found = {str(f.relative_to(ROOT)) for f in SOURCES if any(is_part_of(n, library) for n in imports_of_file(f))}
    assert not {place for place in found if not place.startswith(LIBRARIES[library] or "-")}
    assert found or not LIBRARIES[library], f"{library} is imported nowhere: correct the table"


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_part_does_not_import_what_is_above_it(folder):
    forbidden, allowed = FORBIDDEN[folder]
    files = [path for path in SOURCES if str(path.relative_to(ROOT)).startswith(folder)]
    assert files
    for path in files:
        names = [name for name in imports_of_file(path) if is_part_of(name, forbidden)]
        wrong = [name for name in names if not is_part_of(name, allowed)]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_root_holds_what_everything_shares_and_no_more():
    assert len(list((ROOT / "nsa_lab").glob("*.py"))) <= 8


def test_there_is_no_package_called_kernels():
    # transformers imports a top-level `kernels` as Hugging Face's library of that name, and fails on ours.
    assert not list((ROOT / "kernels").glob("*.py"))
    assert (ROOT / "kernels/nsa_kernels/__init__.py").exists()
    tests = sorted((ROOT / "tests").rglob("*.py"))
    for path in tests:
        assert not any(is_part_of(name, "kernels") for name in imports_of_file(path)), path


EVERYTHING_WITHOUT_TORCHVISION = """
import importlib, sys, tempfile
sys.modules["torchvision"] = sys.modules["kernels"] = None  # as where they are not installed
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
from nsa_lab.model import build_model
from nsa_lab.testing import model_batch, tiny_config, tiny_tokenizer
with tempfile.TemporaryDirectory() as folder:
    model = build_model(tiny_config(), tiny_tokenizer(folder))
logits = model(**model_batch(model, [(3, (4, 2, 3), 5)]), use_cache=False).logits
assert logits.isfinite().all()
"""


def test_every_module_imports_and_a_model_runs_without_torchvision():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    names.remove("nsa_lab.cli.__main__")
    command = [sys.executable, "-c", EVERYTHING_WITHOUT_TORCHVISION, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What is shipped


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_loads_and_its_model_builds(file, tokenizer):
    config = load_config(file)
    with torch.device("meta"):
        model = VideoNSAForConditionalGeneration(
            config_from_size(model_size(config.model), tokenizer, config.attention)
        )
    assert len(model.attentions()) == model_size(config.model).num_layers


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_opens_with_its_question(file):
    head = file.read_text().splitlines()[:4]
    for line, word in zip(head, ("Question", "Command", "Cost", "Expected"), strict=True):
        assert re.match(rf"# {word}: +\S", line), line
    assert f"nsa-lab train {file.relative_to(ROOT)}" in head[1]


@pytest.mark.parametrize("file", [*SWEEPS, *COMPARISONS], ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_sweep_and_comparison_opens_with_its_question(file):
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert text is not None and text.startswith("Question: ")
    places = [text.index(f"\n{word}:") for word in ("Command", "Cost", "Expected")]
    assert places == sorted(places)
    assert f"nsa-lab {'sweep' if file in SWEEPS else 'compare'} {file.relative_to(ROOT)}" in text
    load = load_sweep if file in SWEEPS else load_comparison
    load(file)


def test_every_file_named_in_a_text_exists():
    texts = [*SOURCES, *EXPERIMENTS, *ROOT.glob("*.md")]
    named = {
        (name, path.relative_to(ROOT))
        for path in texts
        for name in re.findall(r"\b(?:sweeps|experiments)/[\w/.-]+\.(?:py|yaml)\b", path.read_text())
    }
    assert len(named) > 5
    real = [(name, place) for name, place in named if "NAME" not in name]
    assert not [(name, str(place)) for name, place in real if not (ROOT / name).is_file()]


def test_public_functions_over_tensors_say_what_they_take():
    silent = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or ast.get_docstring(node):
                continue
            if "Tensor" in f"{ast.unparse(node.args)} {ast.unparse(node.returns) if node.returns else ''}":
                silent.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not silent
