import math
import os
import signal

import pytest
import torch

from nsa_lab.bench.layer import measure_layer
from nsa_lab.bench.measure import Point
from nsa_lab.bench.parts import measure_whole, run_parts
from nsa_lab.bench.processes import first_answer
from nsa_lab.bench.profile import covered, kind_of, model_flops, own_kernels
from nsa_lab.bench.run import run_bench
from nsa_lab.bench.step import build_step
from nsa_lab.config import flatten, load_config, to_dict, to_yaml
from nsa_lab.errors import NsaLabError
from nsa_testing import tiny_config


def short_of_memory(*_):
    return None if os.environ["RANK"] == "1" else 1.0


def killed(*_):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def mended_by_the_user(*_):
    if os.environ["RANK"] == "1":
        raise NsaLabError("set it otherwise")
    torch.distributed.barrier()


@pytest.mark.parametrize("method", ["dense", "nsa"])
def test_one_layer_is_measured_at_the_head_layout_of_its_size(method):
    config = tiny_config("model.num_heads=4", f"attention.method={method}", "training.accelerator=cpu")
    measured = measure_layer(to_dict(config), Point("nano", method, 128), repeats=2)
    assert 0 < measured.seconds < 60
    assert math.isfinite(measured.peak_mib) and measured.base_mib > 0


@pytest.mark.parametrize("workers", ["fork"], indirect=True)
def test_a_run_is_measured_with_its_shape_under_its_name(workers, clips, tmp_path, capsys):
    run = tmp_path / "my-run"
    run.mkdir()
    small = tiny_config("model.hidden_size=32", "model.num_heads=2", "model.num_kv_heads=1", f"data.cache_dir={clips}")
    (run / "config.yaml").write_text(to_yaml(small))
    asked = {"tasks.needle.enabled": True, "model.path": f"{run}/", "data.cache_dir": str(clips), "training.threads": 1}
    rows = run_bench(load_config(None, asked), lengths=[64], repeats=1, out=None)
    assert [(row["size"], row["method"], row["video_tokens"]) for row in rows] == [
        ("my-run", "dense", 64),
        ("my-run", "nsa", 64),
    ]
    assert all(0 < row["seconds"] < 60 for row in rows) and capsys.readouterr().out.count("my-run") == 2


def test_a_whole_step_is_measured_as_it_trains(clips):
    config = tiny_config("training.activation_checkpointing=true", "training.recompute=selective")
    tree = to_dict(load_config(None, flatten(to_dict(config)) | {"data.cache_dir": str(clips)}))
    found = measure_whole(tree, 64, repeats=1, optimizer=True, labels=3, chunks=True)
    assert 0 < found.seconds < 60 and found.peak_mib >= found.base_mib > 0
    assert found.tokens_per_second * found.seconds > 64
    assert math.isnan(found.mfu) and math.isnan(found.waits)


@pytest.mark.slow
def test_processes_that_share_the_weights_are_measured_together(clips, tmp_path, capsys):
    given = flatten(to_dict(tiny_config("training.accelerator=cpu"))) | {"data.cache_dir": str(clips)}
    asked = {"lengths": [64], "repeats": 1, "optimizer": True, "labels": 3, "only": ["+ chunked loss"]}
    (one,) = run_parts(load_config(None, given), out=tmp_path / "one.csv", **asked)
    (two,) = run_parts(load_config(None, given | {"training.devices": 2}), out=tmp_path / "two.csv", **asked)
    assert (one["devices"], two["devices"]) == (1, 2) and "each of 2 processes" in capsys.readouterr().out
    assert two["tokens_per_second"] * two["seconds"] == pytest.approx(one["tokens_per_second"] * one["seconds"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "expected"),
    [(short_of_memory, None), (math.hypot, 5.0), (killed, None)],
    ids=["short", "whole", "killed"],
)
def test_the_first_process_answers_unless_one_is_short_of_memory(measure, expected):
    assert first_answer(measure, (3.0, 4.0), 2, gpus=False) == expected


@pytest.mark.slow
def test_what_the_user_can_mend_is_said_by_whichever_process_meets_it():
    with pytest.raises(NsaLabError, match="set it otherwise"):
        first_answer(mended_by_the_user, (), 2, gpus=False)


def test_time_that_two_kernels_share_counts_once():
    assert covered([(0, 2), (5, 6), (1, 3), (1, 2)]) == 4 and covered([]) == 0


def test_flops_are_six_a_weight_and_row_and_attention_on_top(clips):
    config = flatten(to_dict(tiny_config("attention.method=dense"))) | {"data.cache_dir": str(clips)}
    step = build_step(to_dict(load_config(None, config)), Point("", "", 64), optimizer=False)
    model = step.model
    decoder = sum(p.numel() for name, p in model.model.language_model.layers.named_parameters() if p.ndim == 2)
    vision = sum(p.numel() for name, p in model.model.visual.named_parameters() if p.ndim > 1 and "merger" not in name)
    merger = sum(p.numel() for name, p in model.model.visual.merger.named_parameters() if p.ndim == 2)
    tokens, labelled = step.batch["input_ids"].numel(), int((step.batch["labels"] != -100).sum())
    attention = model.attentions()[0]
    pairs = sum(range(1, 65)) * 4 * attention.num_heads * attention.head_dim * 2
    expected = 6 * (decoder * tokens + vision * 256 + merger * 64 + model.lm_head.weight.numel() * labelled) + 3 * pairs
    assert model_flops(step) == pytest.approx(expected, rel=1e-6)


def test_kernels_are_told_by_name():
    import nsa_kernels  # noqa: F401

    own = set(own_kernels())
    assert own and all("triton_" not in name for name in own)
    for name, kind in {
        next(iter(own)): "sparse attention",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128": "dense attention",
        "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NNT": "products",
        "triton_poi_fused_mul_silu_0": "compiled",
        "Memcpy DtoD (Device -> Device)": "copies",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "other elementwise",
    }.items():
        assert kind_of(name, own) == kind, name


def test_an_unknown_part_is_named():
    with pytest.raises(NsaLabError, match=r"'\+ magic' is no row of --parts; known: dense, as it was; .*\+ compile"):
        run_parts(tiny_config(), lengths=[64], repeats=1, out=None, optimizer=True, labels=1, only=["+ magic"])
