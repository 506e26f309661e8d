"""A folder of videos as phones leave them, one broken, through `data check`, `train`, `evaluate` and `ask`."""

import json
from fractions import Fraction

import pytest
import yaml

from nsa_videos import CONTAINERS, set_display_matrix, write

MILLISECOND = Fraction(1, 1000)
JUMPY = [0, 33, 68, 101, 400, 433, 900, 960, 1000, 1333, 1700, 2000, 2500]
HEVC = CONTAINERS["hevc.mp4"]


@pytest.fixture
def folder(tmp_path, monkeypatch, clips):
    """Rotated, of variable rate, 10 bits deep, with sound and without, one broken and one empty; two rows of each."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "videos"
    place.mkdir()
    set_display_matrix(write(place / "IMG_0001.MOV", times=range(60), size=(90, 60), audio_s=2.0), (0, 1, -1, 0))
    write(place / "VID 2 (variable).mp4", times=JUMPY, time_base=MILLISECOND)
    write(place / "10 bit.mp4", *HEVC, pixels="yuv420p10le", audio_s=1.4)
    set_display_matrix(write(place / "upside down.mp4", *HEVC, times=JUMPY, time_base=MILLISECOND), (-1, 0, 0, -1))
    write(place / "live.webm", *CONTAINERS["clip.webm"])
    whole = write(place / "broken.mp4", noise=True, options={"movflags": "faststart"}).read_bytes()
    (place / "broken.mp4").write_bytes(whole[: 2 * len(whole) // 3])
    (place / "empty.MP4").touch()
    names = sorted(file.name for file in place.iterdir())
    assert len(names) == 7
    (tmp_path / "rows.json").write_text(json.dumps([row(name, n) for name in names for n in (0, 1)]))
    own = {
        "data": {"annotations": "rows.json", "val_annotations": "rows.json", "videos": "videos", "fps": 4.0}
        | {"cache_dir": str(clips), "max_pixels": 56 * 84},
        "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1},
        "attention": {"partition": {"kind": "frame", "block_size": 6}},
        "training": {"steps": 2, "batch_size": 2, "tokens_per_batch": 200, "threads": 1, "accelerator": "cpu"},
        "tracking": {"enabled": False},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    return tmp_path


def row(name, number):
    talk = [{"from": "human", "value": f"<video>\nQuestion {number}?"}, {"from": "gpt", "value": "grey"}]
    return {"id": f"{name} {number}", "video": name, "conversations": talk, "task": "phone"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("workers")
def test_phone_videos_are_checked_trained_on_evaluated_and_asked_about(nsa_lab, folder, caplog):
    code, out, err = nsa_lab("data", "check", "rows.json", "own.yaml", "--out", "found", "--workers", 2)
    assert code == 0, err
    dropped = [json.loads(line) for line in (folder / "found/drop.jsonl").read_text().splitlines()]
    assert [line["video"] for line in dropped] == ["broken.mp4", "empty.MP4"], dropped
    assert "was cut off" in dropped[0]["reason"] and "not usable: 4 of 14 rows, 4 with unreadable video" in out
    assert "packing: 3 batches of up to 200 tokens an epoch, 83.3% full" in out
    seconds = json.loads((folder / "found/summary.json").read_text())["quantiles"]["seconds of a video"]
    assert seconds["least"] == pytest.approx(40 / 30, abs=0.01) and seconds["most"] == pytest.approx(2.5 * 13 / 12)

    code, _, err = nsa_lab("train", "own.yaml", "--dir", "undropped", "--quiet")
    assert code == 2 and "sample broken.mp4 0: video videos/broken.mp4 was cut off" in err, err
    train = ("train", "own.yaml", "data.drop=found/drop.jsonl", "--dir", "run", "--quiet")
    code, out, err = nsa_lab(*train)
    assert code == 0, err
    assert "rows.json: 4 rows are left out by data.drop=found/drop.jsonl" in caplog.text
    assert "skipped" not in out

    asked = ("evaluate", "run", "rows.json", "--max-new-tokens", 3, "--quiet")
    code, _, err = nsa_lab(*asked, "--output", "all")
    assert code == 2 and "sample broken.mp4 0" in err, "the list of a training leaves out nothing of an evaluation"
    code, out, err = nsa_lab(*asked, "data.drop=found/drop.jsonl")
    assert code == 0, err
    answers = [json.loads(line) for line in (folder / "run/evaluation/rows/predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 10 and all(answer["answer"] is not None for answer in answers)
    code, out, err = nsa_lab("ask", "run", "videos/IMG_0001.MOV", "What is it?", "--max-new-tokens", 2)
    assert code == 0, err
    code, _, err = nsa_lab("ask", "run", "videos/broken.mp4", "What is it?")
    assert code == 2 and "error: video videos/broken.mp4 was cut off" in err and err.count("error: ") == 1
