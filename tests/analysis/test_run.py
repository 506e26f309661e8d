"""Pictures at the end of a training, and `nsa-lab analyze partition`."""

import os
import shutil

import pytest
import torch
from PIL import Image

from nsa_lab import cli, train
from nsa_lab.config import to_yaml
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking import Tracker
from nsa_lab.training import Trained
from nsa_lab.training.restore import restore

PICTURES = {"blocks-sample0-layer02.png", "timeline-sample0-layer02.png", "query-sample0-layer02-token14.png"}


@pytest.fixture
def analyze(capfd):
    """Runs `nsa-lab analyze partition`; gives exit code, stdout and stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["analyze", "partition", *map(str, arguments)])
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture
def artifacts(monkeypatch):
    """The pictures that a run hands to its tracker, as {file name: folder}."""
    sent = {}

    def artifact(tracker, path, folder=""):
        if path.suffix == ".png":
            sent[path.name] = folder

    monkeypatch.setattr(Tracker, "artifact", artifact)
    return sent


def test_a_run_with_another_partition_than_uniform_keeps_and_sends_pictures(make_config, artifacts):
    result = train(make_config(), progress_bar=False)
    folder = result.directory / "pictures" / "partition"
    assert {file.name for file in folder.iterdir()} == PICTURES
    assert {name for name, place in artifacts.items() if place == "pictures/partition"} == PICTURES
    for file in folder.iterdir():
        with Image.open(file) as image:
            assert image.width > 500 and image.height > 200


@pytest.mark.slow
def test_a_uniform_run_has_no_partition_pictures_and_asks_for_no_whole_model(make_config, artifacts, monkeypatch):
    monkeypatch.delattr(Trained, "module")
    result = train(make_config({"attention.partition.kind": "uniform"}), progress_bar=False)
    assert artifacts == {"curves.png": "pictures", "gates.png": "pictures"}
    assert {path.name for path in (result.directory / "pictures").iterdir()} == {"curves.png", "gates.png"}
    assert not (result.directory / "pictures" / "partition").exists()


@pytest.mark.slow
def test_one_layer_that_is_not_uniform_is_enough(make_config, artifacts):
    layers = {"0": {"method": "dense"}, "2": {"partition": {"kind": "frame"}}}
    train(make_config({"attention.partition.kind": "uniform", "attention.layers": layers}), progress_bar=False)
    drawn = {name for name in artifacts if name.startswith("blocks")}
    assert drawn == {"blocks-sample0-layer02.png"}  # blocks of 4 are the frames here, so layers 1 and 2 agree


@pytest.mark.slow
def test_a_broken_first_sample_is_passed_over_where_the_run_skips_such(make_config, artifacts, tmp_path, trained):
    clip = next(iter(restore(trained)[2].val.samples)).video
    videos = tmp_path / "videos"
    shutil.copytree(clip.parent, videos)
    (videos / clip.name).write_bytes(b"no video")
    artifacts.clear()
    data = {"data.val_annotations": str(videos / "annotations.json"), "data.videos": str(videos)}
    data |= {"data.annotations": str(videos / "annotations.json"), "data.on_bad_sample": "skip"}
    train(make_config(data | {"tasks.needle.enabled": False}), progress_bar=False)
    assert "blocks-sample1-layer02.png" in artifacts


def test_restore_gives_the_weights_of_the_last_checkpoint(trained):
    config, module, data = restore(trained)
    saved = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], weight) for name, weight in module.state_dict().items())
    assert config.name == "pictures" and len(data.val) == 3


def test_analyze_draws_the_asked_sample_layer_and_query(analyze, trained, tmp_path):
    code, out, err = analyze(trained, "--sample", 2, "--layer", 1, "--query", 5, "--output", tmp_path / "here")
    assert code == 0, err
    names = ["blocks-sample2-layer01.png", "timeline-sample2-layer01.png", "query-sample2-layer01-token5.png"]
    assert out.splitlines() == [str(tmp_path / "here" / name) for name in names]
    assert sorted(os.listdir(tmp_path / "here")) == sorted(names)


def test_a_file_in_the_place_of_the_folder_is_named(analyze, trained, tmp_path):
    (tmp_path / "here").write_text("")
    code, _, err = analyze(trained, "--output", tmp_path / "here")
    assert code == 2 and "cannot write into" in err and "name another --output" in err


def test_analyze_draws_into_the_run_by_default(analyze, trained):
    shutil.rmtree(trained / "pictures")
    code, _, err = analyze(trained)
    assert code == 0, err
    assert {file.name for file in (trained / "pictures" / "partition").iterdir()} == PICTURES


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--layer", 3], ["layer 3 does not exist", "layers 0 to 2", "--layer"]),
        (["--layer", -1], ["'--layer': "]),
        (["--layer", 0], ["layer 0 shows no partition", "1, 2"]),
        (["--query", 16], ["query 16 is not a video token", "16 video tokens", "0 to 15", "--query"]),
        (["--query", -1], ["'--query': "]),
        (["--sample", 3], ["sample 3 does not exist", "there are 3", "--sample"]),
    ],
)
def test_analyze_names_what_is_wrong_and_what_to_do(analyze, trained, tmp_path, arguments, parts):
    code, out, err = analyze(trained, *arguments, "--output", tmp_path / "none")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert not (tmp_path / "none").exists()


def refused(directory, *parts):
    with pytest.raises(NsaLabError) as error:
        restore(directory)
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_restore_names_a_missing_run_and_a_missing_checkpoint(trained, tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist", "nsa-lab train")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file is a file, no folder", "nsa-lab train")
    refused(tmp_path, "holds no run (no config.yaml)", "nsa-lab train")
    shutil.copy(trained / "config.yaml", tmp_path)
    refused(tmp_path, "checkpoints/last.ckpt does not exist", f"nsa-lab train {tmp_path / 'config.yaml'} --dir")


def test_restore_refuses_a_checkpoint_that_is_damaged_or_of_another_config(trained, tmp_path, make_config):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "config.yaml").write_text(to_yaml(make_config({"model.hidden_size": 64})))
    refused(tmp_path, "last.ckpt does not fit", "config.yaml", "restore the config")
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    refused(tmp_path, "last.ckpt is damaged")


@pytest.mark.parametrize("method", ["dense", "released"])
def test_a_run_that_shows_no_partition_says_so(analyze, make_config, method):
    design = {"attention.method": method, "attention.layers": {}, "attention.partition.kind": "uniform"}
    result = train(make_config(design), progress_bar=False)
    code, _, err = analyze(result.directory)
    assert code == 2 and "shows a partition" in err and "attention.method=nsa" in err
