"""`nsa-lab data check` on the command line."""

import json
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from PIL import Image

from nsa_videos import write

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]


@pytest.mark.usefixtures("workers")
def test_a_check_says_what_there_is_and_where_it_is_written(nsa_lab, clips, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.mp4")
    (tmp_path / "c.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:500])
    rows = [{"video": f"{name}.mp4", "conversations": TALK, "data_source": "mine"} for name in "abbc"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump({"data": {"annotations": "x.json", "videos": "x", "fps": 4.0, "cache_dir": str(clips)}})
    )
    given = ["rows.json", "own.yaml", "--videos", ".", "--workers", 2, "data.fps=8", "--out", "found", "--rate", 1000]
    code, out, err = nsa_lab(
        "data", "check", *(tmp_path / x if x in ("rows.json", "own.yaml", ".", "found") else x for x in given)
    )
    assert code == 0, err
    assert "mine      3          3       2   0.00     159" in out
    assert "not usable: 1 of 4 rows, 1 with unreadable video" in out
    assert f"leave them out with data.drop={tmp_path}/found/drop.jsonl" in out and "1,000 tokens/s take" in out
    summary = json.loads((tmp_path / "found/summary.json").read_text())
    assert summary["fps"] == 8 and summary["groups"][0]["rows"] == 3
    assert summary["quantiles"]["frames at data.fps"]["most"] == 11
    (tmp_path / "other").mkdir()
    (tmp_path / "other/rows.json").write_text(json.dumps(rows))
    for videos, said in (
        (tmp_path, f"holds what was found of {tmp_path}/rows.json; name another"),
        ("no", "no does not exist"),
    ):
        given = [
            tmp_path / "other/rows.json",
            "--videos",
            videos,
            *(["--out", tmp_path / "found"] if videos != "no" else []),
        ]
        assert said in nsa_lab("data", "check", *given)[2]
    with Image.open(tmp_path / "found/data.png") as picture:
        assert picture.width > 1000 and len(set(picture.convert("L").tobytes())) > 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rows.json"], "where are the videos of rows.json? give --videos DIR"),
        (["rows.json", "data.annotations=x", "--videos", "x"], "give the file as ANNOTATIONS"),
        (["none.json", "--videos", "x"], "annotations none.json do not exist"),
        (["none.json", "--videos", "x", "--workers", "0"], "'--workers': "),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(nsa_lab, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = nsa_lab("data", "check", *arguments)
    assert (code, out) == (2, "") and said in err, err


@pytest.mark.slow
def test_a_check_that_is_killed_leaves_no_process_and_goes_on(clips, tmp_path):
    rows = []
    film = write(tmp_path / "film.mp4", times=range(90), size=(320, 240), noise=True).read_bytes()
    for number in range(12):
        (tmp_path / f"{number}.mp4").write_bytes(film)
        rows.append({"video": f"{number}.mp4", "conversations": TALK})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    places = [tmp_path / "rows.json", f"data.cache_dir={clips}", "--videos", tmp_path, "--out", tmp_path / "found"]
    command = [sys.executable, "-m", "nsa_lab.cli", "data", "check", *map(str, places), "--workers", "2", "--quiet"]
    ledger = tmp_path / "found/videos.jsonl"
    process = subprocess.Popen(command)
    while not (ledger.exists() and ledger.read_text().count("\n")) and process.poll() is None:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=30)[1]
    before = ledger.read_text().splitlines()
    assert 0 < len(before) < 12
    subprocess.run(command, check=True)
    after = ledger.read_text().splitlines()
    assert after[: len(before)] == before and len({json.loads(line)[0] for line in after}) == len(after) == 12
    assert json.loads((tmp_path / "found/summary.json").read_text())["groups"][0]["rows"] == 12
