"""Lightning's trainer on one training: its processes, checkpoints, reports and interruptions."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import TorchElasticEnvironment

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError
from nsa_lab.model.trained import check_readable, find_checkpoint, kept_checkpoint
from nsa_lab.tracking import Tracker
from nsa_lab.training.callbacks import Progress, Reporter
from nsa_lab.training.checkpoint import CheckpointWriter
from nsa_lab.training.data import VideoDataModule
from nsa_lab.training.directory import RunDirectory
from nsa_lab.training.fsdp import ShardedStrategy
from nsa_lab.training.logger import TrackerLogger
from nsa_lab.training.memory import MemoryWatch
from nsa_lab.training.module import Divergence, VideoModule
from nsa_lab.training.progress import ProgressBar
from nsa_lab.training.ranks import Ranks
from nsa_lab.training.restart import fitting


def fit(
    config: ExperimentConfig,
    home: RunDirectory,
    module: VideoModule,
    data: VideoDataModule,
    tracker: Tracker | None,
    on_progress: Callable[[Progress], bool] | None,
    progress_bar: bool,
    ranks: Ranks,
) -> tuple[Reporter, L.Trainer]:
    """Train `module` on `data` from the last checkpoint in `home`, and validate at the end.

    Raises NsaLabError where a loss or a gradient is not finite.
    """
    training = module.config
    checkpoint = find_checkpoint(home.checkpoints)
    if checkpoint:
        check_readable(checkpoint)
    reporter = Reporter(training, on_progress)
    writer = CheckpointWriter(
        home.checkpoints, every=training.checkpoint_every, val_every=training.val_every, steps=training.steps
    )
    trainer = L.Trainer(
        accelerator=training.accelerator,
        **_spread(ranks),
        precision=training.precision,
        max_steps=training.steps,
        accumulate_grad_batches=training.accumulate,
        val_check_interval=training.val_every * training.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=TrackerLogger(tracker),
        callbacks=[
            MemoryWatch(training.memory_history, home.memory(ranks.rank)),
            reporter,
            writer,
            *([ProgressBar(training.steps, reporter)] if progress_bar and ranks.first else []),
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=home.path,
    )
    try:
        with _interruptible(), fitting(checkpoint, ranks) as start:
            if training.steps:
                trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
            if not reporter.stopped and reporter.validated_step != training.steps:
                trainer.validate(module, datamodule=data, verbose=False)
    except Divergence as error:
        raise NsaLabError(_divergence(error, data, home)) from error
    return reporter, trainer


def _spread(ranks: Ranks) -> dict[str, Any]:
    """The trainer's settings that say on how many devices it runs."""
    if ranks.world == 1:
        return {"devices": 1}
    return {
        "devices": ranks.local_world,
        "num_nodes": ranks.world // ranks.local_world,
        "strategy": ShardedStrategy(data_parallel_size=ranks.world, tensor_parallel_size=1),
        "plugins": [TorchElasticEnvironment()],
    }


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning turns Ctrl-C into SystemExit and stops listening to it; here it stays a KeyboardInterrupt."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _divergence(error: Divergence, data: VideoDataModule, home: RunDirectory) -> str:
    ids = "" if error.batch is None else f" on samples {', '.join(data.sample_ids(error.batch))}"
    return (
        f"{error.quantity} became {error.value} at step {error.step} (learning rate {error.learning_rate:.3g}){ids}; "
        f"{kept_checkpoint(home.checkpoints)}; lower training.learning_rate or training.gradient_clip"
    )
