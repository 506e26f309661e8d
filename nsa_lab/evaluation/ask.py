"""Ask a model about a video."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from nsa_lab.config import ExperimentConfig
from nsa_lab.data import BadSampleError, Sample, Turn, VideoDataset, load_tokenizer, pack
from nsa_lab.errors import NsaLabError
from nsa_lab.model import MODEL_INPUTS, VideoNSAForConditionalGeneration


@torch.no_grad()
def ask(model: VideoNSAForConditionalGeneration, video: str | Path, question: str, *, max_new_tokens: int = 64) -> str:
    """The model's answer to `question` about the video file `video`, greedily decoded.

    The video is sampled and resized as the model's data settings say (`load_model` brings them), and its tokens are
    placed as the model itself does (`config.positions`). Raises NsaLabError where the model has none, or the video
    cannot be read.
    """
    settings = own_settings(model).data
    tokenizer = load_tokenizer(settings.tokenizer, Path(settings.cache_dir))
    sample = Sample(str(video), Path(video), (Turn(question, None),), "ask")
    try:
        rate = model.config.vision_config.tokens_per_second
        batch = pack([VideoDataset([sample], tokenizer, settings, rate).example(sample)])
    except BadSampleError as error:
        raise NsaLabError(str(error)) from error
    inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(model.dtype)
    was_training = model.training
    try:
        ids = _decode(model.eval(), inputs, tokenizer.convert_tokens_to_ids("<|im_end|>"), max_new_tokens)
    finally:
        model.train(was_training)
    return str(tokenizer.decode(ids)).strip()


def own_settings(
    model: VideoNSAForConditionalGeneration, experiment: ExperimentConfig | None = None
) -> ExperimentConfig:
    """`experiment`, or the one that the model brings, with the model's positions. Raises NsaLabError on neither."""
    settings = experiment or model.experiment
    if settings is None:
        raise NsaLabError("this model brings no data settings; load it with nsa_lab.load_model or set its `experiment`")
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, positions=model.config.positions))


def _decode(model: Any, inputs: dict[str, Any], end: int, count: int) -> list[int]:
    """Token ids until `end` or `count`. Text goes on one position after the prompt's last token."""
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    ids: list[int] = []
    place = inputs["position_ids"][1:, :, -1:]
    while len(ids) < count and (token := int(out.logits[0, -1].argmax())) != end:
        ids.append(token)
        place = place + 1
        new = torch.tensor([[token]], device=model.device)
        out = model(input_ids=new, position_ids=place, past_key_values=out.past_key_values, use_cache=True)
    return ids
