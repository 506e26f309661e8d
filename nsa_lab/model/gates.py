"""A gate's columns by branch, so that weights go on where a design has other branches than they were trained with."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nsa_lab.attention.gates import Gate
from nsa_lab.config import AttentionConfig, layer_attention
from nsa_lab.plugin import switched_on


def same_branches(
    model: nn.Module, weights: Mapping[str, Tensor], design: AttentionConfig, trained: AttentionConfig
) -> dict[str, Tensor]:
    """The gates' weights of `model`, with the columns of branches that its `design` shares with the `trained` one taken
    from `weights`.

    Only of layers whose branches differ; a branch that `trained` does not have keeps the column it starts with.
    """
    found: dict[str, Tensor] = {}
    for place, module in model.named_modules():
        if not isinstance(module, Gate):
            continue
        layer = int(re.findall(r"layers\.(\d+)\.", place)[0])
        here, there = (list(switched_on(layer_attention(one, layer).branches)) for one in (design, trained))
        for name in module.per_branch if here != there else ():
            own, key = module.get_parameter(name).detach(), f"{place}.{name}"
            if key in weights:
                found[key] = _columns(own, weights[key], module.shape[0], here, there)
    return found


def _columns(own: Tensor, theirs: Tensor, heads: int, here: Sequence[str], there: Sequence[str]) -> Tensor:
    """`own` [H * R, ...] or [H, R] with the columns of shared branches from `theirs` [H * R', ...] or [H, R']."""
    mine, other = own.clone().reshape(heads, len(here), -1), theirs.reshape(heads, len(there), -1)
    for column, branch in enumerate(here):
        if branch in there:
            mine[:, column] = other[:, there.index(branch)].to(mine.dtype)
    return mine.reshape(own.shape)
