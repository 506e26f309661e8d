"""A gate's columns by branch, so that weights go on where a design has other branches than they were trained with."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nsa_lab.attention.gates import Gate
from nsa_lab.config import AttentionConfig, layer_attention
from nsa_lab.model.sharded import Scattered
from nsa_lab.plugin import switched_on


def branch_weights(model: nn.Module) -> list[str]:
    """The names of the weights that have columns by branch."""
    gates = ((place, module) for place, module in model.named_modules() if isinstance(module, Gate))
    return [f"{place}.{name}" for place, module in gates for name in module.per_branch]


def with_gates_of(
    model: nn.Module,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor | Scattered],
    design: AttentionConfig,
    trained: AttentionConfig,
) -> dict[str, Tensor | Scattered]:
    """`weights` of the `trained` design for `model`, whose `design` may have other branches and gates than it.

    `own` are the weights that it starts with; needed are those of `branch_weights`. Gates keep the columns of the
    branches that both have; a branch that `trained` does not have keeps the column it starts with. Gates of another
    kind are left out.
    """
    found = dict(weights)
    for place, module in model.named_modules():
        if not isinstance(module, Gate):
            continue
        layer = int(re.findall(r"layers\.(\d+)\.", place)[0])
        ours, theirs = (layer_attention(one, layer) for one in (design, trained))
        here, there = list(switched_on(ours.branches)), list(switched_on(theirs.branches))
        if ours.gate.kind != theirs.gate.kind:
            found = {key: weight for key, weight in found.items() if not key.startswith(f"{place}.")}
        for name in module.per_branch if here != there else ():
            key = f"{place}.{name}"
            if key in found:
                found[key] = _columns(own[key], found[key][...], module.shape[0], here, there)
    return found


def _columns(own: Tensor, theirs: Tensor, heads: int, here: Sequence[str], there: Sequence[str]) -> Tensor:
    """`own` [H * R, ...] or [H, R] with the columns of shared branches from `theirs` [H * R', ...] or [H, R']."""
    mine, other = own.clone().reshape(heads, len(here), -1), theirs.reshape(heads, len(there), -1)
    for column, branch in enumerate(here):
        if branch in there:
            mine[:, column] = other[:, there.index(branch)].to(mine.dtype)
    return mine.reshape(own.shape)
