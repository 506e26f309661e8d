"""The selection branch: token-level attention to the best blocks (NSA, section 3.3.2)."""

from torch import Tensor

from nsa_lab.attention.branches.base import Branch, BranchInputs
from nsa_lab.attention.select import SCORERS, BlockRule
from nsa_lab.config.schema import SelectionConfig
from nsa_lab.partition import Context, Partition


class SelectionBranch(Branch):
    needs_pooling = True

    def __init__(self, config: SelectionConfig):
        super().__init__()
        self.scorer = SCORERS[config.scorer]
        self.rule = BlockRule(
            config.block_count,
            config.initial_blocks,
            config.local_blocks,
            config.rule,
            token_budget=config.token_budget,
            query_tile=config.query_tile,
        )

    def choose(self, inputs: BranchInputs) -> Tensor:
        """[Tq, G, block_count] int64: the blocks each (query, group) reads, -1 past the last one."""
        return inputs.ops.select_blocks(
            inputs.q,
            inputs.pooled_k,
            inputs.context,
            inputs.partition,
            scale=inputs.scale,
            scorer=self.scorer,
            rule=self.rule,
            block_bias=inputs.block_bias,
        )

    def forward(self, inputs: BranchInputs) -> Tensor:
        inputs.notes["blocks"] = blocks = self.choose(inputs)
        return inputs.ops.selection(
            inputs.q, inputs.k, inputs.v, blocks, inputs.context, inputs.partition, scale=inputs.scale
        )

    def keys_seen(self, context: Context, partition: Partition, notes: dict[str, Tensor]) -> Tensor:
        blocks = notes["blocks"]
        place = context.query_index[:, None, None]
        members = partition.members[blocks.clamp(min=0)]
        seen = (members >= 0) & (members <= place[..., None]) & (blocks >= 0)[..., None]
        return seen.sum((2, 3)).float()
