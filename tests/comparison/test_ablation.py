"""Ablation files: what they become, what they refuse, and a small one from beginning to end."""

import inspect
import json
import re
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from nsa_lab.attention.branches import BRANCHES
from nsa_lab.cli.ablate import ablate
from nsa_lab.comparison import compare, read_comparison
from nsa_lab.comparison.ablation import Ablation
from nsa_lab.comparison.plan import makeup, needed, trainings
from nsa_lab.comparison.rows import ORIGIN, make_row, read_rows, write_rows
from nsa_lab.comparison.spec import chosen
from nsa_lab.comparison.stored import load_stored
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.report import write_page

ROOT = Path(__file__).resolve().parents[2]
ALL = "+".join(BRANCHES)
FILE = {
    "base": "tiny.yaml",
    "seeds": 2,
    "start": {"attention.method": "dense", "training.steps": 3},
    "at": ["training", "inference"],
    "readings": {"transport": {"attention.text_window": 6}, "dense-text": {}},
    "subsets": True,
    "presets": {"quick": {"seeds": 1, "readings": {}, "settings": {"training.steps": 1}}},
}


@pytest.fixture
def study(clips, tmp_path):
    """Writes an ablation of trainings of two steps with keys changed; gives its file."""
    recall = {"enabled": True, "frames": 16, "scenes": 2, "train_clips": 4, "val_clips": 2}
    values = {
        "output": {"dir": str(tmp_path / "runs")},
        "data": {"cache_dir": str(clips)},
        "tracking": {"enabled": False},
        "attention": {"partition": {"block_size": 3}},
        "tasks": {"recall": recall, "needle": {"enabled": True, "frames": 16, "train_clips": 4, "val_clips": 2}},
        "model": {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "num_layers": 2},
        "training": {"steps": 2, "batch_size": 2, "threads": 1, "accelerator": "cpu", "warmup_steps": 0},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))

    def write(**changed):
        file = tmp_path / "study.yaml"
        file.write_text("# Question: which?\n# Cost: none\n\n" + yaml.safe_dump(FILE | changed))
        return file

    return write


def planned(comparison, variants=(), seeds=None):
    return trainings(comparison, *chosen(comparison, variants, seeds), ())


def test_every_set_of_branches_is_a_variant_and_the_largest_is_the_reference(study):
    comparison = read_comparison(study())
    sets = ["+".join(s) for size in range(len(BRANCHES), 0, -1) for s in combinations(BRANCHES, size)]
    assert list(comparison.variants) == [*sets, "dense"]
    assert comparison.references == (ALL,) and comparison.seeds == (0, 1)
    assert comparison.branches == {s: tuple(s.split("+")) for s in sets} | {"dense": ()}
    assert list(comparison.metrics) == ["val/accuracy/needle", "val/accuracy/recall", "val/accuracy", "val/loss"]
    assert comparison.question == "Question: which?\nCost: none"


def test_trainings_start_from_one_run_a_seed_and_inference_from_the_reference(study):
    comparison = read_comparison(study(readings={}))
    found = {(t.experiment, t.variant, t.seed): t for t in planned(comparison)}
    assert len(found) == 2 * (1 + 8 + 8)
    start, trained = found["tiny", "start", 1], found["tiny", ALL, 1]
    assert (start.config.attention.method, start.config.training.steps) == ("dense", 3)
    assert trained.source is start and trained.config.training.steps == 2
    at_inference = found["tiny-inference", "window", 1]
    assert at_inference.source is trained and at_inference.config.training.steps == 0
    assert found["tiny-inference", "dense", 1].config.attention.method == "dense"
    ordered = needed(list(found.values())[::-1])
    assert [t.depth for t in ordered] == [0] * 2 + [1] * 16 + [2] * 16
    assert [t.kind for t in ordered] == ["start"] * 2 + ["design"] * 16 + ["validation"] * 16
    assert len({t.directory for t in found.values()}) == len(found)


def test_inference_alone_trains_what_it_takes_its_weights_from_and_no_more(study):
    comparison = read_comparison(study(readings={}), at="inference", seeds=1)
    found = [(t.experiment, t.variant) for t in planned(comparison, ["window"])]
    assert found == [("tiny", "start"), ("tiny", ALL), ("tiny-inference", "window")]


def test_inference_may_take_the_weights_of_several_designs(study):
    comparison = read_comparison(study(readings={}, at="inference", weights=[ALL, "dense"]), seeds=1)
    found = {(t.experiment, t.variant): t for t in planned(comparison, ["window"])}
    assert found["tiny-weights-of-dense", "window"].source is found["tiny", "dense"]
    assert found[f"tiny-weights-of-{ALL}", "window"].source is found["tiny", ALL]


