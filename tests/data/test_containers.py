import os
import resource
from fractions import Fraction

import av
import pytest
import torch

from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.extent import told_bytes
from nsa_lab.data.video import read_clip
from nsa_videos import CONTAINERS, FRAMES, frame_numbers, set_mkv_seconds, write

MILLISECOND = Fraction(1, 1000)
COARSE = {
    "clip.gif": 0.011,
    "clip.wmv": 0.002,
    "clip.mkv": 0.002,
    "clip.webm": 0.002,
    "old.webm": 0.002,
    "clip.flv": 0.002,
}


def every_frame(path):
    return read_clip(path, fps=3000.0, max_frames=2 * FRAMES)


@pytest.mark.parametrize("name", CONTAINERS)
def test_frames_come_in_the_order_shown_at_their_times(tmp_path, name):
    codec, options = CONTAINERS[name]
    clip = every_frame(write(tmp_path / name, codec, options))
    numbers = frame_numbers(clip.frames)
    if name == "clip.gif":  # 8 bits a pixel: 8 steps of brightness, hundredths of seconds
        assert numbers == sorted(numbers)
    else:
        assert numbers == list(range(FRAMES))
        expected = torch.arange(FRAMES, dtype=torch.float64) / 30
        assert (clip.seconds - clip.seconds[0] - expected).abs().max() < COARSE.get(name, 1e-4)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "dvd.mpeg", "clip.wmv"])
def test_sampled_frames_are_those_shown_at_the_ticks(tmp_path, name):
    codec, options = CONTAINERS[name]
    clip = read_clip(write(tmp_path / name, codec, options), fps=10.0, max_frames=8)
    assert frame_numbers(clip.frames) == [0, 6, 12, 18, 21, 27, 33, 39]


