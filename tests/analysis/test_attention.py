"""What is measured of a model's attention, against loops in float64 over its queries and against cases made by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from nsa_lab.analysis.attention import overlap, sinks
from nsa_lab.analysis.attention.gates import GateSums, gate_rows, similarity_rows
from nsa_lab.analysis.attention.overlap import DISTANCES, TILES, QueryOverlap, overlap_rows, tile_union
from nsa_lab.analysis.attention.sinks import Received, SinkSums, judge, light_below, position_rows, sink_rows
from nsa_lab.analysis.attention.spent import Spent, budget_rows
from nsa_lab.analysis.attention.watch import branches_of, watch_clips
from nsa_lab.attention import groups
from nsa_lab.attention.branches import BRANCHES
from nsa_lab.attention.budget import Cost
from nsa_lab.attention.trace import Trace
from nsa_lab.model import build_model
from nsa_testing import model_batch, tiny_config

SHAPES = [[(3, (5, 2, 3), 4)], [(2, (3, 3, 3), 5)]]
HEADS, GROUPS = 4, 2
DESIGN = (
    "attention.partition.kind=frame",
    "attention.partition.block_size=4",
    "attention.branches.compression.log_length_bias=true",
    "attention.layers.2.partition.block_size=2",
    "attention.layers.3.method=dense",
    "model.num_layers=4",
)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    made = build_model(tiny_config(*DESIGN), tokenizer)
    for name, parameter in made.named_parameters():
        if ".method." in name or "v_proj" in name:
            nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


@pytest.fixture(scope="module")
def batches(model):
    made = [model_batch(model, shapes, seed) for seed, shapes in enumerate(SHAPES)]
    return [batch | {"pixel_values_videos": batch["pixel_values_videos"].double()} for batch in made]


@pytest.fixture(scope="module")
def findings(model, batches):
    """Measured in pieces of few rows, so that the pieces are put together again."""
    before = groups.PIECE_BYTES
    groups.PIECE_BYTES = 1
    try:
        return watch_clips(model, batches)
    finally:
        groups.PIECE_BYTES = before


@pytest.fixture(scope="module")
def traces(model, batches):
    found = []
    for clip in batches:
        trace = Trace("gates", "choice", "inputs", "dense")
        with torch.no_grad():
            model(**clip, use_cache=False, trace=trace)
        found.append(trace)
    return found


def read_by(name, inputs, choice, row, group):
    """The keys, or blocks, that a query reads by the definition of the branch."""
    place, partition = int(inputs.context.query_index[row]), getattr(inputs, "partition", None)
    if name == "compression":
        return [j for j, end in enumerate(partition.block_end.tolist()) if end <= place]
    if name == "selection":
        chosen = set(choice[row, group].tolist()) - {-1}
        return [j for j in range(place + 1) if int(partition.block_id[j]) in chosen]
    return list(range(max(0, place - 5) if name == "window" else 0, place + 1))


def weights(name, inputs, choice):
    """[Tq, K, H] the attention weights of a branch, and [K, H] how many queries read each key; loops alone."""
    keys = inputs.pooled_k if name == "compression" else inputs.k
    found = torch.zeros(len(inputs.q), len(keys), HEADS, dtype=torch.float64)
    readers = torch.zeros(len(keys), HEADS, dtype=torch.int64)
    for row in range(len(inputs.q)):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            seen = read_by(name, inputs, choice, row, group)
            logits = [float(inputs.q[row, head] @ keys[j, group]) * inputs.scale for j in seen]
            if name == "compression":
                logits = [
                    x + float(inputs.partition.lengths[j].double().log()) for x, j in zip(logits, seen, strict=True)
                ]
            found[row, seen, head] = torch.tensor(logits, dtype=torch.float64).softmax(0)
            readers[seen, head] += 1
    return found, readers


def values_of(name, inputs):
    return inputs.pooled_v if name == "compression" else inputs.v


def direct(traces, layer, name):
    """[(attention, readers, value norms)] of each clip."""
    found = []
    for trace in traces:
        inputs = trace.found.get((layer, "inputs")) or trace.found[layer, "dense"]
        choice = trace.found.get((layer, "choice"))
        if name != "gated":
            weight, readers = weights(name, inputs, choice)
            total = weight.sum(0)
        else:
            total, readers = torch.zeros(len(inputs.k), HEADS, dtype=torch.float64), None
            for column, branch in enumerate(BRANCHES):
                weight, _ = weights(branch, inputs, choice)
                share = (weight * trace.found[layer, "gates"][:, None, :, column]).sum(0)
                for key in range(len(inputs.k)):
                    block = int(inputs.partition.block_id[key])
                    pooled = branch == "compression"
                    total[key] += share[block] / int(inputs.partition.lengths[block]) if pooled else share[key]
            places = inputs.context.query_index
            readers = torch.tensor([[int((places >= key).sum())] * HEADS for key in range(len(inputs.k))])
        found.append((total / readers.clamp(min=1), readers, values_of(name, inputs).norm(dim=-1)))
    return found


def count_sinks(found):
    """(pairs, attended, light, sinks) over clips and heads, one at a time."""
    counts = np.zeros(4, int)
    for attention, readers, norm in found:
        for head in range(HEADS):
            keys = [key for key in range(len(readers)) if readers[key, head]]
            own = [float(norm[key, head // (HEADS // GROUPS)]) for key in keys]
            low, middle, high = np.percentile(own, [25, 50, 75])
            for key, size in zip(keys, own, strict=True):
                much, light = float(attention[key, head]) > 0.1, size < middle - 2 * (high - low)
                counts += [1, much, light, much and light]
    return counts.tolist()


LAYERS = [(0, name) for name in (*BRANCHES, "gated")] + [(2, "selection"), (2, "gated"), (3, "dense")]


@pytest.mark.parametrize("layer, name", LAYERS)
def test_sinks_are_counted_as_in_loops_over_queries(findings, traces, layer, name):
    wanted = direct(traces, layer, name)
    row = next(row for row in sink_rows(findings.sinks) if (row["layer"], row["branch"]) == (layer, name))
    assert row["most_received"] == pytest.approx(max(float(attention.max()) for attention, _, _ in wanted), rel=1e-9)
    assert [row["keys"], row["attended"], row["light"], row["sinks"]] == count_sinks(wanted)
    assert row["attended"] > 0


def test_what_each_key_receives_is_the_mean_over_its_readers(model, traces):
    for layer in (0, 1, 2):
        inputs, gates = traces[0].found[layer, "inputs"], traces[0].found[layer, "gates"]
        got, total = sinks.branch_received(branches_of(model.attentions()[layer].method), inputs, gates)
        for name, own in {**got, "gated": total}.items():
            attention, readers, norm = direct(traces[:1], layer, name)[0]
            assert torch.equal(own.readers, readers), name
            assert torch.allclose(own.attention, attention, rtol=0, atol=1e-12), name
            assert torch.allclose(own.norm, norm)
        ids = inputs.partition.block_id
        centres = [float(torch.arange(30.0)[ids == block].mean()) / 30 for block in range(inputs.partition.num_blocks)]
        assert got["compression"].place.tolist() == pytest.approx(centres)
    own = sinks.dense_received(traces[0].found[3, "dense"])
    attention, readers, norm = direct(traces[:1], 3, "dense")[0]
    assert torch.equal(own.readers, readers) and torch.allclose(own.attention, attention, rtol=0, atol=1e-12)
    assert readers[:3].unique().tolist() == [30] and readers[33:].unique().tolist() == [0], "text before and after"


def test_more_heads_to_a_group_than_dims_take_more_passes():
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(7, 5, 6, dtype=torch.float64, generator=generator)  # queries, keys, heads of one group
    values = torch.randn(5, 1, 4, dtype=torch.float64, generator=generator).requires_grad_()
    gate = torch.rand(7, 6, dtype=torch.float64, generator=generator)
    out = torch.einsum("qkh,kd->qhd", weight, values[:, 0])
    assert torch.allclose(sinks.column_sums(out, [values])[0][0], weight.sum(0))
    both = sinks.column_sums(out, [values], torch.stack([gate, gate * 2]))[0]
    wanted = (weight * gate[:, None]).sum(0)
    assert torch.allclose(both, torch.stack([wanted, 2 * wanted]))


def test_a_sink_is_attended_above_a_tenth_and_light_below_median_minus_two_iqr():
    norm = torch.tensor([10.0, 10.5, 11.0, 11.5, 12.0, 1.0, 1.0, 0.0])[:, None]
    attention = torch.tensor([0.9, 0.0, 0.0, 0.0, 0.0, 0.2, 0.1, 0.9], dtype=torch.float64)[:, None]
    readers = torch.tensor([3, 3, 3, 3, 3, 3, 3, 0])[:, None]  # the last key is read by nobody, and moves no quantile
    assert light_below(norm[:6, 0]) == pytest.approx(10.75 - 2 * (11.375 - 10.125))
    # of seven norms 1, 1, 10, 10.5, 11, 11.5, 12: quartiles 5.5 and 11.25, so that nothing is below 10.5 - 11.5
    assert not judge(Received(attention, readers, norm, norm[:, 0])).light.any()
    readers[6] = 0
    judged = judge(Received(attention, readers, norm, norm[:, 0]))
    assert judged.sinks[:, 0].tolist() == [False] * 5 + [True, False, False]
    assert judged.counted.sum() == 6 and judged.attended[:, 0].nonzero().flatten().tolist() == [0, 5]
    readers[6], norm[2:5] = 3, 10.5
    judged = judge(Received(attention, readers, norm[:, 0][:, None], norm[:, 0]))
    assert not judged.attended[6], "0.1 is not above 0.1"
    assert np.isnan(light_below(norm[:0, 0]))


def test_sinks_are_counted_where_they_stand():
    sums, keys = SinkSums(), 40
    attention = torch.zeros(keys, 2, dtype=torch.float64)
    norm = torch.full((keys, 1), 5.0)
    attention[[0, 39], 0] = 0.5
    norm[[0, 39]] = 1.0
    sums.add(Received(attention, torch.ones(keys, 2, dtype=torch.int64), norm, torch.arange(keys) / keys))
    rows = position_rows({(0, "window"): sums})
    assert [row["sinks"] for row in rows] == [1] + [0] * 18 + [1] and {row["keys"] for row in rows} == {4}
    assert sink_rows({(0, "window"): sums})[0]["ratio"] == 2 / 80


def test_gates_are_numpys_mean_deviation_and_correlation(findings, traces):
    assert list(findings.gates) == [0, 1, 2]
    rows, pairs = gate_rows(findings.gates), similarity_rows(findings.gates)
    for layer in findings.gates:
        gates = torch.cat([trace.found[layer, "gates"] for trace in traces]).numpy()
        for column, branch in enumerate(BRANCHES):
            own = [row for row in rows if (row["layer"], row["branch"]) == (layer, branch)]
            assert [row["mean"] for row in own] == pytest.approx(gates[:, :, column].mean(0).tolist())
            assert [row["deviation"] for row in own] == pytest.approx(gates[:, :, column].std(0).tolist())
            table = np.corrcoef(gates[:, :, column].T)
            for row in pairs:
                if (row["layer"], row["branch"]) == (layer, branch):
                    assert row["correlation"] == pytest.approx(table[row["head"], row["other"]], abs=1e-9)
    assert len(pairs) == 3 * len(BRANCHES) * 6


def test_a_gate_that_does_not_vary_has_no_correlation():
    sums = GateSums(["window"], 3)
    sums.add(torch.tensor([[[0.3], [0.1], [0.9]], [[0.3], [0.2], [0.7]]]))
    table = sums.similarity()[0]
    assert table[0].isnan().all() and table[:, 0].isnan().all() and float(table[1, 2]) == pytest.approx(-1)


def sets(choice):
    return [[set(blocks) - {-1} for blocks in row] for row in choice.tolist()]


def test_neighbouring_queries_share_what_sets_share(findings, traces):
    rows = list(overlap_rows(findings.queries, {}))
    for layer in (0, 1, 2):
        per_clip = [(sets(t.found[layer, "choice"]), t.found[layer, "inputs"].partition) for t in traces]
        for distance in DISTANCES:
            every, free = [], []
            for chosen, partition in per_clip:
                ends = partition.block_end.tolist()
                for i in range(len(chosen) - distance):
                    for one, other in zip(chosen[i], chosen[i + distance], strict=True):
                        open_ = [{j for j, end in enumerate(ends) if end <= k} | {int(partition.block_id[k])}
                                 for k in (i, i + distance)]  # fmt: skip
                        every.append(len(one & other) / len(one | other))
                        if len(open_[0]) > len(one) and len(open_[1]) > len(other):
                            free.append(every[-1])
            row = next(r for r in rows if (r["what"], r["layer"], r["distance"]) == ("queries", layer, distance))
            assert (row["pairs"], row["pairs_free"]) == (len(every), len(free))
            for value, wanted in ((row["jaccard"], every), (row["jaccard_free"], free)):
                assert value == pytest.approx(np.mean(wanted) if wanted else np.nan, nan_ok=True)
        for size in TILES:
            row = next(r for r in rows if (r["what"], r["layer"], r["distance"]) == ("tile", layer, size))
            unions = [len(set().union(*(chosen[i][g] for i in range(first, first + size))))
                      for chosen, _ in per_clip for first in range(0, len(chosen) - size + 1, size)
                      for g in range(GROUPS)]  # fmt: skip
            assert row["tiles"] == len(unions)
            assert row["blocks"] == pytest.approx(np.mean(unions) if unions else np.nan, nan_ok=True)


def test_neighbouring_layers_share_keys_whatever_their_blocks(findings, traces):
    assert list(findings.layers) == [(0, 1), (1, 2)]
    for (layer, other), shared in findings.layers.items():
        found = []
        for trace in traces:
            one, two = (trace.found[at, "inputs"] for at in (layer, other))
            for row in range(len(one.q)):
                for group in range(GROUPS):
                    a = set(read_by("selection", one, trace.found[layer, "choice"], row, group))
                    b = set(read_by("selection", two, trace.found[other, "choice"], row, group))
                    found.append(len(a & b) / len(a | b))
        assert shared.every.value == pytest.approx(np.mean(found)) and shared.every.count == len(found)
        assert 0 < shared.free.count < len(found)


def test_overlap_by_hand():
    choice = torch.tensor([[[0, -1]], [[0, 1]], [[1, 2]], [[2, -1]]])
    found = QueryOverlap()
    found.add(choice, torch.tensor([1, 2, 3, 3]), 3)
    assert found.by_distance[1].every.value == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    # Only the last two queries have more open than they take; at random 2 and 1 of 3 share 2/3 of 7/3.
    assert (found.by_distance[1].free.value, found.by_distance[1].random.value) == pytest.approx((1 / 2, 2 / 7))
    assert found.by_distance[2].every.value == 0
    assert found.alone.value == 1.5 and found.union[16].count == 0
    assert tile_union(choice, 2, 3).tolist() == [[2], [2]] and tile_union(choice[:3], 2, 3).tolist() == [[2]]
    empty = torch.full((1, 1, 2), -1)
    assert overlap.jaccard(empty, empty).isnan().all()


def test_the_budget_is_what_loops_count(findings, traces):
    rows = {(row["layer"], row["branch"]): row for row in budget_rows(findings.spent)}
    queries = [len(trace.found[0, "inputs"].q) for trace in traces]
    dense = sum(n * (n + 1) / 2 for n in queries)
    for layer in (0, 1, 2):
        keys = 0.0
        for name in BRANCHES:
            read = sum(
                len(read_by(name, trace.found[layer, "inputs"], trace.found[layer, "choice"], row, group)) / GROUPS
                for trace, count in zip(traces, queries, strict=True)
                for row in range(count)
                for group in range(GROUPS)
            )
            pooled = name == "compression"
            assert rows[layer, name]["pooled" if pooled else "keys"] == pytest.approx(read / sum(queries), rel=1e-6)
            assert rows[layer, name]["keys" if pooled else "pooled"] == 0
            keys += 0 if pooled else read
        assert rows[layer, "all"]["of_dense"] == pytest.approx(keys / dense, rel=1e-6)
    assert rows[3, "all"]["keys"] == pytest.approx(dense / sum(queries)) and rows[3, "all"]["of_dense"] == 1
    K = 3 * 2 + 6  # three blocks of two, and the window
    paper = sum(n * min(1, 2 * K / (n - 1)) for n in queries) / sum(queries)
    assert rows[2, "all"]["paper_ratio"] == pytest.approx(paper) and rows[3, "all"]["paper_ratio"] == 1


def test_the_papers_settings_spend_3_6_percent_of_dense_at_128000_tokens(model):
    trace, lengths = Trace("cost"), torch.tensor([128_000])
    attention = dataclasses.make_dataclass("Attention", ["method", "design"])
    paper = tiny_config("attention.partition.block_size=64", "attention.branches.window.size=256",
                        "attention.branches.selection.block_count=32").attention  # fmt: skip
    method = model.attentions()[0].method
    spent = Spent()
    trace.found[0, "cost"] = {"selection": Cost(keys=2000.0), "window": Cost(keys=255.0)}
    spent.add([attention(method, paper)], trace, lengths)
    row = budget_rows(spent)[-1]
    assert f"{row['paper_ratio']:.3%}" == "3.600%"
    assert row["of_dense"] == pytest.approx(2255 / 64_000.5)
