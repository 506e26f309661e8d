"""The recipes of CONTRIBUTING carried out: each plug-in of tests/recipes is one file and one line in a copy of the lab.

Nothing else is opened. In the copy they are configured, trained, loaded over Qwen's weights and held to the contracts.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Recipe:
    """The file tests/recipes/{name}.py goes to `folder`; `line` joins the literal dict `registry` in `index`."""

    name: str
    folder: str
    index: str
    registry: str
    cls: str


RECIPES = [
    Recipe("sink", "attention/branches", "attention/branches/__init__.py", "BRANCHES", "SinkBranch"),
    Recipe("scaled", "attention/compressors", "attention/compressors/__init__.py", "COMPRESSORS", "ScaledCompressor"),
    Recipe("hard", "attention/gates", "attention/gates/__init__.py", "GATES", "HardGate"),
    Recipe("index", "attention/select", "attention/select/__init__.py", "SCORERS", "IndexScorer"),
    Recipe("floor", "attention/select", "attention/select/__init__.py", "RULES", "Floor"),
    Recipe("pairs", "partition", "partition/__init__.py", "PARTITIONERS", "Pairs"),
    Recipe("blink", "tasks", "tasks/__init__.py", "TASKS", "Blink"),
    Recipe("block_mask", "attention/methods", "attention/methods/__init__.py", "METHODS", "BlockMask"),
    Recipe("thin", "baselines", "baselines/__init__.py", "REDUCERS", "Thin"),
]
SMALL = [
    "model.hidden_size=32", "model.intermediate_size=64", "model.num_heads=2", "model.num_kv_heads=1",
    "model.vision_hidden_size=32", "tasks.blink={enabled: true, frames: 8, train_clips: 6, val_clips: 4}",
    "training={steps: 2, batch_size: 2, val_every: 2, log_every: 1, threads: 1, accelerator: cpu}",
    "tracking.enabled=false",
]  # fmt: skip
NEW = [
    "attention.branches={sink: {enabled: true}, selection: {scorer: index, rule: floor, block_count: 3}}",
    "attention.branches.window.enabled=false",
    "attention={compressor: {kind: scaled}, gate: {kind: hard}, partition: {kind: pairs}}",
]


def plug_in(lab: Path, recipe: Recipe) -> None:
    """One file, and one line with its import in the registry's file."""
    shutil.copy(ROOT / f"tests/recipes/{recipe.name}.py", lab / recipe.folder / f"{recipe.name}.py")
    index = lab / recipe.index
    module = "nsa_lab." + recipe.folder.replace("/", ".") + f".{recipe.name}"
    head, dict_line = f"from {module} import {recipe.cls}\n", f'    "{recipe.name}": {recipe.cls},\n'
    text = index.read_text()
    opening = re.search(rf"^{recipe.registry}: .*= {{\n", text, re.MULTILINE)
    assert opening is not None
    text = text[: opening.end()] + dict_line + text[opening.end() :]
    first_import = text.index("\nfrom nsa_lab") + 1
    index.write_text(text[:first_import] + head + text[first_import:])


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository with every recipe carried out, and a new knob, switched off, in a branch that is on."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("nsa_lab", "kernels", "tests", "experiments"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "new.yaml").write_text("name: new\n")
    for recipe in RECIPES:
        plug_in(root / "nsa_lab", recipe)
    window, size = root / "nsa_lab/attention/branches/window.py", "        size: int = 256\n"
    window.write_text(window.read_text().replace(size, f"{size}        new_knob: int = 3\n"))
    return root


def start(copy, *arguments, **streams):
    path = os.pathsep.join(str(copy / folder) for folder in (".", "kernels", "tests/support"))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], cwd=copy, env=environment, text=True, **streams)


