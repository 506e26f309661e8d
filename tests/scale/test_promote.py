import shutil
from pathlib import Path

import optuna
import pytest

from nsa_lab.cli.app import main
from nsa_lab.config import flatten, load_config, to_dict
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.plugin import in_use
from nsa_lab.scale.plan import make_plan
from nsa_lab.scale.promote import promote
from nsa_lab.scale.translate import Scale, scales, stretched, translate
from nsa_lab.scale.trial import find_trial
from nsa_lab.search.report import write_report
from nsa_lab.search.rows import read_outcome
from nsa_lab.search.storage import default_storage, open_storage

DESIGN = {
    "attention.partition.block_size": 8,  # two pairs of frames of needle's clips, of 32 with 4 tokens each
    "attention.branches.selection.block_count": 2,
    "attention.branches.window.size": 16,
}
BASE = Path("experiments/scale/videonsa_7b.yaml").resolve()


def study_in(output, *designs, study="made", base=()):
    """A study of complete trials of `designs`, in the storage and the folder where a sweep leaves it."""
    names = {"val/accuracy": "maximize", "budget/keys_per_query": "minimize"}
    storage = open_storage(default_storage(output))
    made = optuna.create_study(study_name=study, storage=storage, directions=list(names.values()))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        made.set_metric_names(list(names))
    made.set_user_attr("base", flatten(to_dict(load_config(None, {"tasks.needle.enabled": True, **dict(base)}))))
    for number, design in enumerate(designs):
        trial = made.ask()
        trial.set_user_attr("overrides", design)
        trial.set_user_attr("directory", f"runs/trial-{number:04d}")
        made.tell(trial, (0.9 + number / 100, 40.0 + 30 * number))
    return made


@pytest.fixture
def output(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def to(tmp_path):
    return tmp_path / "scale" / "promoted.yaml"


def test_a_design_comes_in_the_units_of_the_large_training(output, to):
    study_in(output, DESIGN)
    made = promote("made", to, base=BASE, output=str(output))
    config = load_config(to)
    selection, window = config.attention.branches.selection, config.attention.branches.window
    assert config.attention.partition.block_size == 128, "two pairs of frames of 64"
    # 16 of 128 tokens are an eighth of the clip, and so is a window of 16.
    assert (selection.block_count, window.size) == (round(17600 / 8 / 128), round(17600 / 8 / 64) * 64)
    assert selection.query_tile == 1 and {change.key for change in made.changes} == {*DESIGN}
    assert (config.model.path, config.training.learning_rate) == ("Qwen/Qwen2.5-VL-7B-Instruct", 1e-6)
    assert make_plan(config, gpus=8).fits[1].fits


def test_the_file_says_where_it_is_from_and_why_it_differs(output, to, capsys):
    study_in(output, {**DESIGN, "training.learning_rate": 0.01}, base={"attention.text_window": 16})
    with pytest.raises(SystemExit):
        main(["promote", "made", f"output.dir={output}", "--to", str(to), "--base", str(BASE)])
    printed, text = capsys.readouterr().out, to.read_text()
    for words in (
        "attention.partition.block_size 8 -> 128: 2 of a pair of frames, 4 tokens there and 64 here",
        "attention.text_window 16 -> null: a probe",
        "not carried over: training.learning_rate=0.01",
        "the recommended trial 0 of study made",
    ):
        assert words in printed and words in text
    head = [line.split()[1] for line in text.splitlines() if line[:3] in ("# Q", "# C", "# E")]
    assert head == ["Question:", "Command:", "Cost:", "Expected:"]
    assert f"nsa-lab train {to} " in text and "H100-hours" in text and "val/accuracy 0.9" in text
    for command in ("show", "plan"):
        with pytest.raises(SystemExit) as end:
            main([command, str(to)])
        assert not end.value.code


def test_the_recommended_trial_is_the_default_and_others_have_numbers(output, to):
    wide = {**DESIGN, "attention.branches.window.size": 32}
    study = study_in(output, wide, DESIGN, wide)
    best = read_outcome(study).best.number
    assert f"trial {best} of study made" in promote("made", to, base=BASE, output=str(output)).source.title
    third = promote("made", to.with_stem("third"), trial=2, base=BASE, output=str(output))
    assert third.config.attention.branches.window.size == round(17600 / 4 / 64) * 64
    assert third.source.title == "trial 2 of study made"


def test_a_folder_will_do(output, to, monkeypatch):
    study = study_in(output, DESIGN)
    folder = output / "studies" / "made"
    for writer in ("page.write_html", "picture.write_png"):
        monkeypatch.setattr(f"nsa_lab.search.{writer}", lambda outcome, file: file.write_text(""))
    write_report(read_outcome(study), folder)
    with_storage = promote(str(folder), to, base=BASE)
    alone = shutil.copytree(folder, to.parent / "elsewhere" / "made")
    for trial in (None, 0):
        moved = find_trial(str(alone), trial, None, "runs")
        assert moved.config.attention == with_storage.source.config.attention
        assert "trial 0 of study made" in moved.title and "val/accuracy = 0.9" in moved.values
    with pytest.raises(NsaLabError, match=r"has neither a storage nor pareto/trial-0007.yaml or trial-0007"):
        promote(str(alone), to.with_stem("none"), trial=7, base=BASE)


@pytest.mark.parametrize(
    ("design", "said"),
    [
        ({"attention.partition.kind": "random_like"}, "attention.partition: random_like is a control"),
        ({"attention.partition.kind": "foreign"}, "attention.partition: foreign is a control"),
        ({"attention.method": "frame_local"}, "attention: frame_local is a control"),
        ({"attention.layers.1-2.partition.kind": "shifted"}, "attention.layers.1-2.partition: shifted is a control"),
    ],
)
def test_designs_that_cannot_run_there_are_refused_with_the_reason(output, to, design, said):
    study_in(output, design)
    with pytest.raises(ConfigError, match=said):
        promote("made", to, base=BASE, output=str(output))
    assert not to.exists()


def test_a_design_that_breaks_a_rule_there_is_refused(output, to, tmp_path):
    study_in(output, {**DESIGN, "attention.branches.selection.local_blocks": 2})
    short = tmp_path / "short.yaml"
    short.write_text(f"extends: {BASE}\ndata: {{max_frames: 8}}\n")
    with pytest.raises(ConfigError, match="block_count: 1 is less than the 2 forced blocks"):
        promote("made", to, base=short, output=str(output))


def test_what_the_kernels_do_not_compute_and_what_fits_nowhere_is_refused(output, to, monkeypatch):
    from nsa_lab.attention.backends import BACKENDS
    from nsa_lab.scale import plan

    study_in(output, DESIGN)
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="kernels do not run this design: too odd"):
        patch.setattr(type(BACKENDS["triton"]), "why_not_design", lambda *_: "too odd")
        promote("made", to, base=BASE, output=str(output))
    monkeypatch.setattr(plan, "GPUS", {"h100": ("a small GPU", 8.0)})
    with pytest.raises(ConfigError, match=r"needs \d+ GiB on each of 64 NVIDIA H100"):
        promote("made", to, base=BASE, output=str(output))


