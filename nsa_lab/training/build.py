"""The model and the data of a config, made for training."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from nsa_lab.config import ExperimentConfig
from nsa_lab.data import VideoDataset, load_samples, load_tokenizer, measured, pack
from nsa_lab.errors import NsaLabError
from nsa_lab.model import VideoNSAForConditionalGeneration, build_model
from nsa_lab.model.checkpoint import tokens_per_second
from nsa_lab.model.compile import compile_dense, compiles
from nsa_lab.model.drawing import Share
from nsa_lab.model.recompute import recompute_activations
from nsa_lab.model.stream import model_in_parts
from nsa_lab.origin import training_device
from nsa_lab.training.context import context_group
from nsa_lab.training.data import VideoDataModule
from nsa_lab.training.module import VideoModule
from nsa_lab.training.ranks import ALONE, Ranks, gathered


def build(config: ExperimentConfig, ranks: Ranks = ALONE) -> tuple[VideoModule, VideoDataModule]:
    """The model and the data of a config, seeded: equal configs give equal weights and equal batches.

    All processes have the same weights; what they share out is done by the strategy, and by the data.
    """
    data, tokenizer = build_data(config, ranks, training=True)
    module = build_module(config, tokenizer, ranks=ranks)
    data.group = module.group
    return module, data


def build_data(
    config: ExperimentConfig, ranks: Ranks = ALONE, *, training: bool = False
) -> tuple[VideoDataModule, Any]:
    """The data of a config, and its tokenizer; for `training` with batches of training.tokens_per_batch, where set.

    Raises NsaLabError where there is nothing to validate on.
    """
    samples = load_samples(config)
    if not samples["val"]:
        raise NsaLabError("there are no samples to validate on; set data.val_annotations, or give more than one video")
    tokenizer = load_tokenizer(config.data.tokenizer, Path(config.data.cache_dir))
    budget = config.training.tokens_per_batch if training else None
    lengths = None
    if budget is not None:
        samples["train"], lengths = measured(samples["train"], tokenizer, config.data, budget)
        _check_same(lengths)
    rate = tokens_per_second(config.model)
    train, val = (VideoDataset(samples[split], tokenizer, config.data, rate) for split in ("train", "val"))
    share = ranks.share(config.training)
    data = VideoDataModule(
        train,
        val,
        pack,
        batch_size=share.batch_size,
        accumulate=share.accumulate,
        seed=config.seed,
        workers=config.data.workers,
        ranks=ranks,
        tokens_per_batch=budget,
        lengths=lengths,
    )
    return data, tokenizer


def _check_same(lengths: Sequence[int]) -> None:
    """Raise NsaLabError where processes found other lengths, and so would fill other batches."""
    digests = gathered(hashlib.sha256(repr(lengths).encode()).hexdigest())
    if other := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
        raise NsaLabError(
            f"process {other[0]} finds other samples or videos than process 0; "
            "give all machines the same data.annotations and data.videos"
        )


def build_module(
    config: ExperimentConfig,
    tokenizer: Any,
    make: Callable[[ExperimentConfig, Any], VideoNSAForConditionalGeneration] = build_model,
    ranks: Ranks = ALONE,
) -> VideoModule:
    """The model of a config with its seeded weights, or what `make` makes in its place, ready to train.

    One of several processes makes its part of it alone, which stands in its place once the trainer has split the model.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    parts: dict[str, Tensor] = {}
    if ranks.world == 1:
        model = make(config, tokenizer)
    else:
        model, parts = model_in_parts(config, tokenizer, Share(ranks.rank, ranks.world))
    model.train()  # transformers hands out what it has loaded in eval mode, which recomputes nothing
    hidden_size = model.config.text_config.hidden_size
    if compiles(config.model.compile, hidden_size, training_device(config.training.accelerator)):
        compile_dense(model)
    group = context_group(model, ranks) if ranks.context > 1 else None
    if config.training.activation_checkpointing:
        recompute_activations(model, config.training.recompute, group, config.training.activation_offload * 2**30)
    return VideoModule(model, ranks.share(config.training), config.seed, ranks, parts, group)
