"""The shape of the repository: who may import what, and that everything shipped loads."""

import ast
import functools
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

from nsa_lab.benchmark import read_benchmarks
from nsa_lab.comparison import read_comparison
from nsa_lab.comparison.plan import trainings
from nsa_lab.comparison.spec import load_comparison
from nsa_lab.config import load_config
from nsa_lab.config.sizes import model_size
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.config import config_from_size
from nsa_lab.search.spec import load_sweep

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "nsa_lab").rglob("*.py"))
ABLATIONS = sorted((ROOT / "experiments/ablations").glob("*.yaml"))
BENCHMARKS = sorted((ROOT / "experiments/evaluate").glob("*.yaml"))
EXPERIMENTS = sorted({*(ROOT / "experiments").rglob("*.yaml")} - {*ABLATIONS, *BENCHMARKS})
COMPARISONS = sorted((ROOT / "experiments").rglob("*.py"))
SWEEPS = sorted((ROOT / "sweeps").glob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "kernels").rglob("*.py")), *COMPARISONS, *SWEEPS]

# Where each library may be imported.
LIBRARIES = {
    "optuna": ("nsa_lab/search/", "sweeps/"),
    "mlflow": ("nsa_lab/tracking/",),
    "lightning": ("nsa_lab/training/",),
    "omegaconf": ("nsa_lab/config/",),
    "lmms_eval": ("nsa_lab/benchmark/",),
    "torchvision": (),
    "kernels": (),
    "pytest": (),
}
# The house, from the ground up: a part imports what stands below its floor, and nothing beside it.
FLOORS = (
    ("redact",),
    ("errors",),
    ("files", "layout", "origin", "plugin", "progress"),
    ("partition", "tasks"),
    ("attention",),
    ("baselines",),
    ("config",),
    ("data", "tracking"),
    ("model", "runner"),
    ("training", "comparison"),
    ("search",),
    ("analysis", "evaluation"),
    ("api", "bench", "scale"),
    ("benchmark",),
    ("report",),
    ("cli",),
)


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


@functools.cache
def imports_of_file(path):
    place = path.relative_to(ROOT)
    return sorted(set(imports_of(path.read_text(), ".".join(place.parts[:-1]))))


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in MODULES}


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


def modules_imported_by(path):
    """The modules of nsa_lab that a file imports, by their full names; its own is not among them."""
    found = [name for name in imports_of_file(path) if is_part_of(name, "nsa_lab")]
    of_attributes = {name.rpartition(".")[0] for name in found if name not in NAMES}
    # `from package import module` names the package too, and imports the module.
    of_modules = {name for name in found if name in NAMES and not any(other.startswith(f"{name}.") for other in found)}
    return (of_attributes | of_modules) - {name_of(path), "nsa_lab"}


def part_of(module):
    return module.split(".")[1]


def test_every_part_imports_only_what_stands_below_it():
    floor = {part: number for number, parts in enumerate(FLOORS) for part in parts}
    assert set(floor) == {part_of(name) for name in NAMES if name != "nsa_lab"}
    for name, path in NAMES.items():
        for other in modules_imported_by(path):
            same = name == "nsa_lab" or part_of(other) == part_of(name)
            assert same or floor[part_of(other)] < floor[part_of(name)], (
                f"{path.relative_to(ROOT)} imports {other}, which does not stand below it"
            )


def test_modules_import_each_other_in_no_circle():
    graph = {name: modules_imported_by(path) for name, path in NAMES.items() if name != "nsa_lab"}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_kernels_know_nothing_of_the_lab():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(is_part_of(name, "nsa_lab") for name in imports_of_file(path)), path


def test_the_root_holds_what_everything_shares_and_no_more():
    assert len(list((ROOT / "nsa_lab").glob("*.py"))) <= 9


def test_there_is_no_package_called_kernels():
    # transformers imports a top-level `kernels` as Hugging Face's library of that name, and fails on ours.
    assert not list((ROOT / "kernels").glob("*.py"))
    assert (ROOT / "kernels/nsa_kernels/__init__.py").exists()
    tests = sorted((ROOT / "tests").rglob("*.py"))
    for path in tests:
        assert not any(is_part_of(name, "kernels") for name in imports_of_file(path)), path


EVERYTHING = """
import importlib, sys
for name in ("torchvision", "kernels", "optuna", "mlflow"):
    sys.modules[name] = None  # as where they are not installed
import nsa_lab, nsa_lab.comparison
from nsa_testing import tiny_config
config = tiny_config(
    "output.dir=" + sys.argv[1], "data.cache_dir=" + sys.argv[1], "tracking.enabled=false",
    "tasks.needle={frames: 8, train_clips: 2, val_clips: 2}", "training={steps: 1, batch_size: 2, threads: 1}",
)
assert nsa_lab.train(config, progress_bar=False).metrics["val/loss"] > 0
del sys.modules["optuna"], sys.modules["mlflow"]
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_every_module_imports_without_torchvision_and_a_run_without_optuna_and_mlflow(tmp_path):
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    names.remove("nsa_lab.cli.__main__")
    names.remove("nsa_lab.benchmark.model")  # which lmms-eval imports, where it is installed
    command = [sys.executable, "-c", EVERYTHING, str(tmp_path), *names]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
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


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_every_ablation_opens_with_its_question_and_all_its_variants_load(file):
    head = file.read_text().splitlines()[:4]
    for line, word in zip(head, ("Question", "Command", "Cost", "Expected"), strict=True):
        assert re.match(rf"# {word}: +\S", line), line
    assert f"nsa-lab ablate {file.relative_to(ROOT)}" in head[1]
    for preset in ("", "quick"):
        comparison = read_comparison(file, preset)
        assert len(trainings(comparison, list(comparison.variants), [0], ())) > len(comparison.variants)


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_every_benchmark_opens_with_its_question_and_loads(file):
    for line, word in zip(file.read_text().splitlines(), ("Question", "Command", "Cost", "Expected"), strict=False):
        assert re.match(rf"# {word}: +\S", line), line
    assert f"nsa-lab benchmark MODEL --tasks {file.stem}\n" in file.read_text()
    assert [one.task for one in read_benchmarks([file.stem], file.parent)] == [file.stem]


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
    texts = [*SOURCES, *EXPERIMENTS, *ABLATIONS, *ROOT.glob("*.md")]
    named = {
        (name, path.relative_to(ROOT))
        for path in texts
        for name in re.findall(r"\b(?:sweeps|experiments)/[\w/.-]+\.(?:py|yaml)\b", path.read_text())
    }
    assert len(named) > 5
    real = [(name, place) for name, place in named if "NAME" not in name]
    assert not [(name, str(place)) for name, place in real if not (ROOT / name).is_file()]


@pytest.mark.parametrize("text", [*ROOT.glob("*.md"), ROOT / "kernels/README.md"], ids=lambda file: file.name)
def test_links_and_pictures_of_a_text_lead_somewhere(text):
    named = re.findall(r"""\]\(([^)\s]+)\)|<img src="([^"]+)\"""", text.read_text())
    places = [text.parent / place for place in map("".join, named) if "://" not in place]
    assert [str(place) for place in places if not place.is_file()] == []
    assert [str(place) for place in places if place.suffix in (".png", ".svg") and place.stat().st_size > 150_000] == []
    assert len(places) >= 3 or text != ROOT / "README.md", "README shows pictures and links to the findings"


def test_public_functions_over_tensors_say_what_they_take():
    silent = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or ast.get_docstring(node):
                continue
            if "Tensor" in f"{ast.unparse(node.args)} {ast.unparse(node.returns) if node.returns else ''}":
                silent.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not silent