def test_trials_that_are_not_there_or_not_complete_are_named(output, to):
    study = study_in(output, DESIGN)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    for trial, said in ((5, "has no trial 5; it has 0 to 1"), (1, "trial 1 of study made is failed")):
        with pytest.raises(NsaLabError, match=said):
            promote("made", to, trial=trial, base=BASE, output=str(output))
    with pytest.raises(NsaLabError, match="known: made"):
        promote("mad", to, base=BASE, output=str(output))
    with pytest.raises(NsaLabError, match="no sweep was run there"):
        promote("made", to, base=BASE, output=str(output / "nowhere"))
    to.parent.mkdir()
    to.write_text("mine")
    with pytest.raises(NsaLabError, match="exists; choose another name"):
        promote("made", to, base=BASE, output=str(output))
    with pytest.raises(NsaLabError, match=r"end it with \.yaml"):
        promote("made", to.with_suffix(".txt"), base=BASE, output=str(output))


def test_layers_keep_their_part_of_the_model():
    assert [stretched(span, 4, 28) for span in ("0", "1-2", "3", "0-3")] == ["0-6", "7-20", "21-27", "0-27"]
    assert [stretched(span, 28, 4) for span in ("0-6", "13", "27")] == ["0-0", "1-1", "3-3"]
    config = load_config(None, {"tasks.needle.enabled": True, "attention.layers.1-2.branches.window.size": 16})
    found, changes = translate(config, Scale(4, 128, 4), Scale(64, 1280, 28))
    assert found["attention.layers.7-20.branches.window.size"] == 128
    assert [change.reason for change in changes if "layers" in change.key] == [
        "4 layers there, 28 here; 12.5% of the longest clip, 128 tokens there and 1,280 here, in whole frames"
    ]


def test_what_reads_a_whole_clip_there_reads_a_whole_one_here():
    config = load_config(None, ["tasks.needle.enabled=true", "attention.branches.window.size=300"])
    found, changes = translate(config, Scale(4, 128, 4), Scale(64, 1300, 28))
    assert found["attention.branches.selection.block_count"] == 2, "1,300 tokens in blocks of 1,024"
    assert found["attention.branches.window.size"] == 21 * 64
    assert sum("100.0% of the longest clip" in change.reason for change in changes) == 2


def test_settings_in_tokens_say_what_they_are_a_share_of():
    design = load_config(None, ["tasks.needle.enabled=true", "attention.partition.kind=scene"]).attention
    assert scales(design) == {
        "partition.block_size": "frame",
        "partition.max_size": "frame",
        "partition.min_size": "tile",
        "branches.selection.query_tile": "tile",
        "branches.selection.block_count": "blocks",
        "branches.window.size": "context",
    }
    names = {name for _, name, _ in in_use(design)}
    assert {"nsa", "scene", "mean", "compression", "selection", "window", "top_n", "mlp", "none"} <= names
