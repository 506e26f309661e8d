"""What the end of a question reads of a video, and the tokens that it reads most."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.methods.last_rows import best
from nsa_lab.baselines.reducer import AskedHeads, count_of
from nsa_lab.layout import TokenLayout

Seen = Callable[[Tensor, int], Tensor]
"""(places [n], the asking token's place), packed, to [n] bool: which of a sample's tokens are weighed."""


def attention_of_question(heads: AskedHeads, plan: Any, seen: Seen) -> Tensor:
    """[T]: the attention of the last token of each sample's question to what is seen of it, the mean over query heads.

    In float32 or wider. Tokens after it, and all others unseen, get 0; the token itself, should it be video, infinity.
    """
    wide = torch.promote_types(heads.q.dtype, torch.float32)
    repeat, scale = heads.q.shape[1] // heads.k.shape[1], heads.q.shape[2] ** -0.5
    score = heads.k.new_zeros(len(heads.k), dtype=wide)
    places = torch.arange(len(heads.k), device=heads.k.device)
    with torch.no_grad(), torch.autocast(heads.q.device.type, enabled=False):
        for sample, ((begin, end), asking) in enumerate(
            zip(pairwise(plan.layout.cu_seqlens.tolist()), plan.asked.tolist(), strict=True)
        ):
            own = places[begin : min(end, asking + 1)]
            own = own[seen(own, asking)]
            keys = heads.k[own].to(wide).repeat_interleave(repeat, 1)
            weights = (torch.einsum("hd,nhd->hn", heads.q[sample].to(wide), keys) * scale).softmax(-1)
            score[own] = weights.mean(0)
    score[plan.asked] = torch.inf
    return score


def strongest(layout: TokenLayout, score: Tensor, share: float) -> Tensor:
    """[n] int64, ascending: the text tokens, and of each sample's video tokens the share with the highest score [T].

    Of equal ones the earlier; `count_of` says how many.
    """
    kept = ~layout.is_video
    for begin, end in pairwise(layout.cu_seqlens.tolist()):
        video = layout.is_video[begin:end].nonzero().flatten() + begin
        number = torch.tensor([count_of(share, len(video))], device=video.device)
        kept[video] = best(score[video][None], number)[0]
    return kept.nonzero().flatten()