def test_converted_designs_are_validated_with_weights_of_their_own(study):
    file = study(readings={}, at="inference", seeds=1, references=["dense"], converted=["window"])
    found = {(t.experiment, t.variant): t for t in planned(read_comparison(file), ["dense", "window", "selection"])}
    assert list(found) == [
        ("tiny", "start"), ("tiny", "dense"), ("tiny-inference", "dense"),
        ("tiny", "window"), ("tiny-inference", "window"), ("tiny-inference", "selection"),
    ]  # fmt: skip
    sources = {variant: t.source.variant for (experiment, variant), t in found.items() if experiment != "tiny"}
    assert sources == {"dense": "dense", "window": "window", "selection": "dense"}
    with pytest.raises(NsaLabError, match="converted says whose own weights are validated, and nothing is"):
        read_comparison(file, at="training")
    with pytest.raises(NsaLabError, match="converted names stranger; write a list of variants"):
        read_comparison(study(converted=["stranger"]))


def test_overrides_count_above_the_file_and_a_variant_keeps_what_makes_it(study):
    comparison = read_comparison(study(readings={}, settings={"training.steps": 6}, at="training"), seeds=1)
    start, design = trainings(comparison, ["window"], [0], ["training.steps=4"])
    assert (start.config.training.steps, design.config.training.steps) == (3, 4)
    with pytest.raises(NsaLabError, match=r"attention\.branches\.window\.enabled is what makes variant"):
        trainings(comparison, ["window"], [0], ["attention.branches.window.enabled=true"])
    with pytest.raises(NsaLabError, match="seed is set for each training"):
        trainings(comparison, ["window"], [0], ["seed=9"])
    with pytest.raises(ConfigError) as caught:
        trainings(comparison, ["window"], [0], ["training.steps=-4"])
    assert str(caught.value) == "training.steps: -4 is negative; use 0 or more", "no variant is to blame"
    with pytest.raises(NsaLabError, match=r"variant other sets seed, which all share"):
        planned(read_comparison(study(variants={"other": {"seed": 7}})))


