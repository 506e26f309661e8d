"""The selection branch: token-level attention to the best blocks (NSA, section 3.3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.branches.base import Branch, mean
from nsa_lab.attention.budget import Cost
from nsa_lab.attention.choice import BlockRule, Rule, Scorer
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.groups import rows_that_fit
from nsa_lab.attention.inputs import BranchInputs
from nsa_lab.attention.select import RULES, SCORERS
from nsa_lab.errors import Problem
from nsa_lab.plugin import build, chosen, problems_of


class SelectionBranch(Branch):
    @chosen(scorer=SCORERS, rule=RULES)
    @dataclass
    class Config(Branch.Config):
        """The tokens of the best blocks; forced blocks count towards what the rule may take.

        `query_tile` neighbouring queries of a frame share one choice of blocks; above 1 the layer is causal frame by
        frame.
        """

        enabled: bool = True
        scorer: str = "compression"
        rule: str = "top_n"
        initial_blocks: int = 0
        local_blocks: int = 1
        query_tile: int = 1

        def most_forced(self, block_size: int) -> int:
            """Forced blocks of one choice at most: a tile's local blocks reach from its first query to its last."""
            spanned = -(-(self.query_tile - 1) // max(1, block_size)) if self.local_blocks else 0
            return self.initial_blocks + self.local_blocks + spanned

    scales = {"query_tile": "tile"}
    needs_pooling = True

    def __init__(self, config: Any, dims: HeadDims):
        super().__init__(config, dims)
        self.scorer: Scorer = build(config, "scorer", dims)
        rule: Rule = build(config, "rule")
        self.rule = BlockRule(rule, config.initial_blocks, config.local_blocks, config.query_tile)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        for name in ("initial_blocks", "local_blocks"):
            if getattr(config, name) < 0:
                yield Problem(name, f"{getattr(config, name)} is negative; use 0 or more")
        if config.query_tile < 1:
            yield Problem("query_tile", f"{config.query_tile} is not positive; 1 lets each query choose alone")
            return
        count, forced = config.block_count, config.initial_blocks + config.local_blocks
        most = config.most_forced(design.partition.block_size)
        if count < 1:
            yield Problem("block_count", f"{count} is not positive")
        elif count < forced:
            yield Problem(
                "block_count", f"{count} is less than the {forced} forced blocks (initial_blocks + local_blocks)"
            )
        elif count < most:
            yield Problem(
                "query_tile",
                f"{config.query_tile} queries can span {most - forced} more blocks than one, {most} forced blocks in "
                f"all, more than block_count={count}; lower query_tile or raise block_count",
            )
        yield from problems_of(config, "scorer", design)
        yield from problems_of(config, "rule", design)

    @classmethod
    def query_tile(cls, config: Any) -> int:
        return int(config.query_tile)

    @classmethod
    def attended(cls, config: Any, design: Any) -> int:
        return RULES[config.rule].attended(config, design)

    @classmethod
    def notices(cls, config: Any, design: Any, clip: str, tokens: int) -> Iterator[str]:
        blocks = -(-tokens // design.partition.block_size)
        if config.token_budget is not None and config.token_budget >= tokens:
            yield (
                f"attention.branches.selection.token_budget={config.token_budget} holds all {tokens} tokens of a"
                f" {clip} clip: selection reads every past token there"
            )
        elif config.token_budget is None and config.block_count > blocks:
            yield (
                f"attention.branches.selection.block_count={config.block_count} is more than the {blocks} blocks of a"
                f" {clip} clip ({tokens} tokens): selection reads every past token there"
            )

    def choose(self, inputs: BranchInputs) -> Tensor:
        """[Tq, G, block_count] int64: the blocks each (query, group) reads, -1 past the last one."""
        assert inputs.pooled_k is not None
        return inputs.ops.select_blocks(
            inputs.q,
            inputs.pooled_k,
            inputs.context,
            inputs.partition,
            scale=inputs.scale,
            scorer=self.scorer,
            rule=self.rule,
            x=inputs.x,
            block_bias=inputs.block_bias,
        )

    def forward(self, inputs: BranchInputs) -> Tensor:
        blocks = self.choose(inputs)
        self.record(inputs, blocks)
        return inputs.ops.selection(
            inputs.q, inputs.k, inputs.v, blocks, inputs.context, inputs.partition, scale=inputs.scale
        )

    def record(self, inputs: BranchInputs, blocks: Tensor | None) -> None:
        """Tell the trace which blocks are read (None: the backend does not say), and what the scorer learns from."""
        inputs.trace.record(inputs.layer, "choice", blocks)
        if self.training:
            inputs.trace.add_loss(inputs.layer, "scorer", self.scorer.loss(inputs))

    def cost(self, inputs: BranchInputs) -> Cost:
        counts = [(members >= 0).sum((2, 3)) for members in self._read(inputs)]
        samples = len(inputs.partition.cu_blocks) - 1
        # Half of its sample's blocks have ended at the average query; each is scored once.
        return Cost(keys=mean(torch.cat(counts)), scored=inputs.partition.num_blocks / samples / 2)

    def readers(self, inputs: BranchInputs) -> Tensor:
        tokens, groups = inputs.k.shape[:2]
        counts = torch.zeros(groups, tokens + 1, dtype=torch.int64, device=inputs.k.device)
        for members in self._read(inputs):
            keys = members.transpose(0, 1).flatten(1) + 1
            counts.scatter_add_(1, keys, torch.ones_like(keys))
        return counts[:, 1:].T

    def _read(self, inputs: BranchInputs) -> Iterator[Tensor]:
        """The keys that queries read, piece by piece [c, G, n, L] int64, -1 where a block holds none for the query."""
        partition, choice = inputs.partition, inputs.trace.found[inputs.layer, "choice"]
        row_bytes = 8 * choice[:1].numel() * partition.max_length
        pieces = (x.split(rows_that_fit(row_bytes)) for x in (choice, inputs.context.query_index))
        for blocks, own in zip(*pieces, strict=True):
            members = partition.members[blocks.clamp(min=0)]
            yield members.masked_fill((members > own[:, None, None, None]) | (blocks < 0)[..., None], -1)
