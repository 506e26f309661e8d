"""What the partition pictures show, as plain arrays: the block of every token, frame by frame, and a query's choice."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.analysis.look import LayerLook
from nsa_lab.data import Sample
from nsa_lab.layout import FRAMES_PER_PATCH, TOKEN_PIXELS

MAX_NAME = 40


@dataclass(frozen=True)
class Video:
    """One sample's video in F frames (temporal patches) of h x w tokens.

    images: [F, H, W, 3] uint8, the first picture of each temporal patch. seconds: [F + 1] float, when each begins and,
    last, when the video ends. similarity: [F - 1] float, cosine of the mean embeddings of neighbouring frames.
    cuts: seconds at which the content is known to change, None where nobody knows.
    """

    name: str
    images: np.ndarray
    seconds: np.ndarray
    grid: tuple[int, int, int]
    similarity: np.ndarray
    cuts: tuple[float, ...] | None

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[1] * self.grid[2]

    def place(self, token: int) -> tuple[int, int, int]:
        """Frame, row and column of a video token."""
        t, h, w = np.unravel_index(token, self.grid)
        return int(t), int(h), int(w)

    def time(self, token: np.ndarray) -> np.ndarray:
        """Seconds at which each video token stands: a frame's tokens are spread evenly over its duration."""
        return np.interp(token / self.tokens_per_frame, np.arange(len(self.seconds)), self.seconds)


@dataclass(frozen=True)
class Blocks:
    """A partition laid over a video. Blocks that hold text are left out, the others are numbered by their first token.

    of_token: [F, h, w] int64. lengths: [N] int64, tokens per block. first, last: [N] int64, first and last video token.
    number: [N] int64, the block's number in the partition.
    """

    of_token: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    last: np.ndarray
    number: np.ndarray

    @property
    def ordered(self) -> bool:
        """Whether every block is one run of tokens."""
        return bool((self.last - self.first + 1 == self.lengths).all())


@dataclass(frozen=True)
class Choice:
    """One query's view of the blocks of a layer.

    weight: [N] float, the compression probability of each block, the mean over heads; they add up to 1 over the
    blocks (text included) that are complete at the query, and are NaN for the others.
    groups: [N] int64, how many of the `num_groups` key/value groups attend the block token by token; None without a
    selection branch.
    """

    query: int
    weight: np.ndarray
    groups: np.ndarray | None
    num_groups: int