@pytest.mark.parametrize("name", ["clip.mkv", "first.mp4", "clip.avi", "xvid.avi", "clip.webm", "clip.mov"])
def test_a_file_that_was_cut_is_refused_wherever_it_was(tmp_path, name):
    path = tmp_path / name
    codec, codec_options = CONTAINERS.get(name, ("libx264", {}))
    write(path, codec, codec_options, options={"movflags": "faststart"} if name == "first.mp4" else {}, noise=True)
    assert len(every_frame(path).frames) == FRAMES
    content = path.read_bytes()
    for percent in (3, 10, 35, 50, 65, 80, 90, 97):
        path.write_bytes(content[: len(content) * percent // 100])
        with pytest.raises(BadSampleError, match=r"was cut off|cannot be read|no video stream"):
            every_frame(path)


@pytest.mark.parametrize("name", ["clip.ts", "tv.ts", "dvd.mpeg", "live.webm"])
def test_a_cut_file_without_a_told_end_is_refused_or_read_at_true_times(tmp_path, name):
    path = tmp_path / name
    codec, codec_options = CONTAINERS.get(name, CONTAINERS["clip.webm"])
    write(path, codec, codec_options | {"g": "10"}, options={"live": "1"} if name == "live.webm" else {})
    content = path.read_bytes()
    for percent in (20, 45, 70, 95):
        path.write_bytes(content[: len(content) * percent // 100])
        try:
            clip = every_frame(path)
        except BadSampleError:
            continue
        numbers = frame_numbers(clip.frames)
        assert numbers == sorted(set(numbers)) and numbers[0] == 0
        assert (clip.seconds - clip.seconds[0] - torch.tensor(numbers) / 30).abs().max() < 0.002


def test_a_broadcast_that_begins_in_the_middle(tmp_path):
    path = write(tmp_path / "clip.ts", codec_options={"g": "10", "sc_threshold": "0"})
    content = path.read_bytes()
    path.write_bytes(content[188 * (len(content) // 188 // 2) :])
    clip = every_frame(path)
    numbers = frame_numbers(clip.frames)
    assert numbers == list(range(numbers[0], FRAMES)) and numbers[0] > 0
    assert clip.seconds.diff().tolist() == pytest.approx([1 / 30] * (len(numbers) - 1), abs=1e-4)


@pytest.mark.parametrize("over", [1.02, 1.05, 1.08])
def test_a_duration_a_little_over_the_frames_is_fine(tmp_path, over):
    path = set_mkv_seconds(write(tmp_path / "clip.mkv"), over * FRAMES / 30)
    assert len(every_frame(path).frames) == FRAMES


@pytest.mark.parametrize("over", [1.3, 2.0])
def test_a_file_whose_frames_end_long_before_its_header_says(tmp_path, over):
    path = set_mkv_seconds(write(tmp_path / "clip.mkv"), over * FRAMES / 30)
    with pytest.raises(BadSampleError, match=r"ends early: at 1\.33 s of the .* s that its header tells; re-encode"):
        every_frame(path)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi", "ts"])
@pytest.mark.parametrize("audio_s", [1.0, 3.0])
def test_sound_may_be_shorter_or_longer(tmp_path, suffix, audio_s):
    clip = every_frame(write(tmp_path / f"clip.{suffix}", audio_s=audio_s))
    assert frame_numbers(clip.frames) == list(range(FRAMES))


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "webm"])
def test_a_video_that_starts_late(tmp_path, suffix):
    codec, options = CONTAINERS[f"clip.{suffix}"]
    clip = every_frame(write(tmp_path / f"clip.{suffix}", codec, options, times=range(150, 150 + FRAMES), audio_s=0))
    assert frame_numbers(clip.frames) == list(range(FRAMES))
    assert float(clip.seconds[0]) == pytest.approx(6.4 if suffix == "ts" else 5.0, abs=1.5)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "avi"])
@pytest.mark.parametrize("jump_s", [5_000, 2_000_000])
def test_memory_does_not_follow_a_time_that_jumps(tmp_path, suffix, jump_s):
    times = [*range(0, 1000, 40), *range(1000 * jump_s, 1000 * jump_s + 1000, 40)]
    try:
        path = write(tmp_path / f"jump.{suffix}", times=times, time_base=MILLISECOND)
    except (av.FFmpegError, OSError):
        pytest.skip(f"{suffix} cannot hold such a time")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert len(read_clip(path, fps=1e6, max_frames=64).frames) <= 64
    except BadSampleError as error:
        assert "jump by" in str(error) or "go back" in str(error) or "ends early" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"


def test_a_jump_names_its_place(tmp_path):
    path = write(tmp_path / "jump.mkv", times=[0, 40, 80, 9_000_080], time_base=MILLISECOND)
    with pytest.raises(BadSampleError, match=r"the times of video .*jump\.mkv jump by 9000 s after 0\.08 s; re-encode"):
        every_frame(path)


def test_times_that_start_anew(tmp_path):
    starts = {"late": 90, "early": 0}
    one, two = (
        write(tmp_path / f"{name}.ts", times=range(at, at + FRAMES)).read_bytes() for name, at in starts.items()
    )
    path = tmp_path / "both.ts"
    path.write_bytes(one + two)
    with pytest.raises(BadSampleError, match=r"both\.ts (go back|is damaged).*; re-encode"):
        every_frame(path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.webm", "clip.gif", "clip.ts"])
def test_one_frame(tmp_path, name):
    codec, options = CONTAINERS[name]
    clip = every_frame(write(tmp_path / name, codec, options, times=[0]))
    assert clip.frames.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.mp4", "libx264", "yuv444p"),
        ("b.mkv", "ffv1", "yuv420p"),
    ],
)
def test_odd_sizes(tmp_path, name, codec, pixels):
    clip = every_frame(write(tmp_path / name, codec, size=(63, 47), pixels=pixels, times=range(4)))
    assert clip.frames.shape == (4, 3, 47, 63)


def test_ten_bits(tmp_path):
    clip = every_frame(write(tmp_path / "deep.mp4", *CONTAINERS["hevc.mp4"], pixels="yuv420p10le"))
    assert clip.frames.dtype == torch.uint8
    assert frame_numbers(clip.frames) == list(range(FRAMES))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_variable_rate(tmp_path, suffix):
    codec, options = CONTAINERS[f"clip.{suffix}"]
    times = [0, 40, 80, 900, 1000, 60_000, 60_040]
    clip = read_clip(write(tmp_path / f"v.{suffix}", codec, options, times=times, time_base=MILLISECOND), 1.0, 64)
    assert frame_numbers(clip.frames) == [0, 4, 5]
    assert clip.seconds.tolist() == pytest.approx([0.0, 1.0, 60.0], abs=2e-3)


def test_a_webm_without_a_duration(tmp_path):
    path = write(tmp_path / "live.webm", *CONTAINERS["clip.webm"], options={"live": "1"})
    assert told_bytes(path) is None
    assert frame_numbers(every_frame(path).frames) == list(range(FRAMES))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.avi", "clip.webm"])
def test_told_bytes_of_a_whole_file(tmp_path, name):
    path = write(tmp_path / name, *CONTAINERS[name])
    assert told_bytes(path) == os.path.getsize(path)
    with open(path, "ab") as file:
        file.write(b"appended by someone")
    assert len(every_frame(path).frames) == FRAMES


def test_a_still_picture_with_sound(tmp_path):
    assert len(every_frame(write(tmp_path / "still.mkv", times=[0], audio_s=3.0)).frames) == 1


@pytest.mark.parametrize("name", ["clip.mkv", "first.mp4", "clip.avi", "clip.webm"])
def test_a_download_that_fills_the_rest_with_zeros(tmp_path, name):
    path = tmp_path / name
    codec, codec_options = CONTAINERS.get(name, ("libx264", {}))
    write(path, codec, codec_options, options={"movflags": "faststart"} if name == "first.mp4" else {}, noise=True)
    content = path.read_bytes()
    for percent in (30, 50, 80):
        held = len(content) * percent // 100
        path.write_bytes(content[:held] + bytes(len(content) - held))
        with pytest.raises(BadSampleError, match=r"ends early|damaged|cannot be read"):
            every_frame(path)


def test_tags_that_are_no_utf8(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Le cafe"
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"Le cafe", b"Le caf\xe9"))
    assert len(every_frame(path).frames) == 1
