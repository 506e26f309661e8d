import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nsa_lab.attention.trace import Trace
from nsa_lab.cli.app import main
from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model
from nsa_lab.scale import activations, flops
from nsa_lab.scale.keys import SAMPLED, branch_costs
from nsa_lab.scale.load import Load, frame_and_clip, load_of
from nsa_lab.scale.memory import GIB, WORKSPACE, Setup
from nsa_lab.scale.plan import Subject, make_plan
from nsa_lab.scale.rates import GPUS, rate, rows
from nsa_lab.scale.shape import Widths, parameters
from nsa_lab.scale.speed import step_time
from nsa_testing import model_batch, tiny_config

SCALE = Path(__file__).parents[2] / "experiments/results/scale"
STEPS = [
    row
    for name in ("whole-step-h100.csv", "whole-step-2026-11-28.csv")
    for row in csv.DictReader((SCALE / name).read_text().splitlines())
]
BIG = ("model.size=7b", "training.precision=bf16-true", "training.activation_checkpointing=true")
AWAY = {"offload": 5, "selective": 6, "everything": 17}
MEASURED = (  # GPU, method, compiled, video tokens, seconds, peak GiB: forward and backward of one sample, 2026-11-25
    ("h100", "dense", False, 32768, 8.86, 50.9),
    ("h100", "nsa", False, 32768, 8.24, 53.1),
    ("h100", "nsa", True, 32768, 5.48, 49.1),
    ("h200", "nsa", True, 32768, 32768 / 6210, 49),
    ("h200", "nsa", True, 65536, 65536 / 6225, 68),
    ("h200", "nsa", True, 98304, 98304 / 6090, 93),
    ("h200", "dense", True, 32768, 32768 / 5500, 47),
    ("h200", "dense", True, 65536, 65536 / 4270, 65),
    ("h200", "dense", True, 98304, 98304 / 3465, 90),
)


@pytest.fixture(scope="module")
def big():
    methods = ("dense", "nsa")
    return {
        m: Subject(load_config(None, ["tasks.needle.enabled=true", *BIG, f"attention.method={m}"])) for m in methods
    }


@pytest.mark.parametrize(("gpu", "method", "compiled", "tokens", "seconds", "gib"), MEASURED)
def test_measured_steps_of_7b_are_found_again(big, gpu, method, compiled, tokens, seconds, gib):
    """Rates were fitted to the H100's rows: there this holds the formulas together, on the H200 it is a prediction."""
    subject, load = big[method], Load(tokens, 64, text=32)
    setup = Setup("bf16-true", 1, "full", compiled, optimizer=False)
    amounts = subject.flops(subject.costs(load), load)
    step = step_time(subject.widths, subject.parameters, subject.layers, amounts, load, setup, gpu)
    assert step.seconds == pytest.approx(seconds, rel=0.1)
    assert subject.memory(load, setup).total / GIB == pytest.approx(gib, rel=0.06)


def test_steps_that_bench_measured_are_predicted(big):
    """Time within a quarter and memory within a tenth is what plan promises; several GPUs were not fitted to.

    Of recompute=auto those that keep and offload layers as today's does.
    """
    plain = [row for row in STEPS if "as it was" in row["step"] or row["step"] in ("+ chunked loss", "+ compile")]
    auto = [row for row in STEPS if row not in plain and row["commit"] in ("b411389", "856d0c2")]
    assert {row["devices"] for row in plain} == {"1", "2", "4"} and len(auto) == 8
    for row in (*plain, *auto):
        gpus, method = int(row["devices"]), "dense" if row["step"].startswith("dense") else "nsa"
        context = int(row.get("context_parallel") or 1)
        given = [f"training.precision={row['precision']}", f"attention.method={method}", "training.batch_size=1"]
        shared = [f"training.context_parallel={context}", f"training.devices={gpus}"]
        shared += [f"training.accumulate={gpus // context}"]
        if row in auto:
            shared += ["training.recompute=auto", f"training.activation_offload={row['activation_offload']}"]
        found = make_plan(
            load_config(None, ["tasks.needle.enabled=true", *BIG, *given, *shared]),
            subject=big[method],
            gpus=gpus,
            gpu="h200" if "H200" in row["device"] else "h100",
            video_tokens=int(row["video_tokens"]),
            text=int(row["labels"]) + 29,
            answer=int(row["labels"]),
            compiled=row in auto or row["step"] == "+ compile",
            chunked="as it was" not in row["step"],
            optimizer=row["what"] == "training step",
        )
        # A step that ran into the end of memory waits for it, which plan leaves out.
        seconds = float(row["seconds"]) * min(1.0, float(row["busy"]))
        assert found.step.seconds == pytest.approx(seconds, rel=0.1 if context == 1 else 0.15), row
        assert found.memory.total / 2**20 == pytest.approx(float(row["peak_mib"]), rel=0.1), row


