"""A prefill in chunks: logits, cache and answers are those of the whole prompt, in less memory."""

import os
from itertools import pairwise

import pytest
import torch

from nsa_lab.attention.trace import Trace
from nsa_lab.baselines import REDUCERS
from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model
from nsa_lab.model.chunks import chunk_bounds
from nsa_lab.partition import PARTITIONERS
from nsa_testing import assert_close, model_batch, requires_gpu, tiny_config, token_layout

SHAPES = [(3, (4, 3, 3), 1), (2, (3, 2, 3), 4)]
"""Frames of 9 and 6 tokens, 64 tokens with the text before, between and after them."""
DESIGNS = {
    "paper": (),
    "dense": ("attention.method=dense",),
    "dense, narrow text": ("attention.method=dense", "attention.text_window=3"),
    "compression alone": ("attention.branches.selection.enabled=false", "attention.branches.window.enabled=false"),
    "selection alone": ("attention.branches.compression.enabled=false", "attention.branches.window.enabled=false"),
    "window alone": ("attention.branches.compression.enabled=false", "attention.branches.selection.enabled=false"),
    "all keys, mlp, long blocks": (
        "attention.context=all",
        "attention.compressor.kind=mlp",
        "attention.partition.block_size=7",
        "attention.branches.compression.log_length_bias=true",
    ),
    "query tiles": ("attention.branches.selection.query_tile=4", "attention.text_window=5"),
    "forced blocks": ("attention.branches.selection.initial_blocks=1", "attention.branches.selection.local_blocks=2"),
    "group of 7": ("model.hidden_size=112", "model.num_heads=7", "model.num_kv_heads=1"),
    "layers that differ": (
        "model.num_layers=3",
        "attention.layers.0.method=dense",
        "attention.layers.2.branches.window.size=2",
    ),
    **{kind: (f"attention.partition.kind={kind}",) for kind in PARTITIONERS if kind != "uniform"},
}
QUICK = ("paper", "dense, narrow text", "all keys, mlp, long blocks", "query tiles", "group of 7", "tile", "router")


def make(tokenizer, *overrides):
    torch.manual_seed(0)
    model = build_model(tiny_config(*overrides), tokenizer).eval().double()
    for name, parameter in model.named_parameters():
        if ".sparse." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def packed(model, shapes=SHAPES):
    batch = model_batch(model, shapes)
    return batch | {"pixel_values_videos": batch["pixel_values_videos"].double()}


def prompt(model, shapes=SHAPES):
    """One row, whose videos are those of one sample: text, video, text, video, text."""
    batch = packed(model, shapes)
    batch.pop("position_ids")
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def padded(model):
    """Two rows of unequal length, the shorter one padded before it."""
    rows = [prompt(model, [shape]) for shape in SHAPES]
    longest = max(row["input_ids"].shape[1] for row in rows)
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    both = {
        name: torch.cat([torch.nn.functional.pad(row[name], (longest - row[name].shape[1], 0)) for row in rows])
        for name in names
    }
    return both | {name: torch.cat([row[name] for row in rows]) for name in ("pixel_values_videos", "video_grid_thw")}


@torch.no_grad()
def check(model, batch, size, tolerance=1e-11):
    """Logits and caches of a prefill in chunks of `size` against those of the whole."""
    whole, chunked = (model(**batch, use_cache=True, prefill_chunk=chunk) for chunk in (None, size))
    assert_close(chunked.logits, whole.logits, tolerance, "logits")
    if whole.past_key_values is not None:
        layers = zip(whole.past_key_values.layers, chunked.past_key_values.layers, strict=True)
        for number, (one, other) in enumerate(layers):
            assert_close(other.keys, one.keys, tolerance, f"keys of layer {number}")
            assert_close(other.values, one.values, tolerance, f"values of layer {number}")


@pytest.mark.parametrize(
    "overrides",
    [pytest.param(own, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, own in DESIGNS.items()],
)
def test_every_design_is_the_whole_prompts(tokenizer, overrides):
    """Chunks of 3 are smaller than a block and a frame, and end inside both; the others leave a ragged tail."""
    model = make(tokenizer, *overrides)
    for size in (3, 17):
        check(model, prompt(model), size)


@pytest.mark.parametrize("size", [4, 1000, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 9, 40, 64))])
def test_every_size_is_the_whole_prompts(tokenizer, size):
    model = make(tokenizer)
    check(model, prompt(model), size)


def test_rows_beside_one_another_and_packed_samples(tokenizer):
    model = make(tokenizer)
    check(model, padded(model), 7)
    check(model, packed(model, [*SHAPES, (4, (0, 0, 0), 3)]), 7)


@pytest.mark.parametrize("reducer", [kind for kind in REDUCERS if kind != "none"])
def test_reducers_drop_the_same_tokens(tokenizer, reducer):
    """Those of the tower see what all of it says, those of layers what the whole layer did."""
    model = make(tokenizer, "model.num_layers=4", f"attention.reducer.kind={reducer}")
    check(model, prompt(model), 7)
    check(model, padded(model), 5)


@pytest.mark.parametrize("kind", ["nsa", "dense"])
def test_answers_after_a_chunked_prefill(tokenizer, kind):
    model = make(tokenizer, f"attention.method={kind}")
    given = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    given |= {"output_scores": True, "return_dict_in_generate": True}
    widest = rows_at_once(model)
    whole = model.generate(**padded(model), **given)
    assert max(widest["mlp"]) > 7 and max(widest["tower"]) > 4 * 9
    widest["mlp"].clear(), widest["tower"].clear()
    chunked = model.generate(**padded(model), **given, prefill_chunk_size=7)
    assert max(widest["mlp"]) == 7 and max(widest["tower"]) == 4 * 9
    assert torch.equal(whole.sequences, chunked.sequences)
    for one, other in zip(whole.scores, chunked.scores, strict=True):
        assert_close(other, one, 1e-11)


