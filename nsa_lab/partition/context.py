"""Choose the keys of the sparse branches: the video tokens alone, or all tokens of the sample."""

from typing import Literal

import torch
from torch import Tensor

from nsa_lab.layout import TokenLayout, on_host
from nsa_lab.partition.base import Context
from nsa_lab.partition.segments import place_in_run


def sparse_context(layout: TokenLayout, kind: Literal["video", "all"]) -> Context:
    """The context of `layout`: its video tokens (`video`) or every token (`all`); queries are its own video tokens."""
    return on_host(lambda own: _sparse_context(own, kind), layout)


def _sparse_context(layout: TokenLayout, kind: Literal["video", "all"]) -> Context:
    queries = layout.tokens_of(layout.video_rows)
    if kind == "video":
        index = layout.video_index
        query_index = torch.searchsorted(index, queries)
    else:
        index = torch.arange(len(layout.rows), device=layout.rows.device)
        query_index = queries
    video, sample = layout.video[index], layout.sample[index]
    new_run = torch.ones_like(video, dtype=torch.bool)
    new_run[1:] = (video.diff() != 0) | (sample.diff() != 0)
    new_frame = new_run.clone()
    new_frame[1:] |= layout.frame[index].diff() != 0
    segment = new_run.cumsum(0) - 1
    return Context(
        token_index=index,
        query_index=query_index,
        cu_seqlens=_cumulative(sample, layout),
        query_cu_seqlens=_cumulative(layout.sample[queries], layout),
        segment=segment,
        frame=new_frame.cumsum(0) - 1,
        frame_grid=_frame_grids(layout)[video],
        cell=torch.where(video >= 0, layout.cell[index], place_in_run(segment)),
    )


def text_context(layout: TokenLayout) -> Context:
    """All tokens as keys, the own text tokens as queries: what dense attention of text rows sees."""
    return on_host(lambda own: _dense_context(own, own.tokens_of(own.text_rows)), layout)


def full_context(layout: TokenLayout) -> Context:
    """All tokens as keys, the own ones as queries."""
    return on_host(_full_context, layout)


def _full_context(layout: TokenLayout) -> Context:
    every = torch.arange(len(layout.rows), device=layout.rows.device)
    return _dense_context(layout, every if layout.own is None else layout.own)


def _dense_context(layout: TokenLayout, query_index: Tensor) -> Context:
    index = torch.arange(len(layout.rows), device=layout.rows.device)
    return Context(
        token_index=index,
        query_index=query_index,
        cu_seqlens=layout.cu_seqlens,
        query_cu_seqlens=_cumulative(layout.sample[query_index], layout),
        segment=layout.sample,
        frame=layout.sample,
        frame_grid=layout.grids.new_zeros((len(index), 2)),
        cell=place_in_run(layout.sample),
    )


def _frame_grids(layout: TokenLayout) -> Tensor:
    """[V + 1, 2]: rows and columns of a frame of each video; the last row (video -1, text) is zero."""
    return torch.cat([layout.grids[:, 1:], layout.grids.new_zeros((1, 2))])


def _cumulative(sample: Tensor, layout: TokenLayout) -> Tensor:
    counts = torch.bincount(sample, minlength=len(layout.cu_seqlens) - 1)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