def make_video(
    sample: Sample,
    images: Tensor,
    seconds: Tensor,
    embeddings: Tensor,
    tasks_fps: float | None,
    per_token: int = FRAMES_PER_PATCH,
) -> Video:
    """The video of `sample`, `images` [n, 3, H, W] uint8 at `seconds` [n], H and W whole tokens, of `per_token` frames.

    embeddings [V, hidden] are the video tokens' as they enter the decoder.
    """
    first = images[::per_token]
    times = seconds[::per_token].numpy()
    step = float(seconds.diff().mean()) if len(seconds) > 1 else 1.0
    height, width = (side // TOKEN_PIXELS for side in images.shape[-2:])
    return Video(
        name=sample.id if len(sample.id) <= MAX_NAME else f"...{sample.id[-MAX_NAME:]}",
        images=first.permute(0, 2, 3, 1).numpy(),
        seconds=np.append(times, float(seconds[-1]) + step),
        grid=(len(first), height, width),
        similarity=frame_similarity(embeddings, len(first)),
        cuts=known_cuts(sample, tasks_fps),
    )


def frame_similarity(embeddings: Tensor, frames: int) -> np.ndarray:
    """[F - 1] float32: cosine similarity of the mean embeddings [V, hidden] of each frame and the one before."""
    means = embeddings.unflatten(0, (frames, -1)).mean(1)
    return F.cosine_similarity(means[:-1], means[1:]).numpy()


def known_cuts(sample: Sample, tasks_fps: float | None) -> tuple[float, ...] | None:
    """Seconds at which the content changes: `meta.cuts` of an annotation; in a task's clip its events and scenes.

    `tasks_fps` is the rate of the tasks' clips, in whose frames these count; None for the user's own videos.
    """
    cuts = sample.meta.get("cuts")
    if isinstance(cuts, list) and all(isinstance(second, int | float) for second in cuts):
        return tuple(sorted(float(second) for second in cuts))
    if tasks_fps is None:
        return None
    parts = [*sample.meta.get("events", ()), *sample.meta.get("scenes", ())]
    ends = {frame for part in parts for frame in (part["start"], part["start"] + part["frames"])}
    return tuple(frame / tasks_fps for frame in sorted(ends - {0}))


def make_blocks(seen: LayerLook, grid: tuple[int, int, int]) -> Blocks:
    """The partition of one layer over a video of `grid` (F, h, w) tokens."""
    of_token = seen.partition.block_id[seen.context.query_index].numpy()
    number, first, inverse = np.unique(of_token, return_index=True, return_inverse=True)
    order = np.argsort(first)
    renumbered = np.argsort(order)[inverse]
    last = np.zeros_like(first)
    np.maximum.at(last, renumbered, np.arange(len(of_token)))
    return Blocks(
        of_token=renumbered.reshape(grid),
        lengths=np.bincount(renumbered),
        first=first[order],
        last=last,
        number=number[order],
    )


def make_choice(seen: LayerLook, blocks: Blocks, query: int) -> Choice | None:
    """What video token `query` took from the layer's blocks; None where the layer neither pools nor selects blocks."""
    if seen.scores is None:
        return None
    weight = seen.scores.mean(0).double().numpy()[blocks.number]
    closed = seen.partition.block_end <= seen.context.query_index[query]
    weight = np.where(closed.numpy()[blocks.number], weight, np.nan)
    groups = None
    if seen.chosen is not None:
        taken = torch.zeros(len(seen.chosen), seen.partition.num_blocks + 1, dtype=torch.int64)
        taken.scatter_(1, seen.chosen + 1, 1)
        groups = taken[:, 1:].sum(0).numpy()[blocks.number]
    return Choice(query, weight, groups, len(seen.scores))


def edges(cells: np.ndarray, inset: float = 0.0) -> list[tuple[int, tuple[float, float], tuple[float, float]]]:
    """The outline of every block inside one frame: (block, (x, y), (x, y)) segments along the sides of tokens.

    cells: [h, w], the block of each token; x runs over columns, y downwards over rows. A side between two blocks gives
    two segments, one for each of them, which run `inset` tokens inside their block so that both show; the frame's own
    border belongs to the block inside.
    """
    padded = np.pad(cells, 1, constant_values=OUTSIDE)
    segments = []
    for row, column in np.ndindex(cells.shape):
        block, centre = int(cells[row, column]), np.array([row + 1, column + 1])
        for out in (np.array(side) for side in SIDES):
            if padded[tuple(centre + out)] == block:
                continue
            along = np.abs(out[::-1])
            ends = [_end(padded, centre, out, sign * along, inset) for sign in (-1, 1)]
            (y0, x0), (y1, x1) = ((float(a), float(b)) for a, b in ends)
            segments.append((block, (x0, y0), (x1, y1)))
    return segments


OUTSIDE = -9
SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def _end(padded: np.ndarray, centre: np.ndarray, out: np.ndarray, along: np.ndarray, inset: float) -> np.ndarray:
    """(y, x) where the side `out` of a token ends in direction `along`: at a corner it meets the block's next side."""
    block = padded[tuple(centre)]
    beside, diagonal = padded[tuple(centre + along)], padded[tuple(centre + along + out)]
    reach = 0.5 - inset if beside != block else 0.5 + inset * (diagonal == block)
    return centre - 0.5 + out * (0.5 - inset) + along * reach
