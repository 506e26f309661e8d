"""`nsa-lab ask`: the answer alone on stdout, and a picture on request."""

import pytest
import torch

from nsa_lab import ask, build_model, load_model
from nsa_lab.cli import app as cli
from nsa_testing import stored_run, tiny_config
from nsa_videos import write

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def place(tmp_path_factory, clips):
    """A folder with the run of a random model, the same run with dense attention, and a video."""
    folder = tmp_path_factory.mktemp("ask")
    given = ("tasks.needle.enabled=true", f"data.cache_dir={clips}", "training.threads=1", "training.accelerator=cpu")
    for name, method in (("run", "nsa"), ("dense", "dense")):
        config = tiny_config(*given, f"attention.method={method}", "tracking.enabled=false")
        torch.manual_seed(0)
        stored_run(folder / name, config, build_model(config))
    write(folder / "clip.mp4", times=range(90), noise=True)
    return folder


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["ask", *map(str, arguments), "--max-new-tokens", "4"])
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


def test_the_answer_and_a_picture_of_what_was_seen(place, capsys, tmp_path):
    expected = ask(load_model(place / "run"), place / "clip.mp4", QUESTION, max_new_tokens=4)
    picture = tmp_path / "new/seen.png"
    code, out, err = command(capsys, place / "run", place / "clip.mp4", QUESTION, "--picture", picture)
    assert code == 0 and out == f"{expected}\n", err
    assert picture.read_bytes().startswith(b"\x89PNG") and f"{picture}: what the last video token (" in err
    code, whole, err = command(capsys, place / "dense", place / "clip.mp4", QUESTION)
    assert code == 0 and whole.strip() and not err
    code, out, err = command(capsys, place / "dense", place / "clip.mp4", QUESTION, "--prefill-chunk", "50")
    assert code == 0 and out == whole and not err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "none.mp4", "?"), "none.mp4 does not exist; give a video file"),
        (("run", "run", "?"), "is a folder; give a video file"),
        (("run", "run/config.yaml", "?"), "config.yaml"),
        (("nowhere/at/all", "clip.mp4", "?"), "nowhere/at/all"),
        (("run", "clip.mp4", "?", "--picture", "seen.jpg"), "seen.jpg is no PNG"),
        (("run", "clip.mp4", "?", "--layer", "1"), "give --picture FILE too"),
        (("run", "clip.mp4", "?", "--layer", "7", "--picture", "a.png"), "layer 7 does not exist"),
        (("dense", "clip.mp4", "?", "--picture", "a.png"), "no layer shows a partition"),
        (("run", "clip.mp4", "<|im_end|>"), "reserved token"),
        (("run", "clip.mp4", "?", "data.fsp=1"), "did you mean"),
        (("run", "clip.mp4", "?", "attention.method=released", "--prefill-chunk", "9"), "leave prefill_chunk out"),
    ],
)
def test_bad_commands_are_answered_in_one_line(place, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(place)
    code, out, err = command(capsys, *arguments)
    assert code == 2 and not out and said in err.splitlines()[-1] and "fault of nsa-lab" not in err, err
