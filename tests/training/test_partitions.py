"""What a training with an adaptive partition logs, and that its router neither collapses nor ignores its target."""

import json

import pytest

from nsa_lab.training import run

BLOCKS = ("blocks", "mean_length", "p10_length", "p90_length", "share_of_step")


def logged(directory):
    """Every metric of a run as a list over the steps at which it was logged."""
    found = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in (row.get("metrics") or row).items():
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("kind", ["uniform", pytest.param("scene", marks=pytest.mark.slow), "router"])
def test_every_log_step_describes_the_blocks(tiny, kind):
    config = tiny({"attention.partition.kind": kind, "attention.partition.router.loss_weight": 0.25})
    result = run(config, progress_bar=False)
    found = logged(result.directory)
    for name in BLOCKS:
        assert len(found[f"partition/{name}"]) == config.training.steps, name
    assert all(0 < share < 1 for share in found["partition/share_of_step"])
    # Three clips of 4 x 2 x 2 tokens.
    for blocks, length in zip(found["partition/blocks"], found["partition/mean_length"], strict=True):
        assert blocks * length == pytest.approx(48)
    if kind == "router":
        assert all(0 <= rate <= 1 for rate in found["partition/router/boundary_rate"])
        assert all(loss > 0.05 for loss in found["train/router_loss"])
    else:
        assert "train/router_loss" not in found


@pytest.mark.slow
def test_the_router_follows_its_target_and_does_not_collapse(tiny):
    rates = {}
    for size in (3, 8):
        overrides = {"name": f"router{size}", "training.steps": 80, "training.val_every": 80}
        overrides |= {"attention.partition.kind": "router", "attention.partition.block_size": size}
        result = run(tiny(overrides | {"attention.partition.router.loss_weight": 1.0}), progress_bar=False)
        found = logged(result.directory)
        rates[size] = sum(found["partition/router/boundary_rate"][-20:]) / 20
        assert min(found["partition/router/mean_probability"][-20:]) > 0.01
        assert max(found["partition/router/mean_probability"][-20:]) < 0.99
    assert rates[3] == pytest.approx(1 / 3, rel=0.35) and rates[8] == pytest.approx(1 / 8, rel=0.5)
