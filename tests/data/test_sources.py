import json

import pytest

from nsa_lab.config import load_config
from nsa_lab.data import VideoDataset, load_samples, load_tokenizer, pack


def row(video, answer="red"):
    turns = [{"from": "human", "value": "<image>\nWhat colour was it?"}, {"from": "gpt", "value": answer}]
    return {"id": video, "video": video, "conversations": turns, "data_source": "mine"}


def write_rows(path, rows):
    path.write_text(json.dumps(rows))
    return path


def user_config(folder, annotations, *overrides):
    return load_config(None, [f"data.annotations={annotations}", f"data.videos={folder}", *overrides])


def test_a_users_folder_end_to_end(make_video, tmp_path):
    train = write_rows(tmp_path / "train.json", [row(make_video("a.mp4").name), row(make_video("b.mp4", 3).name)])
    val = write_rows(tmp_path / "val.json", [row("a.mp4")])
    config = user_config(tmp_path, train, f"data.val_annotations={val}", f"data.cache_dir={tmp_path / 'cache'}")
    samples = load_samples(config)
    assert {split: len(rows) for split, rows in samples.items()} == {"train": 2, "val": 1}
    data = VideoDataset(samples["train"], load_tokenizer("offline", tmp_path / "cache"), config.data)
    batch = pack([data[0], data[1]])
    assert batch["video_grid_thw"].tolist() == [[4, 4, 4], [2, 4, 4]]
    assert batch["answer_tasks"] == ["mine", "mine"]


def test_hold_out_by_video(make_video, tmp_path, caplog):
    names = [make_video(f"{number}.mp4", frames=1).name for number in range(12)]
    annotations = write_rows(
        tmp_path / "rows.json", [row(name, answer) for name in names for answer in ("red", "blue")]
    )
    config = user_config(tmp_path, annotations)
    samples = load_samples(config)
    train, val = ({sample.video for sample in samples[split]} for split in ("train", "val"))
    assert (len(train), len(val)) == (11, 1)
    assert not train & val
    assert len(samples["train"]) + len(samples["val"]) == 24
    assert load_samples(config) == samples
    assert "1 of 12 videos are held out" in caplog.text


def test_skip_reaches_the_annotations(make_video, tmp_path):
    annotations = write_rows(tmp_path / "rows.json", [row(make_video("a.mp4").name), row("b.mp4"), row("a.mp4")])
    config = user_config(tmp_path, annotations, "data.on_bad_sample=skip", f"data.val_annotations={annotations}")
    assert len(load_samples(config)["train"]) == 2


@pytest.mark.parametrize(
    ("override", "warned"), [("data.fps=2", False), ("data.fps=1", True), ("data.max_frames=8", True)]
)
def test_both_tasks_and_a_warning_where_frames_go_unseen(tmp_path, caplog, override, warned):
    dials = [
        f"tasks.{task}.{dial}" for task in ("needle", "order") for dial in ("frames=16", "train_clips=2", "val_clips=1")
    ]
    config = load_config(
        None,
        ["tasks.needle.enabled=true", "tasks.order.enabled=true", *dials, override, f"data.cache_dir={tmp_path}"],
    )
    samples = load_samples(config)
    assert [sample.task for sample in samples["train"]] == ["needle", "needle", "order", "order"]
    assert [sample.task for sample in samples["val"]] == ["needle", "order"]
    assert ("8 of the 16 frames" in caplog.text) == warned


def test_rows_left_out_are_counted_with_the_samples(make_video, tmp_path):
    rows = [row(make_video("a.mp4").name), row(make_video("b.mp4").name), {"video": "a.mp4"}, row("lost.mp4")]
    config = user_config(tmp_path, write_rows(tmp_path / "rows.json", rows), "data.on_bad_sample=skip")
    samples = load_samples(config)
    assert {split: len(part) for split, part in samples.items()} == {"train": 1, "val": 1}
    counts = {"unusable row": 1, "missing video file": 1}
    tokenizer = load_tokenizer("offline", tmp_path / "cache")
    assert VideoDataset(samples["train"], tokenizer, config.data).skipped() == counts
    assert VideoDataset(samples["val"], tokenizer, config.data).skipped() == {}


def test_absolute_videos_is_a_setting(make_video, tmp_path):
    (tmp_path / "folder").mkdir()
    rows = write_rows(tmp_path / "rows.json", [row(str(make_video("a.mp4")))])
    config = user_config(tmp_path / "folder", rows, "data.absolute_videos=true")
    assert [sample.video for sample in load_samples(config)["train"]] == [tmp_path / "a.mp4"]
