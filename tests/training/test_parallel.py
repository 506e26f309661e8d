"""Several processes train the model that one process would: the same steps, and taken up by another number of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException

from nsa_lab.config import to_yaml
from nsa_lab.config.schema import TrainingConfig
from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model
from nsa_lab.model.trained import check_readable, last_weights
from nsa_lab.training import run
from nsa_lab.training.checkpoint import CheckpointWriter
from nsa_lab.training.data import EqualBatches, StepSampler, ValidationBatchSampler
from nsa_lab.training.ranks import Ranks
from nsa_parallel import TOLERANCE, assert_same, curves


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_take_the_steps_of_one(uneven, tmp_path):
    alone = run(uneven(), directory=tmp_path / "one", progress_bar=False)
    both = run(uneven(**{"training.devices": 2}), directory=tmp_path / "two", progress_bar=False)
    assert_same(curves(both.directory), curves(alone.directory))
    assert (both.directory / "checkpoints" / "last.ckpt").is_dir()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_two_processes_start_from_the_weights_of_a_folder(uneven, tokenizer, tmp_path, precision):
    start = uneven(**{"training.precision": precision})
    build_model(start, tokenizer).save_pretrained(tmp_path / "weights", max_shard_size="100KB")
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) > 1
    given = {"model.path": str(tmp_path / "weights"), "training.precision": precision, "attention.gate.kind": "linear"}
    alone = run(uneven(**given), directory=tmp_path / "one", progress_bar=False)
    both = run(uneven(**given, **{"training.devices": 2}), directory=tmp_path / "two", progress_bar=False)
    for name, values in curves(alone.directory).items():
        tolerance = TOLERANCE if precision == "32-true" else {"rel": 0.05, "abs": 1e-3}
        assert curves(both.directory)[name] == pytest.approx(values, **tolerance), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_reducer_reads_a_layer_that_processes_share(uneven, tmp_path):
    """`vscan` ranks by the projections of a layer before it runs. Grey frames are not ranked: all patches are equal."""
    vscan = "attention.reducer.vscan."
    given = {"attention.reducer.kind": "vscan", f"{vscan}keep": 1.0, f"{vscan}late": 0.5}
    alone = run(uneven(**given), directory=tmp_path / "one", progress_bar=False)
    both = run(uneven(**given, **{"training.devices": 2}), directory=tmp_path / "two", progress_bar=False)
    assert_same(curves(both.directory), curves(alone.directory))


LONG = {"training.steps": 6, "training.val_every": 3, "training.checkpoint_every": 2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_run_goes_on_with_another_number_of_processes(uneven, tmp_path, before, after):
    alone = run(uneven(**LONG), directory=tmp_path / "alone", progress_bar=False)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            uneven(**LONG, **{"training.devices": before}),
            directory=tmp_path / "cut",
            progress_bar=False,
            on_progress=stop,
        )
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert check_readable(last) == 4
    cut = run(uneven(**LONG, **{"training.devices": after}), directory=tmp_path / "cut", progress_bar=False)
    assert_same(curves(cut.directory), curves(alone.directory))
    weights = last_weights(cut.directory)
    for name, weight in last_weights(alone.directory).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)  # a tenth of one step of AdamW


def processes_of(directory):
    """The ids of those that the first process started to train in `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"nsa_lab.training.follow" in arguments and os.fsencode(directory) in arguments:
            found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_process_ends_all_with_one_line_and_the_curve_goes_on(uneven, tmp_path, after):
    alone = run(uneven(**LONG), directory=tmp_path / "alone", progress_bar=False)
    place = tmp_path / "cut"

    def kill(progress):
        if progress.step == 5:
            (other,) = processes_of(place)
            os.kill(other, signal.SIGKILL)

    with pytest.raises(NsaLabError) as error:
        run(uneven(**LONG, **{"training.devices": 2}), directory=place, progress_bar=False, on_progress=kill)
    assert "\n" not in str(error.value)
    for part in ("process 1 of 2", "was killed by signal 9", "last.ckpt", "run the same command again"):
        assert part in str(error.value)
    cut = run(uneven(**LONG, **{"training.devices": after}), directory=place, progress_bar=False)
    assert_same(curves(cut.directory), curves(alone.directory))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_diverges_in_all_of_them_is_one_line(uneven, tmp_path):
    config = uneven(**{"training.devices": 2, "training.learning_rate": 1e30, "training.steps": 6})
    with pytest.raises(NsaLabError, match=r"^the (loss|gradient norm) became \w+ at step") as error:
        run(config, directory=tmp_path / "run", progress_bar=False)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_killed_first_process_leaves_none_behind(uneven, tmp_path):
    place, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(to_yaml(uneven(**LONG | {"training.devices": 2, "training.steps": 500})))
    command = [sys.executable, "-m", "nsa_lab.cli", "train", str(config), "--dir", str(place)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: (place / "checkpoints" / "last.ckpt").exists())
    first.kill()
    first.wait()
    wait_until(lambda: not processes_of(place))
    assert check_readable(place / "checkpoints" / "last.ckpt") >= 2


def wait_until(there):
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchrun_starts_the_processes_itself(uneven, tmp_path):
    alone = run(uneven(), directory=tmp_path / "one", progress_bar=False)
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(uneven()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "nsa_lab.cli", "train", str(config), "--dir", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory:") == 1
    assert_same(curves(tmp_path / "two"), curves(alone.directory))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_processes_share_out_the_samples_of_each_step(world):
    batches = EqualBatches(13, 2, seed=3)
    one, shares = (
        StepSampler(batches, 4),
        [StepSampler(batches, 4 // world, Ranks(rank, world)) for rank in range(world)],
    )
    for number in range(5):
        assert [batch for share in shares for batch in share.step(number)] == one.step(number)


@pytest.mark.parametrize(("size", "world"), [(1, 2), (7, 2), (8, 3), (9, 4)])
def test_each_validation_sample_counts_once_and_all_processes_take_as_many_batches(size, world):
    samplers = [ValidationBatchSampler(size, 2, Ranks(rank, world)) for rank in range(world)]
    assert len({len(list(sampler)) for sampler in samplers}) == 1
    counted = [i for s in samplers for place, batch in enumerate(s) if s.counts(place) for i in batch]
    assert sorted(counted) == list(range(size))


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world", "share"),
    [(1, 4, 2, (1, 2)), (4, 1, 2, (2, 1)), (2, 3, 3, (2, 1)), (16, 2, 8, (4, 1)), (3, 5, 1, (3, 5))],
)
def test_a_step_is_cut_into_equal_shares(batch_size, accumulate, world, share):
    own = Ranks(0, world).share(TrainingConfig(batch_size=batch_size, accumulate=accumulate))
    assert (own.batch_size, own.accumulate) == share


@pytest.mark.parametrize(("batch_size", "accumulate", "world"), [(1, 3, 2), (1, 1, 2), (4, 3, 2)])
def test_a_step_that_cannot_be_cut_so_is_refused(batch_size, accumulate, world):
    with pytest.raises(NsaLabError, match=f"multiple of {world}"):
        Ranks(0, world).share(TrainingConfig(batch_size=batch_size, accumulate=accumulate))


class Writing:
    """A trainer whose checkpoints are folders of one part; `error` comes when it is half written."""

    is_global_zero, global_step = True, 2
    lightning_module = torch.nn.Linear(1, 1)

    def __init__(self, text, error=None):
        self.text, self.error = text, error

    def save_checkpoint(self, folder):
        folder.mkdir()
        (folder / "part").write_text(self.text)
        if self.error:
            raise self.error


def test_a_checkpoint_in_parts_takes_its_place_whole_or_not_at_all(tmp_path):
    writer = CheckpointWriter(tmp_path, every=1, val_every=1, steps=9)
    for text in ("first", "second", "third"):
        writer._write(Writing(text))
    full = OSError(28, "No space left on device")
    for error in (full, CheckpointException("save", {1: (full, None)})):
        with pytest.raises(NsaLabError, match=r"No space left on device; the last good checkpoint is .*last\.ckpt"):
            writer._write(Writing("fourth", error))
    assert {path.name: (path / "part").read_text() for path in tmp_path.iterdir()} == {
        "last.ckpt": "third",
        "previous.ckpt": "second",
    }