def rows_at_once(model):
    """Filled as the model runs: how many rows the first MLP, and how many patches the tower, takes at once."""
    found = {"mlp": [], "tower": []}
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(
        lambda module, given: found["mlp"].append(given[0].shape[-2])
    )
    model.model.visual.register_forward_pre_hook(lambda module, given: found["tower"].append(len(given[0])))
    return found


def test_the_tower_takes_whole_frames_at_a_time(tokenizer):
    """Never more than asked for, or one frame; in the order of the videos."""
    model = make(tokenizer)
    widest = rows_at_once(model)["tower"]
    batch = prompt(model)

    def features(chunk):
        given = batch["pixel_values_videos"], batch["video_grid_thw"]
        return model.get_video_features(*given, prefill_chunk=chunk).pooler_output

    whole = features(None)
    for chunk, most in ((1, 9), (13, 12), (20, 18), (1000, 36)):
        widest.clear()
        found = features(chunk)
        assert max(widest) == 4 * most
        assert [len(x) for x in found] == [len(x) for x in whole] == [36, 18]
        for one, other in zip(whole, found, strict=True):
            assert_close(other, one, 1e-11)


@pytest.mark.parametrize("tile", [1, 2, 4, 30])
@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_no_tile_of_queries_is_parted(size, tile):
    layout = token_layout([(3, (4, 3, 3), 2), (0, (2, 2, 1), 3)])
    cuts = chunk_bounds(layout, size, tile).tolist()
    lengths = [end - begin for begin, end in pairwise(cuts)]
    assert cuts[0] == 0 and cuts[-1] == len(layout.rows)
    assert min(lengths) >= 1 and max(lengths) <= size + min(tile, 9) - 1
    inside = [cut for cut in cuts[:-1] if layout.is_video[cut]]
    assert all(int(layout.cell[cut]) % tile == 0 for cut in inside)
    if tile == 1:
        assert cuts == sorted({*range(0, len(layout.rows), size), len(layout.rows)})


@pytest.mark.parametrize(
    ("overrides", "given", "said"),
    [
        ((), {"prefill_chunk": 0}, "prefill_chunk=0 is no number of tokens"),
        ((), {"prefill_chunk": 2.5}, "prefill_chunk=2.5 is no number of tokens"),
        ((), {"trace": Trace("choice")}, "cannot record choice"),
        (("attention.method=released",), {}, "released computes whole samples only; leave prefill_chunk out"),
        (("attention.method=frame_local",), {}, "frame_local computes whole samples only"),
        (("attention.method=minference", "attention.layers.0.method=nsa"), {}, "minference computes whole samples"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_cut_is_refused(tokenizer, overrides, given, said):
    model = make(tokenizer, *overrides)
    with pytest.raises(NsaLabError, match=said):
        model(**prompt(model) | {"prefill_chunk": 8} | given)


def test_gradients_and_caches_that_are_filled_are_refused(tokenizer):
    model = make(tokenizer)
    batch = prompt(model)
    with pytest.raises(NsaLabError, match=r"under torch\.no_grad"):
        model(**batch, prefill_chunk=8)
    with torch.no_grad():
        cache = model(input_ids=batch["input_ids"][:, :3], use_cache=True).past_key_values
        with pytest.raises(NsaLabError, match="not what comes after 3 cached tokens"):
            model(input_ids=batch["input_ids"][:, -3:], past_key_values=cache, prefill_chunk=2)


@pytest.mark.gpu
@requires_gpu
@pytest.mark.parametrize("method", ["nsa", "dense"])
@torch.no_grad()
def test_a_long_video_on_a_gpu_takes_less_memory(tokenizer, method):
    """By the kernels, in float32; 16,404 tokens through MLPs that are as wide beside the hidden size as the 7B's."""
    torch.backends.cuda.matmul.allow_tf32 = False
    wide = ("model.hidden_size=448", "model.num_heads=7", "model.num_kv_heads=1", "model.intermediate_size=2368")
    blocks = ("attention.partition.block_size=64", "attention.branches.window.size=256")
    model = make(tokenizer, *wide, *blocks, f"attention.method={method}").float().cuda()
    batch = {name: x.cuda() for name, x in prompt(model, [(8, (64, 16, 16), 12)]).items()}
    batch["pixel_values_videos"] = batch["pixel_values_videos"].float()
    logits, peaks = [], []
    for chunk in (None, None, 1000):  # the first one compiles kernels
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        logits.append(model(**batch, use_cache=True, prefill_chunk=chunk, logits_to_keep=512).logits)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert_close(logits[2], logits[1], 1e-3)
    assert peaks[2] < peaks[1] / 2, f"{peaks[2] / 2**20:.0f} MiB in chunks, {peaks[1] / 2**20:.0f} whole"


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("method", ["nsa", "dense"])
def test_the_kernels_in_chunks(tokenizer, method):
    """In Triton's interpreter and in float32, which is what the kernels take."""
    model = make(tokenizer, "attention.backend=triton", f"attention.method={method}", "model.num_layers=1").float()
    batch = prompt(model, [(2, (3, 2, 2), 3)])
    check(model, batch | {"pixel_values_videos": batch["pixel_values_videos"].float()}, 7, 1e-5)
