"""One training run, from a config to a result."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import lightning as L
import torch

from nsa_lab.attention.backends import choose_backend
from nsa_lab.config import ExperimentConfig, config_hash, layer_attention
from nsa_lab.config.schema import TrainingConfig
from nsa_lab.data import load_tokenizer
from nsa_lab.errors import NsaLabError
from nsa_lab.files import room_on_disk, write_json
from nsa_lab.model import VideoNSAForConditionalGeneration, build_model
from nsa_lab.model.trained import find_checkpoint, kept_checkpoint, last_weights
from nsa_lab.origin import code_digest, machine_facts, training_device
from nsa_lab.tracking import Tracker, finish_left
from nsa_lab.training.build import build, build_module
from nsa_lab.training.callbacks import Progress, Reporter
from nsa_lab.training.data import VideoDataModule
from nsa_lab.training.directory import RunDirectory
from nsa_lab.training.fit import fit
from nsa_lab.training.launch import joined
from nsa_lab.training.memory import room_on_gpu
from nsa_lab.training.module import VideoModule
from nsa_lab.training.quiet import quiet_lightning
from nsa_lab.training.ranks import ALONE, Ranks, barrier, launched, sums

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """Where a run is kept and how it ended; `recorded` when it was over before and nothing was trained.

    `first`: of the processes that train it this is the one that writes and speaks.

    `seconds` is how long it trained and validated, earlier processes included; None where that is not known.
    """

    directory: Path
    metrics: dict[str, float]
    tracking_id: str | None
    stopped: bool
    seconds: float | None
    recorded: bool = False
    first: bool = True


@dataclass(frozen=True)
class Trained:
    """What stands there when a training has just ended."""

    config: ExperimentConfig
    home: RunDirectory
    trainer: L.Trainer
    trained: VideoModule
    data: VideoDataModule
    ranks: Ranks = ALONE

    @cached_property
    def module(self) -> VideoModule:
        """The model on the CPU; of one split over several processes the weights of its last checkpoint."""
        if self.ranks.world == 1:
            return self.trained
        tokenizer = load_tokenizer(self.config.data.tokenizer, Path(self.config.data.cache_dir))
        module = build_module(self.config, tokenizer, partial(build_model, device=torch.device("cpu")))
        if find_checkpoint(self.home.checkpoints):
            module.model.load_state_dict(last_weights(self.home.path))
        return module


def run(
    config: ExperimentConfig,
    *,
    directory: Path | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], bool] | None = None,
    progress_bar: bool = True,
    draw: Callable[[Trained], Iterable[Path]] | None = None,
) -> RunResult:
    """Train `config` in `directory` (default `{output.dir}/{name}-{hash}`), going on from its last checkpoint.

    `on_progress` hears every `training.log_every` steps and after each validation; a true answer ends the run early
    (`stopped`). `draw` writes pictures below the run directory, which are tracked. Raises NsaLabError for whatever the
    user can mend: input, a diverging loss, a full disk, a directory that is another config's.
    """
    ranks, start = Ranks.of(config.training), not launched()
    _check_machine(config.training, ranks)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    home, resume = RunDirectory.prepare(config, directory, write=ranks.first), config.training.resume
    if resume and (recorded := _recorded(home, ranks)):
        return recorded
    with (
        quiet_lightning(),
        room_on_disk(home.path, lambda: kept_checkpoint(home.checkpoints)),
        joined(ranks, start, config, home),
        room_on_gpu(config, home, ranks),
    ):
        module, data = build(config, ranks)
        if not resume:
            if ranks.first:
                home.clear()
        elif ranks.world == 1 and (recorded := _recorded(home, ranks)):
            return recorded  # another process trained it meanwhile
        with _tracker(config, home, ranks, tags, parent) as tracker:
            barrier()
            if tracker:
                _describe(config, home, module, tracker)
                _tell_of_packing(config.training, data)
            reporter, trainer = fit(config, home, module, data, tracker, on_progress, progress_bar, ranks)
            reporter.metrics |= reporter.clock.overall() | sums({} if ranks.place else data.skipped())
            for line in data.skip_reasons():
                logger.warning(line)
            if tracker is None:
                return RunResult(home.path, reporter.metrics, None, reporter.stopped, reporter.seconds, first=False)
            summary = _summarise(config, home, reporter, tracker.run_id)
            trained = Trained(config, home, trainer, module, data, ranks)
            for picture in draw(trained) if draw else ():
                tracker.artifact(picture, str(picture.parent.relative_to(home.path)))
    return RunResult(home.path, summary["metrics"], tracker.run_id, reporter.stopped, summary["seconds"])


def _tracker(
    config: ExperimentConfig, home: RunDirectory, ranks: Ranks, tags: Mapping[str, str] | None, parent: str | None
) -> AbstractContextManager[Tracker | None]:
    """The run's record, which the first process keeps alone."""
    if not ranks.first:
        return nullcontext()
    return Tracker.open(config, home.path, tags=tags, parent=parent, again=config.training.resume)


