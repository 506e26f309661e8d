import av
import numpy as np
import pytest
import torch

from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.orientation import Orientation
from nsa_lab.data.pixels import resize
from nsa_lab.data.video import read_clip
from nsa_lab.tasks.encode import write_video
from nsa_videos import set_display_matrix

WIDTH, HEIGHT = 96, 64
# (a, b, c, d): (x, y) is shown at (a x + c y, b x + d y). Where a bright top left corner is shown.
SHOWN = {
    "upright": ((1, 0, 0, 1), "top left"),
    "turned by 90": ((0, 1, -1, 0), "top right"),
    "turned by 180": ((-1, 0, 0, -1), "bottom right"),
    "turned by 270": ((0, -1, 1, 0), "bottom left"),
    "mirrored": ((-1, 0, 0, 1), "top right"),
    "upside down": ((1, 0, 0, -1), "bottom left"),
    "mirrored and turned by 90": ((0, 1, 1, 0), "top left"),
    "mirrored and turned by 270": ((0, -1, -1, 0), "bottom right"),
}


@pytest.fixture
def video(tmp_path):
    """Black frames with a bright top left quarter that is wider than high, so that all eight ways differ."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 4, : WIDTH // 2] = 255
    path = tmp_path / "phone.mp4"
    write_video(path, [image] * 4, 2.0)
    return path


def stored():
    image = torch.zeros(HEIGHT, WIDTH)
    image[: HEIGHT // 4, : WIDTH // 2] = 255
    return image


def expected(matrix):
    """Every stored point put where the matrix says."""
    a, b, c, d = matrix
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    shown = torch.zeros(int(row.max()) + 1, int(column.max()) + 1)
    shown[row, column] = stored()
    return shown


def brightest(image):
    half = [image[: len(image) // 2], image[len(image) // 2 :]]
    parts = {
        f"{row} {column}": part
        for row, rows in zip(("top", "bottom"), half, strict=True)
        for column, part in zip(("left", "right"), rows.chunk(2, dim=1), strict=True)
    }
    return max(parts, key=lambda name: float(parts[name].mean()))


@pytest.mark.parametrize("name", SHOWN)
def test_frames_are_turned_and_mirrored_as_the_file_asks(video, name):
    matrix, corner = SHOWN[name]
    frames = read_clip(set_display_matrix(video, matrix), 2.0, 4).frames
    image = frames[0].float().mean(0)
    assert (image - expected(matrix)).abs().mean() < 4
    assert brightest(image) == corner


def test_turned_before_it_is_resized(video):
    path = set_display_matrix(video, SHOWN["turned by 90"][0])
    sizes = []
    read_clip(path, 2.0, 4, lambda frames: sizes.append(tuple(frames.shape)) or resize(frames, 784, 56 * 56))
    assert set(sizes) == {(1, 3, WIDTH, HEIGHT)}


def test_a_matrix_that_mkv_keeps(video, tmp_path):
    set_display_matrix(video, SHOWN["turned by 90"][0])
    path = tmp_path / "phone.mkv"
    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(path)) as container:
        turned = next(container.decode(video=0)).rotation
    shape = read_clip(path, 2.0, 4).frames.shape
    assert tuple(shape[-2:]) == ((WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH))


def test_no_quarter_turn_is_refused(video):
    with pytest.raises(BadSampleError, match=r"phone\.mp4 is to be shown turned by something else.*; re-encode"):
        read_clip(set_display_matrix(video, (0.7, 0.7, -0.7, 0.7)), 2.0, 4)


def test_scaled_and_empty_matrices_turn_nothing(video):
    for matrix in ((2, 0, 0, 2), (0, 0, 0, 0)):
        assert read_clip(set_display_matrix(video, matrix), 2.0, 4).frames.shape[-2:] == (HEIGHT, WIDTH)


def test_upright_is_not_copied():
    image = torch.zeros(1, 3, 4, 6)
    assert Orientation().apply(image) is image
