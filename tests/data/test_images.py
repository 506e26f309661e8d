"""Frames as images: rows that bring them so, and videos that are laid out so."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nsa_lab.config import load_config
from nsa_lab.config.schema import DataConfig
from nsa_lab.data import BadSampleError, VideoDataset, load_samples, measured, pack, read_annotations
from nsa_lab.data.images import FrameFiles, Numbered
from nsa_lab.data.pixels import patchify
from nsa_lab.errors import NsaLabError


def released(folder, frames=5, suffix="jpg", **more):
    """A row as in the released VideoNSA data, and its images, 60 x 90, each evenly grey."""
    place = folder / "datasets/frames/1_2_m"
    place.mkdir(parents=True, exist_ok=True)
    images = [f"datasets/frames/1_2_m/v_{number:04d}.{suffix}" for number in range(1, frames + 1)]
    for number, name in enumerate(images):
        Image.fromarray(np.full((90, 60, 3), 20 * number, np.uint8)).save(folder / name, quality=95)
    talk = [("user", "<image>" * frames + "\nWhat?"), ("assistant", "Red."), ("user", "Then?"), ("assistant", "Blue.")]
    messages = [{"role": role, "content": content} for role, content in talk]
    return {"messages": messages, "images": images, "video_id": "v", "data_source": "1_2_m"} | more


def write_rows(folder, *rows):
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "rows.jsonl"


def test_a_released_row_is_a_video_of_its_frames(tmp_path, tokenizer):
    (sample,) = read_annotations(write_rows(tmp_path, released(tmp_path)), tmp_path)
    assert (sample.id, sample.task, [turn.question for turn in sample.turns]) == ("v", "1_2_m", ["What?", "Then?"])
    assert sample.video.names == Numbered("v_", 1, 4, ".jpg", 5) and len(sample.video) == 5
    config = DataConfig(fps=4.0, max_pixels=56 * 84)
    clip = VideoDataset([sample], tokenizer, config).clip(sample)
    assert clip.frames.shape == (5, 3, 84, 56) and clip.seconds.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert clip.frames.float().mean((1, 2, 3)).tolist() == pytest.approx([0, 20, 40, 60, 80], abs=1)
    capped = VideoDataset([sample], tokenizer, DataConfig(fps=4.0, max_frames=3)).clip(sample)
    assert capped.seconds.tolist() == [0, 1]


@pytest.mark.parametrize("layout", ["video", "images"])
def test_lengths_grids_and_positions_of_both_layouts(tmp_path, tokenizer, layout):
    """56 x 84 pixels are 6 tokens: three pairs of frames, or five images between marks."""
    samples = read_annotations(write_rows(tmp_path, released(tmp_path)), tmp_path)
    config = DataConfig(fps=4.0, max_pixels=56 * 84, frames_as=layout, cache_dir=str(tmp_path))
    data = VideoDataset(samples, tokenizer, config)
    example = data[0]
    assert measured(samples, tokenizer, config, most=1000)[1] == [len(example.input_ids)]
    pad, begin, end = (
        tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("video_pad", "vision_start", "vision_end")
    )
    ids = example.input_ids.tolist()
    vision = ids[ids.index(begin) : len(ids) - ids[::-1].index(end)]
    frames = data.clip(samples[0]).frames
    if layout == "video":
        assert vision == [begin, *[pad] * 18, end] and example.grid_thw.tolist() == [[3, 6, 4]]
        assert torch.equal(example.pixel_values, patchify(frames)[0])
        return
    assert vision == [begin, *[pad] * 6, end] * 5 and example.grid_thw.tolist() == [[1, 6, 4]] * 5
    assert torch.equal(example.pixel_values, torch.cat([patchify(frame[None])[0] for frame in frames]))
    first = ids.index(begin)
    assert example.position_ids[:, first : first + 8].tolist() == [
        [first, *[first + 1] * 6, first + 4],
        [first, *(first + 1 + row for row in (0, 0, 1, 1, 2, 2)), first + 4],
        [first, *(first + 1 + column for column in (0, 1) * 3), first + 4],
    ], "an image has no time, and what follows stands after its larger side"
    assert pack([example, example])["video_grid_thw"].shape == (10, 3)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"video": "a.mp4"}, "has an image, and only its video would be shown"),
        ({"images": ["a.jpg", "b.jpg"]}, "has 2 images and 5 <image>; write as many before the first question"),
        ({"images": [f"{n}/a.jpg" for n in range(5)]}, "has images in several folders"),
        ({"images": "a.jpg"}, "`images` is 'a.jpg'; write a list"),
        ({"images": [1] * 5}, r"`images\[0\]` is 1; write the path of an image"),
        ({"images": ["../a.jpg"] * 5}, "is outside of data.videos"),
    ],
)
def test_rows_that_are_none(tmp_path, change, fault):
    with pytest.raises(NsaLabError, match=fault):
        read_annotations(write_rows(tmp_path, released(tmp_path) | change), tmp_path)


def test_images_that_cannot_be_read_are_named_or_skipped(tmp_path, tokenizer):
    rows = write_rows(tmp_path, released(tmp_path))
    broken = tmp_path / "datasets/frames/1_2_m/v_0003.jpg"
    data = VideoDataset(read_annotations(rows, tmp_path), tokenizer, DataConfig())
    Image.new("RGB", (60, 30)).save(broken)
    with pytest.raises(BadSampleError, match=r"sample v: image .*v_0003.jpg has another size than .*v_0001.jpg"):
        data[0]
    for spoil in (lambda: broken.write_bytes(b"no image"), broken.unlink):
        spoil()
        with pytest.raises(BadSampleError, match=r"sample v: image .*v_0003.jpg cannot be read: .*extract the frames"):
            data[0]
    (tmp_path / "datasets/frames/1_2_m/v_0001.jpg").unlink()
    with pytest.raises(NsaLabError, match=r"v_0001\.jpg does not exist"):
        read_annotations(rows, tmp_path)


def test_names_that_are_numbered_take_a_line_and_others_their_names(tmp_path):
    names = [f"clip 7_{number:03d}.png" for number in range(9, 12)]
    assert FrameFiles.of(tmp_path, names).names == Numbered("clip 7_", 9, 3, ".png", 3)
    assert list(FrameFiles.of(tmp_path, names)) == [tmp_path / name for name in names]
    for other in (names[::-1], names[:1] + names[2:], ["a.png", "b.png"]):
        assert FrameFiles.of(tmp_path, other).names == tuple(other)
    assert hash(FrameFiles.of(tmp_path, names)) == hash(FrameFiles.of(tmp_path, list(names)))


def test_both_layouts_are_held_out_dropped_and_filtered_by_their_frames(tmp_path):
    long = released(tmp_path / "long", 8)
    long["images"] = [f"long/{name}" for name in long["images"]]
    rows = write_rows(tmp_path, released(tmp_path, 5), long)
    given = {"data.annotations": str(rows), "data.videos": str(tmp_path), "data.cache_dir": str(tmp_path / "cache")}
    given["data.val_annotations"] = str(rows)
    kept = load_samples(load_config(None, given | {"data.fewest_frames": 6}))["train"]
    assert [len(sample.video) for sample in kept] == [8]
    (tmp_path / "drop.jsonl").write_text(json.dumps({"video": long["images"][0]}))
    left = load_samples(load_config(None, given | {"data.drop": str(tmp_path / "drop.jsonl")}))["train"]
    assert [len(sample.video) for sample in left] == [5]
