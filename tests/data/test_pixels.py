import numpy as np
import pytest
import torch

from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.pixels import CLIP_MEAN, CLIP_STD, patchify, resize, smart_resize


def random_frames(count, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def patchify_by_loops(frames):
    """The layout written out: tokens in (t, y, x) order, their four patches, then channel, frame, row, column."""
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    count, _, height, width = frames.shape
    rows = []
    for t in range(0, count, 2):
        for token_y in range(0, height, 28):
            for token_x in range(0, width, 28):
                for y in (token_y, token_y + 14):
                    for x in (token_x, token_x + 14):
                        patch = frames[t : t + 2, :, y : y + 14, x : x + 14].transpose(1, 0, 2, 3) / 255.0
                        mean, std = (np.array(v).reshape(3, 1, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
                        rows.append(((patch - mean) / std).ravel())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("count", "height", "width"),
    [(1, 28, 28), (2, 56, 56), (3, 84, 56), (5, 168, 252), (4, 140, 336), (2, 224, 224)],
    ids=["one frame", "small", "odd count", "54 tokens", "60 tokens", "64 tokens"],
)
def test_layout(count, height, width):
    frames = random_frames(count, height, width)
    pixels, (t, h, w) = patchify(frames)
    assert (t, h, w) == ((count + 1) // 2, height // 14, width // 14)
    assert pixels.shape == (t * h * w, 1176)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels.numpy(), patchify_by_loops(frames.numpy()), atol=1e-6)


def test_equals_hugging_face_image_processor_on_a_still():
    """An image is two equal frames to Qwen, and its processor runs without torchvision."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    frame = random_frames(1, 112, 84)
    expected = Qwen2VLImageProcessorPil()(images=[frame[0].numpy()], do_resize=False, return_tensors="pt")
    pixels, grid = patchify(frame)
    assert expected["image_grid_thw"].tolist() == [list(grid)]
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("count", "height", "width"), [(2, 56, 56), (3, 120, 90), (4, 360, 640), (2, 50, 30), (5, 333, 217)]
)
def test_equals_hugging_face_video_processor(count, height, width):
    pytest.importorskip("torchvision", reason="the Hugging Face video processor needs torchvision")
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    processor = Qwen2VLVideoProcessor(size={"shortest_edge": 3136, "longest_edge": 50176}, cap_pixels_per_frame=False)
    frames = random_frames(count, height, width)
    expected = processor(videos=[frames], return_tensors="pt")
    pixels, grid = patchify(resize(frames, 3136, 50176))
    assert expected["video_grid_thw"].tolist() == [list(grid)]
    torch.testing.assert_close(pixels, expected["pixel_values_videos"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (224, 224, (224, 224)),
        (360, 640, (168, 280)),
        (720, 1280, (168, 280)),
        (10, 10, (28, 28)),
        (1000, 20, (1008, 28)),
        (57, 30, (56, 28)),
    ],
)
def test_smart_resize(height, width, expected):
    assert smart_resize(height, width, min_pixels=784, max_pixels=50176) == expected


def test_smart_resize_equals_hugging_face():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as hugging_face

    for height in range(20, 900, 37):
        for width in range(20, 900, 41):
            assert smart_resize(height, width, 3136, 50176) == hugging_face(height, width, 28, 3136, 50176)


def test_too_narrow():
    with pytest.raises(BadSampleError, match="too narrow; crop"):
        smart_resize(2001, 10, 784, 50176)


def test_resize_leaves_a_fitting_size_alone():
    frames = random_frames(2, 56, 84)
    assert torch.equal(resize(frames, 784, 50176), frames)
    assert resize(random_frames(2, 100, 100), 784, 50176).shape == (2, 3, 112, 112)
