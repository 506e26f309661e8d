"""What a video query reads under a design, counted by the branches themselves: no branch is known here by name."""

import dataclasses
from typing import Any

import torch

from nsa_lab.attention.budget import Cost
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import Method
from nsa_lab.attention.methods.dense import Dense
from nsa_lab.attention.methods.nsa import NSA
from nsa_lab.attention.trace import Trace
from nsa_lab.layout import TokenLayout
from nsa_lab.model.partitions import LayerPartitions
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.partition import sparse_context
from nsa_lab.plugin import build

SAMPLED = 192
"""Queries of a video that stand for all, at equal distances; the mean over them is within 1% of that over all."""
SMALL = HeadDims(16, 1, 1, 16)


@torch.no_grad()
def branch_costs(design: Any, layer: int, layout: TokenLayout) -> dict[str, Cost]:
    """By branch what a video query of `layout` reads on average; of a method without branches, under its own name.

    One small head reads random tokens: what a choice of blocks or boundaries of a content-dependent partition would be
    on a real video is not known before the training.
    """
    torch.manual_seed(0)
    design = dataclasses.replace(design, backend="torch", layers={})
    method: Method = build(design, "method", design, SMALL, layer)
    if type(method).prefill is NSA.prefill:
        return _sampled(method, design, layout)
    plan = AttentionPlan(layout, (1, len(layout.rows)), Trace("cost", "choice"))
    if not isinstance(method, Dense):  # whose cost follows from the length
        q, k, v = (torch.randn(len(layout.rows), 1, SMALL.head_dim) for _ in range(3))
        x = torch.randn(len(layout.rows), SMALL.hidden_size)
        plan.begin(LayerPartitions([design], SMALL.hidden_size), x, (x, x))
        method.prefill(x, q, k, v, plan)
    return {design.method: method.cost(plan.trace, torch.tensor([len(layout.video_index)]))}


def _sampled(method: Any, design: Any, layout: TokenLayout) -> dict[str, Cost]:
    context = sparse_context(layout, method.config.context)
    picked = torch.linspace(0, len(context.query_index) - 1, min(SAMPLED, len(context.query_index))).long()
    few = dataclasses.replace(
        context, query_index=context.query_index[picked], query_cu_seqlens=torch.tensor([0, len(picked)])
    )
    keys = len(context.token_index)
    partitioner = LayerPartitions([design], SMALL.hidden_size).partitioner(0)
    features = torch.randn(keys, SMALL.hidden_size) if partitioner.needs_features else None
    x, q = torch.randn(len(picked), SMALL.hidden_size), torch.randn(len(picked), 1, SMALL.head_dim)
    k, v = (torch.randn(keys, 1, SMALL.head_dim) for _ in range(2))
    trace = Trace("cost", "choice")
    method.sparse(x, q, k, v, few, partitioner(context, features, method.layer), trace)
    found: dict[str, Cost] = trace.found[method.layer, "cost"]
    return found