def python(copy, *arguments):
    process = start(copy, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 0, out[-4000:] + err[-4000:]
    return out


LAB = """
import contextlib, io, json, sys
from nsa_lab import cli
def do(arguments):
    if arguments[0] != "-c":
        return cli.main(arguments)
    sys.argv = arguments[1:]
    exec(arguments[1], {})
for line in sys.stdin:
    said, code = (io.StringIO(), io.StringIO()), 0
    with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
        try:
            do(json.loads(line))
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, *(text.getvalue() for text in said)]), flush=True)
"""


@pytest.fixture(scope="module")
def nsa_lab(copy, tmp_path_factory):
    """Runs commands, or code with `-c`, one after another in one process of the copy, which imports everything once."""
    faults = tmp_path_factory.mktemp("lab") / "faults"
    with start(copy, "-c", LAB, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=faults.open("w")) as process:

        def call(*arguments, code=0):
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, faults.read_text()
            found, out, err = json.loads(answer)
            assert found == code, out[-4000:] + err[-4000:]
            return SimpleNamespace(stdout=out, stderr=err)

        yield call
        process.stdin.close()


def last_metrics(folder):
    return json.loads((folder / "summary.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def trained(copy, nsa_lab):
    """A run of everything new at once, the new task alone."""
    nsa_lab("train", "new.yaml", *SMALL, *NEW, "--quiet", "--dir", "runs/new")
    return copy / "runs/new"


def test_a_run_of_new_plug_ins_says_so_everywhere(trained):
    tags = json.loads((trained / "tags.json").read_text())
    assert tags["branches"] == "sink+compression+selection" and tags["tasks"] == "blink"
    assert (tags["compressor"], tags["gate"], tags["partition"]) == ("scaled", "hard", "pairs")
    metrics = last_metrics(trained)
    assert metrics["val/accuracy/blink"] in (0, 0.25, 0.5, 0.75, 1)
    assert {f"gate/layer00/{name}" for name in ("compression", "selection", "sink")} <= metrics.keys()
    assert metrics["train/scorer_loss"] > 0
    # Blocks of two tokens: the selection reads at most six, the sink four, and the paper's K counts both.
    assert 1 < metrics["budget/keys_per_query"] <= 6 + 4
    assert metrics["budget/paper_ratio"] == 1
    params = json.loads((trained / "params.json").read_text())
    assert params["attention.branches.sink.tokens"] == 4 or params["attention.branches.sink.tokens"] == "4"


def test_the_new_branch_alone_and_the_rule_of_its_own(nsa_lab):
    alone = [f"attention.branches.{name}.enabled=false" for name in ("compression", "selection", "window")]
    shown = nsa_lab("show", *SMALL, *alone, "attention.branches.sink={enabled: true, tokens: 3}")
    branches = yaml.safe_load(shown.stdout)["attention"]["branches"]
    assert branches["sink"] == {"enabled": True, "tokens": 3}
    assert "3 tokens a query" in shown.stderr
    refused = nsa_lab("show", *SMALL, "attention.branches.sink={enabled: true, tokens: 0}", code=2)
    assert "attention.branches.sink.tokens: 0 tokens are no sink" in refused.stderr


@pytest.mark.parametrize("override", ["attention.method=block_mask", "attention.reducer={kind: thin, thin_every: 2}"])
def test_a_method_and_a_reducer_train(copy, nsa_lab, override):
    directory = copy / "runs" / override.partition("=")[0]
    nsa_lab("train", "new.yaml", *SMALL, override, "--quiet", "--dir", str(directory))
    metrics = last_metrics(directory)
    assert metrics["train/loss"] > 0
    if "block_mask" in override:
        # 16 tokens in blocks of 8, the first block and the own one: a triangle.
        assert metrics["budget/keys_per_query"] == pytest.approx(8.5)
        assert json.loads((directory / "tags.json").read_text())["branches"] == "block_mask"


LOAD = """
import logging, sys, torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from nsa_lab.config import load_config
from nsa_lab.model import build_model, load_model
from nsa_testing import tiny_config, tiny_tokenizer
logging.basicConfig(level=logging.WARNING, force=True)
tokenizer = tiny_tokenizer(sys.argv[1])
model = build_model(tiny_config(), tokenizer)
stored = model.config.to_dict() | {"model_type": "qwen2_5_vl"}
stored["text_config"].pop("video_nsa")
qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(stored))
qwen.save_pretrained(sys.argv[1] + "/qwen")
real, torch.empty_like = torch.empty_like, lambda x, **o: torch.full_like(x, float("nan"), **o)
loaded = load_model(sys.argv[1] + "/qwen", tiny_config(*sys.argv[2:]).attention)
torch.empty_like = real
for name, weight in loaded.named_parameters():
    assert weight.isfinite().all(), name
    if name.endswith("compressor.factor"):
        assert (weight == 0.75).all(), name
"""


def test_loaded_over_qwens_weights_plug_ins_start_as_they_say(nsa_lab, tmp_path):
    done = nsa_lab("-c", LOAD, str(tmp_path), *NEW)
    assert "weights of plug-ins" in done.stderr and "start fresh" in done.stderr


HASHES = """
import json, sys
from nsa_lab.config import config_hash, load_config, read_settings
assert read_settings(load_config("experiments/smoke.yaml"))["attention.branches.window.new_knob"] == 3
print(json.dumps({file: config_hash(load_config(file)) for file in sys.argv[1:]}))
"""


def test_no_shipped_experiment_has_another_hash(nsa_lab):
    golden = json.loads((ROOT / "tests/golden/hashes.json").read_text())
    assert json.loads(nsa_lab("-c", HASHES, *golden).stdout) == golden


@pytest.mark.slow
def test_the_contracts_hold_for_what_is_new(copy):
    """The contract tests run over the registries, so they know what is new by its line alone."""
    tests = [f"tests/{folder}/test_contract.py" for folder in ("attention", "partition", "tasks")]
    names = " or ".join(recipe.name for recipe in RECIPES)
    said = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, *tests)
    assert re.search(r"\[100%\]", said), said


def test_plan_counts_what_plug_ins_own_and_read(nsa_lab):
    made = json.loads(nsa_lab("plan", "new.yaml", *SMALL, *NEW, "--json").stdout)
    assert made["keys_per_query"]["sink"] > 0 and made["seconds"]["sink"]["seconds"] > 0
    assert min(made["parameters"][part] for part in ("scorers", "compressors")) > 0
    method = json.loads(nsa_lab("plan", "new.yaml", *SMALL, "attention.method=block_mask", "--json").stdout)
    assert method["keys_per_query"]["block_mask"] > 0
    thin = json.loads(nsa_lab("plan", "new.yaml", *SMALL, "attention.reducer.kind=thin", "--json").stdout)
    assert any("reducer" in note for note in thin["notes"])
