"""Blocks that follow the content: long where the picture stands still, short where it changes."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from nsa_lab.partition.base import Causality, Context, Partition
from nsa_lab.partition.novelty import Averaged, Segment, budget_lengths, partition_of_lengths, segments_of


class Scene(Averaged):
    """Whole frames, cut by an online novelty budget (see `novelty.budget_lengths`), `block_size` tokens on average."""

    causality: ClassVar[Causality] = "frame"
    prefix_consistent = True
    needs_features = True

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        assert features is not None
        segments = segments_of(context, features, self.config.block_size)
        return partition_of_lengths(self.lengths(segments), context, self.causality)

    def lengths(self, segments: Sequence[Segment]) -> list[int]:
        """Tokens of each block, segment by segment."""
        return [n for segment in segments for n in budget_lengths(segment, self.config)]