def test_the_readme_explains_every_key_and_its_file_is_one(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text().split("## Ablations")[1].split("\n## ")[0]
    assert {f.name for f in fields(Ablation)} == set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(ROOT)
    (tmp_path / "mine.yaml").write_text(example)
    found = planned(read_comparison(tmp_path / "mine.yaml"))
    assert [(t.variant, t.config.attention.branches.window.size) for t in found] == [("narrow", 4), ("wide", 8)]
    assert all(f.name in inspect.getdoc(ablate) for f in fields(Ablation)), "`ablate --help` names them"


def test_names_that_run_into_each_other_are_refused(study):
    variants = {"b": {}, "a-b": {}}
    file = study(readings={"r": {}, "r-a": {}}, subsets=False, variants=variants, at="training", start=None)
    with pytest.raises(NsaLabError, match="names of readings and variants run into each other"):
        planned(read_comparison(file))


def test_two_experiments_of_one_name_are_refused(study):
    file = study(readings={"a": {}, "a-inference": {}}, subsets=False, variants={"b": {}}, start=None)
    with pytest.raises(NsaLabError, match="two experiments are called tiny-a-inference; rename"):
        planned(read_comparison(file))


def test_readings_are_everything_once_more_each_from_a_start_of_its_own(study):
    found = {(t.experiment, t.variant): t for t in planned(read_comparison(study()), ["window"], 1)}
    assert {e for e, _ in found} == {
        "tiny-transport",
        "tiny-transport-inference",
        "tiny-dense-text",
        "tiny-dense-text-inference",
    }
    windows = {e: t.config.attention.text_window for (e, v), t in found.items() if v in ("start", "window")}
    assert windows == {e: 6 if "transport" in e else None for e, _ in found}


@pytest.mark.parametrize("at", ["both", ["training", "inference"], ["inference", "training"]])
def test_at_both_is_training_and_inference(study, at):
    comparison = read_comparison(study(readings={}, at=at))
    assert [one.name for one in comparison.experiments if one.asked] == ["tiny", "tiny-inference"]


def test_the_number_of_trainings_is_explained(study):
    plain = read_comparison(study(at="training", start=None, readings={}))
    assert makeup(planned(plain, ["window", "dense"])) == "2 designs x 2 seeds"
    assert makeup(planned(plain, ["window"], 1)) == "1 design"
    twice = makeup(planned(read_comparison(study()), ["window"]))
    assert twice == "1 start x 2 seeds x 2 experiments + 2 designs x 2 seeds x 2 experiments + " + (
        "1 validation x 2 seeds x 2 experiments"
    )


def test_without_a_start_designs_begin_from_random_weights(study):
    (one,) = planned(read_comparison(study(at="training", readings={}, start=None)), ["window"], 1)
    assert one.source is None and one.config.model.path is None


def test_a_start_of_other_settings_is_another_training(study):
    (_, one), (_, other) = (
        planned(read_comparison(study(at="training", readings={}, start={"training.steps": steps})), ["window"], 1)
        for steps in (3, 4)
    )
    assert one.directory != other.directory and one.config.training == other.config.training


def test_ablations_that_start_alike_share_the_run_they_start_from(study, tmp_path):
    one = planned(read_comparison(study(at="training", readings={})), ["window"], 1)
    file = study(at="training", readings={}, settings={"training.learning_rate": 0.5}, start=FILE["start"])
    other = planned(read_comparison(file.rename(tmp_path / "other.yaml")), ["window"], 1)
    same = planned(read_comparison(study(at="training", readings={}).rename(tmp_path / "same.yaml")), ["window"], 1)
    assert one[0].directory == same[0].directory != other[0].directory
    assert one[1].directory.name == same[1].directory.name and one[1].directory != same[1].directory


def test_a_preset_replaces_keys_and_has_a_folder_of_its_own(study):
    quick = read_comparison(study(), "quick")
    assert quick.name == "study-quick" and quick.seeds == (0,)
    assert {t.config.training.steps for t in planned(quick)} == {0, 1, 3}
    assert read_comparison(study(), "quick", "training", 2).seeds == (0, 1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base": ""}, "base is missing"),
        ({"base": "tinny.yaml"}, "tinny.yaml does not exist"),
        ({"varients": {}}, "varients is no key of an ablation; did you mean variants?"),
        ({"presets": {"quick": {"seedz": 1}}}, None),
        ({"seeds": 0}, "seeds is 0; use 1 or more"),
        ({"seeds": "three"}, "seeds is 'three'; write int"),
        ({"seeds": True}, "seeds is True; write int"),
        ({"subsets": 1}, "subsets is 1; write true or false"),
        ({"subsets": False}, "variants is empty"),
        ({"variants": ["a"]}, "variants is ['a']; write keys and values"),
        ({"variants": {"a": 3}}, "variants maps a to 3; write its settings, {} for none"),
        ({"variants": {"a/b": {}}}, "variants has 'a/b', which cannot name a folder"),
        ({"variants": {"start": {}}}, "variants has 'start'"),
        ({"references": ["windov"]}, "references names windov; write a list of variants"),
        ({"references": ["window", "dense", "window"]}, "references names window twice; name it once"),
        ({"weights": ["dense", "dense"]}, "weights names dense twice"),
        ({"at": ["training", "training"]}, "at names training twice"),
        ({"references": "window"}, "references names window; write a list"),
        ({"weights": ["best"]}, "weights names best"),
        ({"at": "infer"}, "at is infer; use training, inference"),
        ({"at": ["both"]}, "at is both; use training, inference, both, or a list"),
        ({"at": []}, "at is empty"),
        ({"start": 5}, "start is 5; write keys and values"),
        ({"variants": {True: {}}}, "variants has True, which YAML reads as no text; quote it"),
        ({"variants": {"a": {5: 1}}}, "variants.a has 5, which YAML reads as no text"),
        ({"references": 5}, "references is 5; write a list of names"),
        ({"weights": [["a"]]}, "weights has ['a'], which YAML reads as no text"),
        ({"presets": {"q": None}}, "presets maps q to None; write the keys"),
        ({"presets": {"a/b": {}}}, "presets has 'a/b', which cannot name a folder"),
    ],
)
def test_faults_of_the_file_are_named(study, changed, said):
    file = study(**changed)
    if said is None:
        said = "presets.quick.seedz is no key of an ablation; did you mean seeds?"
        with pytest.raises(NsaLabError) as caught:
            read_comparison(file, "quick")
    else:
        with pytest.raises(NsaLabError) as caught:
            read_comparison(file)
    assert said in str(caught.value) and str(file) in str(caught.value)


def test_other_faults_are_named(study, tmp_path):
    with pytest.raises(NsaLabError, match="has no preset quik; it has quick"):
        read_comparison(study(), "quik")
    (tmp_path / "study.py").write_text("")
    with pytest.raises(NsaLabError, match=r"study\.py is no ablation's YAML"):
        read_comparison(tmp_path / "study.py", seeds=2)
    with pytest.raises(ConfigError, match=r"bad: attention\.gate\.kindd"):
        planned(read_comparison(study(variants={"bad": {"attention.gate.kindd": "mlp"}})))


