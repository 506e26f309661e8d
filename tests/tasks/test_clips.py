import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsa_lab.data.annotations import read_annotations
from nsa_lab.data.video import read_clip
from nsa_lab.errors import NsaLabError
from nsa_lab.tasks import TasksConfig, clips
from nsa_lab.tasks.clips import clip_folder, ensure_clips
from nsa_lab.tasks.duration import Duration
from nsa_lab.tasks.needle import Needle
from nsa_lab.tasks.order import Order
from nsa_lab.tasks.recall import Recall

SMALL = TasksConfig(
    needle=Needle.Config(frames=8, train_clips=3, val_clips=2),
    order=Order.Config(frames=16, train_clips=3, val_clips=2),
    recall=Recall.Config(train_clips=3, val_clips=2),
    duration=Duration.Config(train_clips=3, val_clips=2),
)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["needle", "order", "recall", "duration"])
def test_files_are_complete_and_annotations_true(tmp_path, name):
    paths = ensure_clips(name, SMALL, tmp_path)
    for split, count in (("train", 3), ("val", 2)):
        samples = read_annotations(paths[split], paths[split].parent)
        rows = json.loads(paths[split].read_text())
        assert len(samples) == len(rows) == count
        for sample, row in zip(samples, rows, strict=True):
            config = getattr(SMALL, name)
            clip = read_clip(sample.video, SMALL.fps, 768)
            assert len(clip.frames) == config.frames
            assert sample.task == name
            assert len(sample.turns) == getattr(config, "questions", 1)
            for event in [*row["meta"]["events"], *row["meta"].get("scenes", [])]:
                assert event["seconds"] == event["start"] / 2
            assert bool(row["meta"].get("scenes")) == (name in ("recall", "duration"))
    assert not list(tmp_path.rglob(".*.unfinished"))


def test_written_once_and_the_same_anywhere(tmp_path):
    ensure_clips("needle", SMALL, tmp_path / "a")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.mp4")}
    ensure_clips("needle", SMALL, tmp_path / "a")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.mp4")}
    ensure_clips("needle", SMALL, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_train_and_val_differ(tmp_path):
    folder = ensure_clips("needle", SMALL, tmp_path)["train"].parent.parent
    clip_bytes = [path.read_bytes() for path in folder.rglob("*.mp4")]
    assert len(set(clip_bytes)) == 5


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"fps": 4.0}, {"needle": dataclasses.replace(SMALL.needle, noise=0.1)}],
    ids=["seed", "fps", "noise"],
)
def test_each_setting_has_its_folder(tmp_path, change):
    changed = dataclasses.replace(SMALL, **change)
    assert clip_folder("needle", changed, tmp_path) != clip_folder("needle", SMALL, tmp_path)


def test_switching_a_task_on_keeps_its_folder(tmp_path):
    enabled = dataclasses.replace(SMALL, needle=dataclasses.replace(SMALL.needle, enabled=True))
    assert clip_folder("needle", enabled, tmp_path) == clip_folder("needle", SMALL, tmp_path)


def test_a_deleted_clip_is_written_again(tmp_path):
    folder = ensure_clips("needle", SMALL, tmp_path)["train"].parent
    before = contents(folder)
    (folder / "clip-000001.mp4").unlink()
    ensure_clips("needle", SMALL, tmp_path)
    assert contents(folder) == before


def test_interrupted_inside_a_clip(tmp_path, monkeypatch):
    write_clip, calls = clips._write_clip, []

    def fail_on_third(*args):
        calls.append(args)
        if len(calls) == 3:
            (args[-1] / ".clip-000002.mp4.1.unfinished").write_text("half")
            raise KeyboardInterrupt
        write_clip(*args)

    monkeypatch.setattr(clips, "_write_clip", fail_on_third)
    with pytest.raises(KeyboardInterrupt):
        ensure_clips("needle", SMALL, tmp_path / "a")
    ensure_clips("needle", SMALL, tmp_path / "a")
    assert len(calls) == 3 + 3, "two finished clips are kept, the third and both val clips are written"
    monkeypatch.undo()
    ensure_clips("needle", SMALL, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


WRITE = """
import sys
from pathlib import Path
from nsa_lab.tasks import TasksConfig
from nsa_lab.tasks.clips import ensure_clips
from nsa_lab.tasks.needle import Needle
tasks = TasksConfig(needle=Needle.Config(frames=32, train_clips=int(sys.argv[2]), val_clips=1))
print(ensure_clips("needle", tasks, Path(sys.argv[1]))["train"])
"""


def start(folder, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, str(folder), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_clips(folder, count, process):
    while len(found := list(folder.rglob("clip-*.mp4"))) < count:
        assert process.poll() is None, "finished before it could be watched"
        time.sleep(0.005)
    return found


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    process = start(tmp_path, 200)
    wait_for_clips(tmp_path, 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("clip-*.mp4")}
    assert 5 <= len(finished) < 200
    resumed = start(tmp_path, 200)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    folder = os.path.dirname(output.strip())
    assert len([name for name in os.listdir(folder) if name.endswith(".mp4")]) == 200
    assert not list(tmp_path.rglob(".*.unfinished"))
    for sample in read_annotations(Path(output.strip()), Path(folder)):
        assert len(read_clip(sample.video, 2.0, 768).frames) == 32


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    first = start(tmp_path, 150)
    wait_for_clips(tmp_path, 1, first)
    second = start(tmp_path, 150)
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs[0][0] == outputs[1][0] != ""
    assert "waiting for another process" in outputs[1][1]
    assert "writing 151 needle clips" in outputs[0][1]
    assert "writing" not in outputs[1][1].replace("that writes", "")


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "tasks").write_text("a file where the folder should be")
    with pytest.raises(NsaLabError, match=r"cannot be written to .*set data.cache_dir"):
        ensure_clips("needle", SMALL, tmp_path)