def _describe(config: ExperimentConfig, home: RunDirectory, module: VideoModule, tracker: Tracker) -> None:
    origin = machine_facts(config.training.accelerator, config.training.threads) | {"code": code_digest()}
    write_json(home.origin, origin)
    tracker.tags(
        {"attention_backend": _backend(config, module.model), "device": origin["device"], "code": origin["code"]}
    )


def _tell_of_packing(training: TrainingConfig, data: VideoDataModule) -> None:
    if found := data.packing():
        steps = found["data/steps_per_epoch"]
        logger.warning(
            "%d samples fill %.0f batches of up to %d tokens to %.1f%%: %.4g steps an epoch, %.3g epochs in all",
            len(data.train),
            steps * training.accumulate,
            training.tokens_per_batch,
            100 * found["data/fill"],
            steps,
            training.steps / steps,
        )


def _recorded(home: RunDirectory, ranks: Ranks) -> RunResult | None:
    """The result of a run that is over."""
    summary = home.result()
    if summary is None:
        return None
    if ranks.first:
        finish_left(home.path)
    seconds = summary.get("seconds")  # older versions did not write it
    how = {"recorded": True, "first": ranks.first}
    return RunResult(home.path, summary["metrics"], summary["tracking_id"], False, seconds, **how)


def _backend(config: ExperimentConfig, model: VideoNSAForConditionalGeneration) -> str:
    """What runs the attention ops of this run, joined by + where layers name different ones.

    Raises NsaLabError where a named one cannot run here.
    """
    device = training_device(config.training.accelerator)
    layers = range(model.config.text_config.num_hidden_layers)
    return "+".join(sorted({choose_backend(layer_attention(config.attention, i).backend, device) for i in layers}))


def _check_machine(training: TrainingConfig, ranks: Ranks) -> None:
    """Raise NsaLabError where this machine cannot do what the config asks."""
    ranks.share(training)
    if training.accelerator == "gpu" and not torch.cuda.is_available():
        raise NsaLabError("training.accelerator=gpu, but torch finds no GPU; set training.accelerator=cpu")
    gpus, on_gpu = torch.cuda.device_count(), training_device(training.accelerator).type == "cuda"
    if on_gpu and ranks.local_world > gpus:
        raise NsaLabError(
            f"{ranks.local_world} processes, but this machine has {gpus} GPUs; set training.devices={gpus}"
        )
    if ranks.world > 1 and training.precision == "16-mixed":
        raise NsaLabError("training.precision=16-mixed scales losses of one process; set training.precision=bf16-mixed")
    if training.precision == "16-mixed" and not on_gpu:
        raise NsaLabError("training.precision=16-mixed needs a GPU; set training.precision=bf16-mixed")


def _summarise(config: ExperimentConfig, home: RunDirectory, reporter: Reporter, tracking_id: str | None) -> dict:
    summary = {
        "name": config.name,
        "config_hash": config_hash(config),
        "seed": config.seed,
        "tracking_id": tracking_id,
        "stopped": reporter.stopped,
        "seconds": round(reporter.seconds, 3) if math.isfinite(reporter.seconds) else None,
        "metrics": reporter.metrics,
    }
    write_json(home.summary, summary)
    return summary
