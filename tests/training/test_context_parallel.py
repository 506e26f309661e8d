"""Processes that share each sample take the steps that one process would."""

import pytest
import torch

from nsa_lab.config import load_config
from nsa_lab.data import pack
from nsa_lab.errors import NsaLabError
from nsa_lab.layout import MERGE
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.training import run
from nsa_lab.training.build import build_data
from nsa_lab.training.data import EqualBatches, StepSampler, ValidationBatchSampler
from nsa_lab.training.ranks import Ranks
from nsa_parallel import assert_same, curves
from nsa_testing import TINY

SHARED = {"training.devices": 2, "training.context_parallel": 2}


@pytest.mark.filterwarnings("ignore")
def test_two_processes_share_each_sample_and_take_the_steps_of_one(uneven, tmp_path):
    alone = run(uneven(), directory=tmp_path / "one", progress_bar=False)
    both = run(uneven(**SHARED), directory=tmp_path / "two", progress_bar=False)
    assert_same(curves(both.directory), curves(alone.directory))


QUERY_TILES = {"attention.branches.selection.query_tile": 2, "attention.branches.selection.block_count": 3}
CASES = {
    "dense": {"attention.method": "dense"},
    "dense text behind a window": {"attention.text_window": 3, "attention.context": "all", **QUERY_TILES},
    "blocks by content, two samples": {"attention.partition.kind": "scene", "training.batch_size": 2},
    "clusters and a compressor": {"attention.partition.kind": "cluster", "attention.compressor.kind": "mlp"},
    "a partition a layer": {"attention.partition.kind": "tile"},
    "frames as images": {"data.frames_as": "images"},
    "computed again": {"training.activation_checkpointing": True},
    "half of it computed again": {"training.activation_checkpointing": True, "training.recompute": "selective"},
    "two groups": {"training.devices": 4},
    "more processes than heads and frames": {
        "training.devices": 3,
        "training.context_parallel": 3,
        "data.max_frames": 4,
    },
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_shared_training_is_that_of_one_process(uneven, tmp_path, case):
    own = {name: value for name, value in CASES[case].items() if name not in SHARED}
    alone = run(uneven(**own), directory=tmp_path / "one", progress_bar=False)
    shared = run(uneven(**SHARED | CASES[case]), directory=tmp_path / "shared", progress_bar=False)
    assert_same(curves(shared.directory), curves(alone.directory))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("before", "after"), [(SHARED, {}), ({}, SHARED), ({"training.devices": 2}, SHARED)])
def test_a_run_goes_on_shared_by_another_number_of_processes(uneven, tmp_path, before, after):
    long = {"training.steps": 6, "training.val_every": 3, "training.checkpoint_every": 2}
    alone = run(uneven(**long), directory=tmp_path / "alone", progress_bar=False)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(uneven(**long, **before), directory=tmp_path / "cut", progress_bar=False, on_progress=stop)
    cut = run(uneven(**long, **after), directory=tmp_path / "cut", progress_bar=False)
    assert_same(curves(cut.directory), curves(alone.directory))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_shared_loss_that_diverges_is_one_line(uneven, tmp_path):
    config = uneven(**SHARED | {"training.learning_rate": 1e30, "training.steps": 6})
    with pytest.raises(NsaLabError, match=r"^the (loss|gradient norm) became \w+ at step") as error:
        run(config, directory=tmp_path / "run", progress_bar=False)
    assert "\n" not in str(error.value)


ON_GPUS = {
    "float32": ({}, 1e-4),
    "dense": ({"attention.method": "dense"}, 1e-4),
    "bfloat16": ({"training.precision": "bf16-mixed"}, 0.03),
    "what there is room for": ({"training.activation_checkpointing": True, "training.recompute": "auto"}, 1e-4),
}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("own", "tolerance"), ON_GPUS.values(), ids=ON_GPUS)
def test_two_gpus_share_each_sample(uneven, tmp_path, own, tolerance):
    own = own | {"training.accelerator": "gpu"}
    alone = curves(run(uneven(**own), directory=tmp_path / "one", progress_bar=False).directory)
    both = curves(run(uneven(**SHARED | own), directory=tmp_path / "two", progress_bar=False).directory)
    for name in ("train/loss", "val/loss", "gradient_norm"):
        assert both[name] == pytest.approx(alone[name], rel=tolerance), name


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_batch_is_divided_without_a_rest(tiny, size):
    data, _ = build_data(tiny())
    whole = pack([data.train[0], data.train[3]])
    layout, parts = whole["host"].layout, [ContextGroup(i, size, None).divide(whole) for i in range(size)]
    pixels = torch.cat([part["pixel_values_videos"][: part["host"].shared.count * MERGE**2] for part in parts])
    assert torch.equal(pixels, whole["pixel_values_videos"])
    assert sorted(torch.cat([part["label_rows"] for part in parts]).tolist()) == whole["label_rows"].tolist()
    for part in parts:
        shared, own = part["host"].shared, part["host"].layout.own
        assert torch.equal(part["input_ids"], whole["input_ids"][:, own])
        assert torch.equal(part["position_ids"], whole["position_ids"][:, :, own])
        assert torch.equal(own[part["label_from"]], part["label_rows"] - 1)
        assert len(part["pixel_values_videos"]) == int(shared.grids.prod(1).sum()) * MERGE**2 > 0
    places = torch.arange(len(layout.rows))
    for gathering, rows in (
        (shared.rows, [part["host"].layout.own for part in parts]),
        (shared.video, list(torch.arange(len(layout.video_index)).split([p["host"].shared.count for p in parts]))),
    ):
        every = torch.cat([torch.cat([x, x.new_full((gathering.most - len(x),), -1)]) for x in rows])
        assert torch.equal(every[gathering.place], places[: len(gathering.place)])


def test_processes_that_share_samples_draw_the_same_ones():
    for kind, given in ((StepSampler, (EqualBatches(13, 4, seed=3), 2)), (ValidationBatchSampler, (13, 2))):
        samplers = [kind(*given, Ranks(rank, 4, context=2)) for rank in range(4)]
        plain = [kind(*given, Ranks(rank, 2)) for rank in range(2)]
        for rank, sampler in enumerate(samplers):
            drawn, wanted = iter(sampler), iter(plain[rank // 2])
            assert [next(drawn) for _ in range(3)] == [next(wanted) for _ in range(3)]


WHOLE = {
    "attention.method": "released",
    "attention.partition.kind": "router",
    "attention.backend": "fla",
    "attention.layers": {"1": {"method": "frame_local"}},
}


@pytest.mark.parametrize(("setting", "value"), WHOLE.items(), ids=WHOLE)
def test_what_needs_all_rows_in_one_process_is_refused(setting, value):
    name = value if isinstance(value, str) else value["1"]["method"]
    with pytest.raises(NsaLabError, match=rf"training\.context_parallel.* 2 processes cannot share .* under {name}"):
        load_config(None, TINY | SHARED | {setting: value})


def test_processes_that_do_not_divide_into_groups_are_refused(tiny):
    with pytest.raises(NsaLabError, match=r"set training\.devices to a multiple of 2"):
        run(tiny(SHARED | {"training.devices": 3}))
