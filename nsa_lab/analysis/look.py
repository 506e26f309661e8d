"""Look at one forward: every sparse layer's partition, and which blocks one query took from it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.inputs import BranchInputs
from nsa_lab.attention.select.compression import compression_scores
from nsa_lab.attention.trace import Trace
from nsa_lab.model import MODEL_INPUTS, VideoNSAForConditionalGeneration
from nsa_lab.partition import Context, Partition


@dataclass(frozen=True)
class LayerLook:
    """One layer's context and partition, and what the query did there.

    chosen: [G, n] int64, the blocks each group attends token by token, -1 past the last; None without a selection
    branch. scores: [G, N], the compression probability of each block, the mean over the group's heads, 0 for blocks
    still open at the query; None where the layer pools no blocks.
    """

    context: Context
    partition: Partition
    chosen: Tensor | None
    scores: Tensor | None


@dataclass(frozen=True)
class Look:
    """What one forward over one sample showed: its sparse layers by number, and embeddings [V, hidden] float32.

    Layers that a reducer leaves less than the whole video are not among them. The embeddings are those of the V video
    tokens as the tower gives them; `query` counts among these tokens.
    """

    layers: dict[int, LayerLook]
    embeddings: Tensor
    query: int


@torch.no_grad()
def look(model: VideoNSAForConditionalGeneration, batch: Mapping[str, Any], query: int) -> Look:
    """Run `batch`, one packed sample, and look at video token `query`; all tensors of the result are on the CPU."""
    embeddings: list[Tensor] = []
    is_video = batch["input_ids"] == model.config.video_token_id

    def keep_embeddings(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        embeddings.append(given["inputs_embeds"][is_video].float().cpu())

    hook = model.model.language_model.register_forward_pre_hook(keep_embeddings, with_kwargs=True)
    was_training = model.training
    trace = Trace("inputs", "choice")
    try:
        model.eval()
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        model(**inputs, use_cache=False, logits_to_keep=1, trace=trace)
    finally:
        model.train(was_training)
        hook.remove()
    choices = trace.of("choice")
    whole = {layer: found for layer, found in trace.of("inputs").items() if len(found.q) == len(embeddings[0])}
    layers = {layer: _look(found, choices.get(layer), query) for layer, found in whole.items()}
    return Look(layers, embeddings[0], query)


def _look(inputs: BranchInputs, choice: Tensor | None, query: int) -> LayerLook:
    return LayerLook(
        context=_on_cpu(inputs.context),
        partition=_on_cpu(inputs.partition),
        chosen=None if choice is None else choice[query].cpu(),
        scores=None if inputs.pooled_k is None else block_scores(inputs, query).cpu(),
    )


def block_scores(inputs: BranchInputs, query: int) -> Tensor:
    """[G, N]: what the compression scorer gives each block for `query`, the mean over the group's heads."""
    assert inputs.pooled_k is not None
    heads = inputs.q[query].unflatten(0, (inputs.pooled_k.shape[1], -1))
    visible = inputs.partition.block_end <= inputs.context.query_index[query]
    bias = None if inputs.block_bias is None else inputs.block_bias[None]
    scores = compression_scores(heads[None, None], inputs.pooled_k[None], visible[None, None], bias, inputs.scale)
    return scores[0, 0] / heads.shape[1]


def _on_cpu(parts: Any) -> Any:
    """A copy of a Context or Partition with its tensors on the CPU."""
    values = {field.name: getattr(parts, field.name) for field in dataclasses.fields(parts)}
    tensors = {name: value.detach().cpu() for name, value in values.items() if isinstance(value, Tensor)}
    return dataclasses.replace(parts, **tensors)
