"""How much attention a design spends: exact counts, and the paper's figure.

A key read by two branches counts twice, as in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a query reads, the mean over queries and groups: keys token by token, pooled keys, keys scored alone."""

    keys: float = 0.0
    pooled: float = 0.0
    scored: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.keys + other.keys, self.pooled + other.pooled, self.scored + other.scored)

    def flops(self, num_heads: int, head_dim: int) -> float:
        """Forward FLOPs of one query: q.k and p.v over what is read, q.k alone over what is scored."""
        return num_heads * head_dim * (4 * (self.keys + self.pooled) + 2 * self.scored)


def mean_cost(found: Sequence[tuple[int, Cost]]) -> Cost:
    """The mean over queries of what so many of them read each; of no query, nothing."""
    total = max(1, sum(count for count, _ in found))
    parts = ("keys", "pooled", "scored")
    return Cost(*(sum(count * getattr(own, part) for count, own in found) / total for part in parts))


def paper_ratio(attended: int | None, length: int) -> float:
    """2K / (L - 1) over L video tokens, K = `attended`, the tokens a late query reads (VideoNSA, section 4); None: all.

    Compressed keys are not counted, and neither is the ramp at the start of the video, for which the formula would pass
    1 on videos below 2K + 1 tokens: there it is 1, as for dense attention. At L = 128,000, 64 x 32 blocks and a window
    of 256 give 3.600%.
    """
    return 1.0 if attended is None else min(1.0, 2 * attended / max(length - 1, 1))
