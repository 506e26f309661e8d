from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.pixels import resize
from nsa_lab.data.video import _sample, read_clip
from nsa_lab.tasks.encode import write_video

TOLERANCE = 4  # of 255, after H.264


def brightness(clip):
    return clip.frames.float().mean((1, 2, 3))


def test_all_frames_at_the_videos_own_rate(make_video):
    clip = read_clip(make_video(frames=8, width=84, height=56), fps=2.0, max_frames=768)
    assert clip.frames.shape == (8, 3, 56, 84)
    assert clip.frames.dtype == torch.uint8
    assert clip.seconds.tolist() == [number / 2 for number in range(8)]
    assert (brightness(clip) - 10 * torch.arange(8)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("rate", "fps", "chosen"),
    [
        (4.0, 2.0, [0, 2, 4, 6, 8]),
        (2.0, 10.0, list(range(9))),  # none twice
        (3.0, 2.0, [0, 1, 3, 4, 6, 7]),  # the frame at or before each tick
        (30.0, 30.0, list(range(9))),
        (30.0, 1.0, [0]),
        (29.97, 29.97, list(range(9))),
    ],
)
def test_sampling(make_video, rate, fps, chosen):
    clip = read_clip(make_video(frames=9, fps=rate), fps, max_frames=768)
    assert torch.allclose(clip.seconds, torch.tensor(chosen, dtype=torch.float64) / rate, atol=1e-4)
    assert (brightness(clip) - 10 * torch.tensor(chosen)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("max_frames", "expected"), [(4, [0, 3, 6, 9]), (5, [0, 3, 6, 9]), (2, [0, 9]), (1, [0])])
def test_cap_is_even_and_spread(make_video, max_frames, expected):
    clip = read_clip(make_video(frames=10), fps=2.0, max_frames=max_frames)
    assert (2 * clip.seconds).tolist() == expected


def test_one_frame(make_video):
    clip = read_clip(make_video(frames=1), fps=2.0, max_frames=768)
    assert clip.frames.shape == (1, 3, 56, 56)


def write_at(path, times_ms, codec="libx264"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((56, 56, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_keeps_true_times(tmp_path, suffix):
    path = tmp_path / f"vfr.{suffix}"
    write_at(path, [0, 40, 80, 900, 1000, 4000])
    clip = read_clip(path, fps=2.0, max_frames=768)
    assert clip.seconds.tolist() == pytest.approx([0, 0.08, 1.0, 4.0], abs=1e-3)
    assert (brightness(clip) - torch.tensor([0, 20, 40, 50])).abs().max() < TOLERANCE


def test_rounded_timestamps_do_not_lose_frames(tmp_path):
    path = tmp_path / "thirds.mkv"  # stores milliseconds: 0, 333, 667, 1000, ...
    write_at(path, [round(number * 1000 / 3) for number in range(12)])
    assert len(read_clip(path, fps=3.0, max_frames=768).frames) == 12


def test_transform_equals_resizing_afterwards(make_video):
    path = make_video(width=112, height=84)
    whole = read_clip(path, 2.0, 768).frames
    clip = read_clip(path, 2.0, 768, lambda frames: resize(frames, 784, 56 * 56))
    assert torch.equal(clip.frames, resize(whole, 784, 56 * 56))


def test_repeatable(make_video):
    path = make_video()
    assert torch.equal(read_clip(path, 2.0, 4).frames, read_clip(path, 2.0, 4).frames)


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def truncated(path):
    write_at(path, range(0, 1000, 40))
    path.write_bytes(path.read_bytes()[:-600])


def truncated_with_index(path):
    write_at(path.with_suffix(".whole.mp4"), range(0, 1000, 40))
    with (
        av.open(str(path.with_suffix(".whole.mp4"))) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes()[:-600])


def damaged(path):
    noise = np.random.default_rng(0).integers(0, 255, (10, 112, 112, 3), dtype=np.uint8)
    write_video(path, noise, fps=30.0)
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[5]
    data = bytearray(path.read_bytes())
    middle = packet.pos + packet.size // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: path.touch(), "cannot be read"),
        (lambda path: path.write_text("not a video"), "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: None, "cannot be read: No such file"),
        (audio_only, "no video stream"),
        (no_frames, "video"),
        (truncated, "cannot be read"),
        (damaged, "damaged at"),
        (truncated_with_index, r"was cut off: 177\d of 237\d bytes are there"),
    ],
    ids=["empty", "text", "folder", "absent", "audio", "no frames", "truncated", "damaged", "truncated with index"],
)
def test_bad_videos(tmp_path, spoil, fault):
    path = tmp_path / "bad.mp4"
    spoil(path)
    with pytest.raises(BadSampleError, match=fault) as error:
        read_clip(path, fps=30.0, max_frames=768)
    assert "bad.mp4" in str(error.value)
    assert ";" in str(error.value), "no remedy"
    assert "\n" not in str(error.value)


def test_damage_before_a_frame_asked_for(tmp_path):
    damaged(tmp_path / "bad.mp4")
    with pytest.raises(BadSampleError, match="damaged at"):
        read_clip(tmp_path / "bad.mp4", fps=30.0, max_frames=2)


def test_ticks_are_those_of_a_list_of_all_ticks():
    random = np.random.default_rng(0)
    for _ in range(200):
        unit = random.choice([1 / 30, 1 / 90000, 1 / 1000, 0.01])
        seconds = (
            np.unique(random.integers(0, random.choice([50, 5000]), random.integers(1, 60))) * unit + random.random()
        )
        fps, tolerance = random.choice([0.5, 1.0, 2.0, 3.0, 29.97, 30.0]), 0.51 * unit
        ticks = np.arange(int((seconds[-1] - seconds[0] + tolerance) * fps) + 1) / fps + seconds[0]
        expected = np.unique(np.searchsorted(seconds, ticks + tolerance, side="right") - 1)
        assert np.array_equal(_sample(seconds, fps, 10**6, tolerance), expected)
