import json

import pytest

from nsa_lab.config import load_config
from nsa_lab.data import VideoDataset, load_samples, load_tokenizer, pack
from nsa_lab.errors import NsaLabError


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


def test_videos_of_a_number_of_frames_are_kept(make_video, tmp_path, caplog):
    rows = [row(make_video(f"{frames}.mp4", frames).name) for frames in (2, 4, 6, 8, 8 + 2)]
    made = write_rows(tmp_path / "rows.json", rows)
    places = (f"data.val_annotations={made}", f"data.cache_dir={tmp_path / 'cache'}", "data.max_frames=4")
    samples = load_samples(user_config(tmp_path, made, *places, "data.fewest_frames=4", "data.most_frames=8"))
    assert [sample.id for sample in samples["train"]] == ["4.mp4", "6.mp4", "8.mp4"] and len(samples["val"]) == 5
    assert "3 of 5 samples are kept, whose videos have 4 to 8 frames at 2 a second" in caplog.text
    held = load_samples(user_config(tmp_path, made, *places[1:], "data.most_frames=4"))
    assert sorted(len(part) for part in held.values()) == [1, 1], "the tenth is of those that are kept"
    with pytest.raises(NsaLabError, match="no video of 5 samples has 99 to any number of frames at 2 a second"):
        load_samples(user_config(tmp_path, made, *places, "data.fewest_frames=99"))


def test_a_video_that_cannot_be_measured_is_named_or_counted(make_video, tmp_path):
    rows = [row(make_video(f"{number}.mp4", 4).name) for number in range(4)]
    (tmp_path / "2.mp4").write_bytes(b"no video")
    made = write_rows(tmp_path / "rows.json", rows)
    given = (f"data.val_annotations={made}", f"data.cache_dir={tmp_path / 'cache'}", "data.fewest_frames=2")
    with pytest.raises(NsaLabError, match=r"sample 2.mp4: video .*2.mp4 cannot be read"):
        load_samples(user_config(tmp_path, made, *given))
    samples = load_samples(user_config(tmp_path, made, *given, "data.on_bad_sample=skip"))["train"]
    assert (len(samples), samples.skipped) == (3, {"unreadable video": 1})


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
