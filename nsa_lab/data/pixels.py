"""Frames to Qwen2.5-VL's pixel layout, in torch alone; equal to Hugging Face's Qwen2VLVideoProcessor."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.data.errors import BadSampleError
from nsa_lab.layout import FRAMES_AS, FRAMES_PER_PATCH, MERGE, PATCH, TOKEN_PIXELS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 200


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in whole tokens, near the given aspect and with an area within the two bounds, in pixels.

    Raises BadSampleError where one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BadSampleError(f"frames of {width}x{height} pixels are too narrow; crop them to 1:{MAX_ASPECT} or wider")
    tall, wide = (round(side / TOKEN_PIXELS) * TOKEN_PIXELS for side in (height, width))
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall, wide = (max(1, math.floor(side / shrink / TOKEN_PIXELS)) * TOKEN_PIXELS for side in (height, width))
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall, wide = (math.ceil(side * grow / TOKEN_PIXELS) * TOKEN_PIXELS for side in (height, width))
    return tall, wide


def resize(frames: Tensor, min_pixels: int, max_pixels: int) -> Tensor:
    """Frames [F, 3, H, W] uint8 resized by `smart_resize`, bicubic with antialiasing."""
    size = smart_resize(frames.shape[-2], frames.shape[-1], min_pixels, max_pixels)
    if size == tuple(frames.shape[-2:]):
        return frames
    # On uint8, as the Hugging Face processor does: resizing floats differs by up to 0.34 after normalisation.
    return F.interpolate(frames, size=size, mode="bicubic", antialias=True)


def vision_tokens(frames: int, height: int, width: int, frames_as: str) -> list[int]:
    """Tokens of each stretch in which so many frames of height x width pixels are shown: a video's, or each image's."""
    patches = -(-frames // FRAMES_AS[frames_as])
    tokens = (height // TOKEN_PIXELS) * (width // TOKEN_PIXELS)
    return [patches * tokens] if frames_as == "video" else [tokens] * patches


def laid_out(frames: Tensor, frames_as: str) -> tuple[Tensor, Tensor]:
    """pixel_values [P, 1176] of frames [F, 3, H, W] uint8, and the grids [V, 3] int64 of the video or of the images."""
    if frames_as == "video":
        pixels, grid = patchify(frames)
        return pixels, torch.tensor([grid])
    pixels, (count, height, width) = patchify(frames.repeat_interleave(FRAMES_PER_PATCH, 0))
    return pixels, torch.tensor([[1, height, width]]).repeat(count, 1)


def patchify(frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Patches of frames [F, 3, H, W] uint8, H and W multiples of 28; an odd last frame is shown twice.

    Returns pixel_values [P, 1176] float32, the four patches of a token in a row, and the grid (t, h, w) in patches.
    """
    if missing := -len(frames) % FRAMES_PER_PATCH:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    t, h, w = len(frames) // FRAMES_PER_PATCH, frames.shape[-2] // PATCH, frames.shape[-1] // PATCH
    patches = frames.view(t, FRAMES_PER_PATCH, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    # Bytes are moved before they become floats, which is four times less to move.
    pixels = patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, 3, -1).float()
    mean, std = (255 * torch.tensor(value).view(3, 1) for value in (CLIP_MEAN, CLIP_STD))
    return pixels.sub_(mean).div_(std).flatten(1), (t, h, w)
