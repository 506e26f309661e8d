"""How fast a training goes and what it waits for, in its metrics and on its progress bar."""

import time

import pytest

from nsa_lab.data import VideoDataset
from nsa_lab.model.flops import StepFlops, peak_flops
from nsa_lab.scale.rates import GPUS
from nsa_lab.training import callbacks, run
from nsa_lab.training.clock import Clock
from nsa_lab.training.directory import read_series
from nsa_lab.training.progress import rates


@pytest.fixture
def clock(monkeypatch):
    """A clock of two processes, on which `pass_` lets time pass."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    made = Clock(processes=2, peak=100.0)
    made.start()
    made.pass_ = lambda seconds: now.__setitem__(0, now[0] + seconds)
    return made


def test_rates_are_of_the_steps_since_the_last_lap_and_the_first_counts_in_none_of_all(clock):
    assert clock.overall() == {}
    clock.pass_(10.0)
    clock.add(100, waited=20.0, flops=0.0)
    assert clock.lap() == clock.overall() == {
        "throughput/tokens_per_second": 10.0,
        "throughput/seconds_per_step": 10.0,
        "throughput/data_wait": 1.0,
        "throughput/mfu": 0.0,
    }  # fmt: skip
    for _ in range(2):
        clock.pass_(1.0)
        clock.add(50, waited=0.5, flops=100.0)
    assert clock.seconds == 2.0
    assert clock.overall() == clock.lap() == {
        "throughput/tokens_per_second": 50.0,
        "throughput/seconds_per_step": 1.0,
        "throughput/data_wait": 0.25,
        "throughput/mfu": 0.5,
    }  # fmt: skip


def test_time_between_a_validation_and_the_next_step_counts_from_its_end(clock):
    clock.pass_(7.0)
    clock.start()
    clock.pass_(2.0)
    clock.add(4)
    assert clock.lap()["throughput/seconds_per_step"] == 2.0


def test_a_slow_disk_shows_as_data_wait(tiny, monkeypatch):
    given = {"training.steps": 4, "training.log_every": 2, "training.batch_size": 2}
    quick = read_series(run(tiny(given), progress_bar=False).directory / "metrics.jsonl")
    load = VideoDataset.__getitem__

    def slowly(self, index):
        time.sleep(0.1)
        return load(self, index)

    monkeypatch.setattr(VideoDataset, "__getitem__", slowly)
    result = run(tiny(given | {"seed": 1}), progress_bar=False)
    slow = read_series(result.directory / "metrics.jsonl")["throughput/data_wait"]
    assert sorted(slow) == [2, 4] and 0 < quick["throughput/data_wait"][4] < slow[4] < 1
    assert result.metrics["throughput/data_wait"] > 0.3 and "throughput/mfu" not in result.metrics


def test_mfu_is_the_steps_flops_over_the_peak(tiny, monkeypatch):
    monkeypatch.setattr(callbacks, "_peak", lambda module: 1e9)
    counted = []
    of = StepFlops.of
    monkeypatch.setattr(StepFlops, "of", lambda *args: counted.append(of(*args)) or counted[-1])
    result = run(tiny({"training.steps": 3, "training.accumulate": 2, "training.log_every": 3}), progress_bar=False)
    assert len(counted) == 6 and min(counted) > 1e6
    found = result.metrics
    expected = sum(counted[2:]) / 2 / found["throughput/seconds_per_step"] / 1e9
    assert found["throughput/mfu"] == pytest.approx(expected)


def test_tokens_that_a_reducer_drops_ask_for_no_flops(tiny, monkeypatch):
    monkeypatch.setattr(callbacks, "_peak", lambda module: 1e9)
    saved = []
    of = StepFlops.of

    def spy(self, batch, attention, kept):
        video = len(batch["pixel_values_videos"]) // 4
        saved.append((kept, of(self, batch, attention) - of(self, batch, attention, kept), self.token * video))
        return 1.0

    monkeypatch.setattr(StepFlops, "of", spy)
    half = {"attention.reducer.kind": "visionzip", "attention.reducer.visionzip.keep": 0.5}
    run(tiny({"training.steps": 1, **half}), progress_bar=False)
    for kept, less, whole in saved:
        assert kept == 0.5 and less == pytest.approx(6 * whole / 2)
    assert saved


def test_a_card_without_a_data_sheet_has_no_peak():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("AMD EPYC") is None
    assert all(peak_flops(name) for name, _ in GPUS.values())


def test_the_bar_says_what_is_known():
    known = {"throughput/tokens_per_second": 12345.6, "throughput/data_wait": 0.031, "train/loss": 1.0}
    assert rates(known) == ["12,346 tokens/s", "data wait 3%"]
    assert rates(known | {"throughput/mfu": 0.4})[-1] == "MFU 40%"
    assert rates({}) == []