@pytest.mark.usefixtures("workers")
def test_it_trains_validates_and_goes_on(study, tmp_path, capfd):
    file = study(readings={}, seeds=1, subsets=False, variants={"three": {}, "window": only("window")})
    out = compare(read_comparison(file), variants=["window"], workers=2)
    rows = {key[:2]: row for key, row in read_rows(out / "runs.csv").items()}
    assert set(rows) == {("tiny", "start"), ("tiny", "three"), ("tiny", "window"), ("tiny-inference", "window")}
    assert all(0 <= float(row["val/accuracy/needle"]) <= 1 for row in rows.values())
    switched_off = json.loads(next(tmp_path.rglob("tiny-inference-window*/summary.json")).read_text())["metrics"]
    assert "gate/window" in switched_off and "gate/selection" not in switched_off
    assert rows["tiny", "window"]["val/loss"] != rows["tiny-inference", "window"]["val/loss"]

    capfd.readouterr()
    for weights in tmp_path.rglob("tiny-three*/checkpoints/*.ckpt"):
        weights.unlink()
    compare(read_comparison(file), workers=2)
    said = capfd.readouterr().out
    assert "5 trainings, 4 done before" in said and "1/2  tiny three" in said, "it is trained again for its weights"
    table = (out / "table.md").read_text()
    assert "| design | compression | selection | window | needle ↑ | recall ↑ | val/accuracy ↑ |" in table
    assert "| window |  |  | ✓ |" in table and "| three | ✓ | ✓ | ✓ |" in table


@pytest.fixture
def done(study, tmp_path):
    """Writes the rows of an ablation as if it were trained; gives its folder."""

    def write(comparison, **chosen_by):
        wanted = trainings(comparison, *chosen(comparison, chosen_by.get("variants", ()), None), ())
        out = wanted[-1].directory.parent
        known = list(read_rows(out / "runs.csv").values())
        rows = [make_row(t, {"val/accuracy": 0.5, "val/loss": 1.0}, dict.fromkeys(ORIGIN, "x")) for t in wanted]
        write_rows(out / "runs.csv", [*known, *rows])
        return compare(comparison, **chosen_by)

    return write


@pytest.mark.parametrize("at", ["training", "inference"])
def test_a_variant_of_another_shape_than_its_weights_is_refused_before_anything_is_trained(study, at):
    file = study(readings={}, subsets=False, variants={"plain": {}, "wide": {"model.hidden_size": 64}}, at=at)
    with pytest.raises(
        ConfigError, match=r"wide: model\.hidden_size: 64 is set, but model\.path=\S+ was trained with 32"
    ):
        planned(read_comparison(file))


def test_what_was_asked_is_kept_and_another_selection_says_what_it_replaces(study, done, capfd):
    file = study(at="training", readings={}, start=None)
    out = done(read_comparison(file, "quick", "both", 2), variants=["window", "dense"])
    typed = f"nsa-lab ablate {file} --preset quick --at both --seeds 2 --variants window,dense"
    assert load_stored(out).command == typed and f"## study-quick (`{typed}`)" in (out / "table.md").read_text()
    assert "were of" not in capfd.readouterr().out
    compare(read_comparison(file, "quick", "both", 2), variants=["window", "dense"], workers=2)
    assert "were of" not in capfd.readouterr().out, "the same command"
    compare(read_comparison(file, "quick"), variants=["window"])
    said = capfd.readouterr().out
    assert f"tables in {out} were of `{typed}`; now of `nsa-lab ablate {file} --preset quick --variants window`" in said
    page = write_page([out], out / "page.html").read_text()
    assert "rows of tiny-inference, which this command does not ask for" in page


def test_other_settings_do_not_join_rows_of_their_design(study, done):
    out = done(read_comparison(study(at="training", readings={}, start=None), seeds=1), variants=["window"])
    before = [(out / name).read_bytes() for name in ("runs.csv", "table.md", "comparison.json")]
    other = read_comparison(study(at="training", readings={}, start=None, settings={"training.steps": 9}), seeds=1)
    with pytest.raises(NsaLabError, match=r"runs\.csv holds tiny, window, seed 0 with other settings .*--out FOLDER"):
        compare(other, variants=["window"])
    assert before == [(out / name).read_bytes() for name in ("runs.csv", "table.md", "comparison.json")]


def only(branch):
    return {f"attention.branches.{name}.enabled": name == branch for name in BRANCHES}
