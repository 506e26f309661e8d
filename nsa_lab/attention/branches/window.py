"""The sliding-window branch: attention to the last tokens, the query's own included (NSA, section 3.3.3)."""

from torch import Tensor

from nsa_lab.attention.branches.base import Branch, BranchInputs
from nsa_lab.config.schema import WindowConfig
from nsa_lab.partition import Context, Partition


class WindowBranch(Branch):
    def __init__(self, config: WindowConfig):
        super().__init__()
        self.size = config.size

    def forward(self, inputs: BranchInputs) -> Tensor:
        return inputs.ops.window(inputs.q, inputs.k, inputs.v, inputs.context, size=self.size, scale=inputs.scale)

    def keys_seen(self, context: Context, partition: Partition, notes: dict[str, Tensor]) -> Tensor:
        seen = (context.query_index - context.sample_start + 1).clamp(max=self.size)
        return seen.float()[:, None]