def small(*overrides):
    """Heads that all have keys of their own: PyTorch's attention on a CPU would save repeated ones."""
    shape = ("model.hidden_size=96", "model.intermediate_size=200", "model.num_heads=3", "model.num_kv_heads=3")
    return tiny_config(*shape, "model.num_layers=3", "model.vision_layers=2", *overrides)


@pytest.fixture(scope="module")
def load():
    return Load(video_tokens=128, frame_tokens=16, text=24, answer=24)


def batch_of(model, load, dtype):
    batch = model_batch(model, [(10, (load.video_tokens // 16, 4, 4), load.text - 10)])
    return batch | {"pixel_values_videos": batch["pixel_values_videos"].to(dtype)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_saved_tensors_of_a_dense_model_take_what_the_formulas_say(tokenizer, load, dtype):
    model = build_model(small("attention.method=dense"), tokenizer).to(dtype).train()
    widths, e = Widths.of(model.config), dtype.itemsize
    batch = batch_of(model, load, dtype)
    saved = activations.saved_bytes(lambda: model(**batch, use_cache=False).logits, skip=model.parameters())
    design = model.attentions()[0].design
    layer = activations.decoder_layer(widths, design, load, e, False, 0.0)
    vision = activations.vision_layer(widths, load, e, False)
    wanted = widths.layers * layer.saved + widths.vision_layers * vision.saved
    wanted += activations.around_vision(widths, load, e) + activations.around_decoder(widths, load, e)
    assert saved == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("kind", ["mlp", "linear", "constant"])
def test_a_gate_saves_on_the_meta_device_what_it_saves_on_a_cpu(tokenizer, kind):
    model = build_model(small(f"attention.gate.kind={kind}"), tokenizer)
    gate = model.attentions()[0].method.sparse.gate
    x = torch.randn(40, 96, requires_grad=True)
    saved = activations.saved_bytes(lambda: gate(x), skip=gate.parameters())
    wanted = activations.gate_bytes(gate, 96, 4) * 40
    assert saved == pytest.approx(wanted, rel=0.02, abs=64 * 40)


def test_what_sparse_attention_keeps_is_what_the_kernels_say():
    kernels = pytest.importorskip("nsa_kernels.video_nsa")
    runtime = pytest.importorskip("nsa_kernels.runtime")
    config = load_config(None, ["tasks.needle.enabled=true", *BIG])
    widths, load = Subject(config).widths, Load(32768, 64, text=0)
    kept = kernels.kept_bytes(32768, 512, 28, 4, 128)
    row, pair = 2 * 28 * 128 * 32768, 2 * 2 * 4 * 128 * 32768
    gates = 2 * 28 * 3 * 32768
    assert activations.attention(widths, config.attention, load, 2) == 2 * row + 2 * pair + gates + kept
    assert WORKSPACE == runtime.WORKSPACE_BYTES


def test_flops_of_a_dense_model_are_those_that_pytorch_counts(tokenizer, load):
    model = build_model(small("attention.method=dense"), tokenizer).eval()
    batch = batch_of(model, load, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch, use_cache=False)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counted.items() if "attention" in op or "bmm" in op)
    widths = Widths.of(model.config)
    mine = flops.dense_flops(model, widths, replace(load, answer=load.tokens))
    assert sum(mine.values()) == pytest.approx(sum(counted.values()) - attention, rel=0.002)
    # PyTorch counts the whole square of causal attention.
    pairs = widths.layers * 4.0 * 96 * load.tokens**2
    assert attention in (0, pytest.approx(pairs + flops.vision_attention_flops(widths, load), rel=0.002))


def test_a_video_query_reads_what_the_layer_counts_itself(tokenizer):
    model = build_model(small(), tokenizer)
    load = Load(SAMPLED // 16 * 16, 16, text=12)
    trace = Trace("cost", "choice")
    with torch.no_grad():
        model(**batch_of(model, Load(load.video_tokens, 16, text=26), torch.float32), use_cache=False, trace=trace)
    counted = trace.found[1, "cost"]
    found = branch_costs(model.attentions()[1].design, 1, load.layout())
    for name, cost in counted.items():
        assert (found[name].keys, found[name].pooled) == pytest.approx((cost.keys, cost.pooled), rel=1e-5), name


def test_a_long_video_is_counted_by_a_sample_of_its_queries():
    config = load_config(None, ["tasks.needle.enabled=true"])
    found = branch_costs(config.attention, 0, Load(16384, 64).layout())
    assert found["window"].keys == pytest.approx(256 - 256 * 255 / 2 / 16384, rel=0.01)
    assert found["compression"].pooled == pytest.approx(16384 / 64 / 2, rel=0.01)
    assert found["selection"].keys == pytest.approx(2048 - 32 - 2048**2 / 2 / 16384, rel=0.03)


def test_parameters_are_all_counted_once(tokenizer):
    for size in ("nano", "3b"):
        config = tiny_config(f"model.size={size}")
        subject = Subject(config)
        assert sum(subject.parameters.values()) == sum(p.numel() for p in subject.model.parameters())
    assert {"vision tower", "merger", "embeddings", "gates", "language model"} <= set(parameters(subject.model))
    assert "output head" not in subject.parameters, "it is tied"


def test_what_is_computed_again_is_not_kept(big):
    load, subject = Load(17600, 64), big["nsa"]
    peaks, seconds = [], []
    amounts = subject.flops(subject.costs(load), load)
    for policy in ("none", "selective", "full"):
        setup = Setup("bf16-mixed", 8, policy, True)
        peaks.append(subject.memory(load, setup).total)
        seconds.append(
            step_time(subject.widths, subject.parameters, subject.layers, amounts, load, setup, "h100").seconds
        )
    assert peaks == sorted(peaks, reverse=True) and seconds == sorted(seconds)
    assert peaks[0] > 2 * peaks[1] > 2.4 * peaks[2]


def test_more_gpus_hold_longer_samples_and_shards_shrink(big):
    made = make_plan(load_config(None, ["tasks.needle.enabled=true", "model.size=7b"]), gpus=8, policy="full")
    peaks = [fit.peak_gib for fit in made.fits]
    assert peaks == sorted(peaks, reverse=True) and not made.fits[0].fits and made.fits[-1].fits
    longest = [fit.longest for fit in made.fits]
    assert longest == sorted(longest) and longest[-1] > 30000
    at_most = Load(longest[-1], made.load.frame_tokens)
    subject = Subject(load_config(None, ["tasks.needle.enabled=true", "model.size=7b"]))
    assert subject.memory(at_most, Setup(gpus=64)).total / GIB < GPUS["h100"][1]


def test_gpus_beyond_the_samples_of_a_step_wait_and_are_paid():
    made = [make_plan(load_config("experiments/scale/videonsa_7b.yaml"), gpus=n) for n in (16, 32, 64)]
    hours = [plan.hours(216_000) for plan in made]
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.02) and hours[1] == pytest.approx(hours[2], rel=0.02)
    assert "32 of 64 GPUs have none" in " ".join(made[2].notes)


def test_offload_that_cannot_be_hidden_is_said(big):
    batch = ["tasks.needle.enabled=true", "training.batch_size=1", "training.accumulate=8"]
    auto = [*batch, *BIG, "training.recompute=auto"]
    asked = [load_config(None, [*auto, f"training.activation_offload={gib}"]) for gib in (20, 44)]
    little, much = (make_plan(own, subject=big["nsa"], gpus=8, video_tokens=17_600) for own in asked)
    assert "slows this down" in " ".join(much.notes) and much.step.late > 5 * little.step.late
    assert "slows this down" not in " ".join(little.notes)


def test_gpus_that_share_a_sample_have_half_of_it_and_gather_keys():
    config = load_config("experiments/scale/shared_128k.yaml", ["training.context_parallel=1"])
    subject = Subject(config)
    shared = load_config("experiments/scale/shared_128k.yaml")
    alone, both = (make_plan(own, gpus=2, subject=subject) for own in (config, shared))
    assert both.forward_flops == pytest.approx(alone.forward_flops / 2, rel=1e-3)
    assert both.step.exposed > 0 and both.step.seconds == pytest.approx(alone.step.seconds / 2, rel=0.05)
    halves = both.memory.parts["activations"] / alone.memory.parts["activations"]
    assert halves < 0.55
    assert not alone.fits[-1].fits and both.fits[0].fits and [fit.gpus for fit in both.fits] == [2, 8, 64]
    assert both.setup.accumulate == alone.setup.accumulate == 1 and not any("have none" in note for note in both.notes)


def test_every_gpu_has_every_rate_and_each_says_where_it_is_from():
    kinds = {gpu: {(row.kind, row.direction) for row in rows() if row.gpu == gpu} for gpu in GPUS}
    assert kinds["h100"] == kinds["h200"]
    assert {row.rate.how for row in rows()} == {"measured", "derived", "estimate"}
    assert all(row.rate.value > 0 and row.rate.source for row in rows())


def test_rates_lie_between_those_of_the_lengths_around():
    low, middle, high = (rate("h200", "compression", "forward", tokens, 64).value for tokens in (8192, 16384, 32768))
    assert low < middle < high
    assert (
        rate("h200", "compression", "forward", 10**7, 64).value == rate("h200", "compression", "forward", 131072).value
    )


@pytest.mark.parametrize(("size", "how"), [(4, "estimate"), (64, "measured"), (96, "estimate"), (128, "measured")])
def test_a_rate_of_other_blocks_is_an_estimate(size, how):
    assert rate("h200", "selection", "both", 32768, size).how == how
    assert rate("h200", "dense", "both", 32768, size).how == "measured"


def test_the_longest_sample_of_the_settings_is_planned():
    data = ["data.annotations=a.json", "data.videos=v", "data.max_frames=550", "data.max_pixels=50176"]
    assert load_of(load_config(None, data)).video_tokens == 275 * 64
    assert load_of(load_config(None, data), 1000).video_tokens == 1024
    assert load_of(load_config(None, [*data, "data.max_tokens=4096"])).video_tokens == 3840
    clips = load_of(load_config(None, ["tasks.needle.enabled=true"]))
    assert (clips.video_tokens, clips.frame_tokens) == (128, 4)


def test_a_batch_of_a_budget_holds_what_goes_into_it():
    config = load_config("experiments/scale/videonsa_7b.yaml", ["training.tokens_per_batch=36864"])
    assert [load_of(config, tokens).samples for tokens in (4096, 17600, 36000)] == [8, 2, 1]
    made = make_plan(config, gpus=8, video_tokens=17600)
    assert made.batch == 64 and made.load.samples == 2 and made.setup.accumulate == 4
    refused = make_plan(config, gpus=8, video_tokens=36864).notes
    assert any("tokens_per_batch=36864 does not hold this sample of 37,120 tokens" in note for note in refused)
    assert not any("tokens_per_batch" in note for note in made.notes)


def test_plan_prints_tables_and_json(capsys, tmp_path):
    auto = ("training={activation_checkpointing: true, recompute: auto, activation_offload: 3}",)
    auto += ("attention.reducer.kind=visionzip", f"data.cache_dir={tmp_path}")
    with pytest.raises(SystemExit) as end:
        main(["plan", "experiments/smoke.yaml", "--gpus", "2", "--price", "2", *auto])
    printed = capsys.readouterr().out
    assert not end.value.code and "GPU-hours" in printed and "bound by launches" in printed
    assert "checkpointing auto (layers: 1 offload, 2 everything)" in printed and "2 on a host up to 6 GiB" in printed
    assert "(decoder layers, in the host's memory)" in printed and "copies to the host that are late" in printed
    assert "kind=visionzip is not modelled: what it drops is counted as if it stayed (25.0% stay" in printed
    assert "rates are those of bf16; training.precision=32-true" in printed
    with pytest.raises(SystemExit):
        main(["plan", "experiments/smoke.yaml", "--json", "--samples", "10", "--price", "2"])
    made = json.loads(capsys.readouterr().out)
    assert made["price"] == pytest.approx(2 * made["gpu_hours"]) and made["samples"] == 10
    assert made["memory_bytes"]["total"] > 0 and made["seconds"]["selection"]["how"] == "estimate"


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        (["model.path=Qwen/Qwen2.5-VL-Huge-Instruct"], {}, "its name ends in no known size"),
        ([], {"gpu": "b200"}, "--gpu 'b200' has no measured rates; known: h100, h200"),
        ([], {"gpus": 0}, "--gpus 0 is not positive"),
        ([], {"video_tokens": -1}, "--tokens -1 is not positive"),
        ([], {"answer": 0}, "--labelled 0 is not positive"),
        (["training.context_parallel=3"], {}, "--gpus 8 are no groups of training.context_parallel=3"),
        ([], {"answer": 50, "text": 49}, "--labelled 50 is more than the --text 49"),
        ([], {"video_tokens": 10**8}, "--tokens 100000000 is more than plan looks at, 1048576"),
        ([], {"text": 2**20 + 1}, "--text 1048577 is more than"),
        (
            ["tasks.needle.frames=4000000", "data.max_frames=4000000"],
            {},
            r"data\.\* allows samples of 8,000,000 video tokens; give --tokens",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(changes, options, said):
    with pytest.raises(NsaLabError, match=said):
        make_plan(load_config(None, ["tasks.needle.enabled=true", *changes]), **options)


@pytest.mark.parametrize(
    ("given", "gpus", "kept", "compiled"),
    [
        ([], 32, {"full": 1}, True),
        (["training.activation_checkpointing=false"], 32, {"everything": 1}, True),
        (["training.recompute=selective"], 1, {"selective": 1}, True),
        (["training.recompute=auto", "model.compile=false"], 32, {"selective": 20, "everything": 8}, False),
        (["training.recompute=auto"], 1, {"full": 28}, True),
        (["training.recompute=auto", "training.activation_offload=20"], 32, AWAY, True),
    ],
)
def test_what_is_planned_is_what_the_config_trains(big, given, gpus, kept, compiled):
    config = load_config("experiments/scale/videonsa_7b.yaml", given)
    made = make_plan(config, gpus=gpus, subject=big["nsa"])
    assert (Counter(made.setup.each), made.setup.compiled, made.setup.chunked) == (kept, compiled, True)
    assert sum(made.host.values()) <= config.training.activation_offload * GIB


def test_a_clip_counts_as_the_frames_that_are_shown_of_it():
    half = load_config("experiments/demo.yaml", ["data.fps=4.0"])
    assert frame_and_clip(load_config("experiments/demo.yaml")) == (4, 72) and frame_and_clip(half) == (4, 36)
