"""What a sample's last rows attend to: the evidence from which MInference and FlexPrefill choose for all rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nsa_lab.attention.groups import rows_that_fit
from nsa_lab.attention.methods.products import wide, wide_product


def last_rows_mass(q: Tensor, k: Tensor, last: int, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention of the `last` rows of one sample, summed over them: by key, and by distance from row to key.

    q [T, H, D] and k [T, G, D] to [H, T] twice; of fewer rows all.
    """
    count, heads = q.shape[:2]
    keys = k.repeat_interleave(heads // k.shape[1], 1).permute(1, 2, 0)
    vertical, slash = torch.zeros(2, heads, count, dtype=wide(q.dtype), device=q.device)
    place = torch.arange(count, device=q.device)
    for rows in place[-last:].split(rows_that_fit(16 * heads * count)):
        distance = rows[:, None] - place
        logits = wide_product(q[rows].transpose(0, 1), keys) * scale
        weights = logits.masked_fill(distance < 0, -torch.inf).softmax(-1)
        vertical += weights.sum(1)
        # Later keys weigh nothing, wherever they are added.
        slash.scatter_add_(1, distance.clamp(min=0).flatten().expand(heads, -1), weights.flatten(1))
    return vertical, slash


def scored_by_last_rows(count: int, last: int) -> float:
    """Keys that `last` rows of a sample of `count` tokens score, the mean over all its rows."""
    rows = min(last, count)
    return rows * (count - (rows - 1) / 2) / max(1, count)


def best(scores: Tensor, number: Tensor) -> Tensor:
    """[H, n] bool: the `number` [H] highest of scores [H, n]; of equal ones the earlier."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    wanted = torch.arange(scores.shape[1], device=scores.device) < number[:, None]
    return torch.zeros_like(wanted).scatter(1, order, wanted)


def answer_notice(last: int, clip: str) -> Iterator[str]:
    """That what is chosen depends on a sample's end."""
    yield (
        f"the last {last} tokens of a {clip} sample choose what all its rows read, its answer among them where it is"
        " given, as in training and validation; `ask` and generation give the question alone"
    )
