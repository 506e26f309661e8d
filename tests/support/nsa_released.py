"""VideoNSA's published code (its commit 377eeb9), written from its description token by token, with switches.

It shares no code with the method `released`, and is slow.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import torch

BLOCK, COUNT, WINDOW = 4, 3, 6


def _softmax(q, keys, values, scale):
    """[D]: one query [D] against lists of keys and values."""
    if not keys:
        return torch.zeros_like(q)
    weights = torch.softmax(torch.stack([(q * key).sum() * scale for key in keys]), 0)
    return sum(w * value for w, value in zip(weights, values, strict=True))


def _sample(x, q, k, v, video, gate, deviations):
    """One call of the published code for one sample: q [n, H, D], k and v [n, G, D], video a list of bools, gate a
    function of one token's x that gives [H, 3]."""
    (n, heads, d), groups = q.shape, k.shape[1]
    scale, zero = d**-0.5, torch.zeros(d, dtype=q.dtype)
    on = SimpleNamespace(**vars(deviations))
    out = [[zero for _ in range(heads)] for _ in range(n)]
    for t in range(n):
        for h in range(heads):
            own = h // (heads // groups)
            if not video[t]:
                out[t][h] = _softmax(q[t, h], list(k[: t + 1, own]), list(v[: t + 1, own]), scale)
            elif on.unmasked and not all(video):
                out[t][h] = v[: t + 1, own].mean(0)
    if not any(video):
        return torch.stack([torch.stack(row) for row in out])

    places = list(range(n)) if on.zeroed_text else [t for t in range(n) if video[t]]
    length = len(places)
    count = 2 ** math.ceil(math.log2(COUNT)) if on.rounded_count else COUNT
    padded = heads
    if on.foreign_heads:
        padded = 1
        while padded < 2 * heads:
            padded *= 2
    real = 2 * heads if on.foreign_heads else heads
    blocks = [range(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]

    def clean(tensor, t, head):
        return tensor[t, head] if video[t] else zero

    def query(i, p):
        return clean(q, places[i], p % heads) if p < real else zero

    def group(p):
        return p // (padded // groups)

    def mean(tensor, j, g):
        return sum(clean(tensor, places[i], g) for i in blocks[j]) / len(blocks[j])

    pooled_k = [[mean(k, j, g) for g in range(groups)] for j in range(len(blocks))]
    pooled_v = [[mean(v, j, g) for g in range(groups)] for j in range(len(blocks))]

    def visible(i):
        if on.reversed_mask:
            return [j for j in range(len(blocks)) if BLOCK * (j + 1) - 1 >= i]
        return [j for j in range(len(blocks)) if blocks[j][-1] <= i]

    def log_sum(p, i):
        logits = [float((query(i, p) * pooled_k[j][group(p)]).sum().detach() * scale) for j in visible(i)]
        return math.log(sum(map(math.exp, logits))) if logits else -math.inf

    table = [[log_sum(p, i) for i in range(length)] for p in range(padded)]

    def read(p, i):
        if not on.flat_scores:
            return table[p][i]
        flat = i * padded + p
        return table[flat // length][flat % length]

    gates = {t: gate(x[t]) if video[t] else torch.full((heads, 3), 0.5, dtype=q.dtype) for t in places}
    for i, t in enumerate(places):
        if not video[t] and not on.unmasked:
            continue
        chosen = []
        for g in range(groups):
            score = {}
            members = [p for p in range(padded) if group(p) == g]
            for j in range(i // BLOCK):
                logits = [(p, float((query(i, p) * pooled_k[j][g]).sum().detach() * scale)) for p in members]
                score[j] = sum(math.exp(logit - read(p, i)) for p, logit in logits)
            sure = not (on.flat_scores or on.reversed_mask)
            score[i // BLOCK] = math.inf if sure else float(len(members))
            chosen.append(sorted(score, key=lambda j: (-score[j], j))[:count])
        found = []
        for p in range(padded):
            g, own = group(p), query(i, p)
            tokens = [m for j in chosen[g] for m in blocks[j] if m <= i]
            near = range(max(0, i - WINDOW + 1), i + 1)
            compressed = [[pooled[j][g] for j in visible(i)] for pooled in (pooled_k, pooled_v)]
            picked = [[[clean(z, places[m], g) for m in some] for z in (k, v)] for some in (tokens, near)]
            found.append([_softmax(own, *given, scale) for given in (compressed, *picked)])
        for h in range(heads):
            copies = (h, h + heads) if on.foreign_heads else (h,)
            parts = [sum(gates[t][h, c] * found[p][c] for c in range(3)) for p in copies]
            out[t][h] = out[t][h] + sum(parts) / len(parts)
    return torch.stack([torch.stack(row) for row in out])


def emulate(layer, x, q, k, v, layout):
    """[T, H, D]: every sample of `layout` through one call; of `layer` its switches and its gate's weights are read."""
    ends, on, first = layout.cu_seqlens.tolist(), layer.deviations, {}

    def one_gate(row):
        hidden = torch.nn.functional.gelu(layer.sparse.gate.up.weight @ row + layer.sparse.gate.up.bias)
        logits = layer.sparse.gate.down.weight @ hidden + layer.sparse.gate.down.bias
        return torch.sigmoid(logits / (1.0 if on.temperature is None else on.temperature)).view(-1, 3)

    outputs = []
    for begin, end in pairwise(ends):
        video = []
        for t in range(begin, end):
            is_video = bool(layout.is_video[t])
            if is_video and on.missed_tokens:
                own, frame = int(layout.video[t]), int(layout.frame[t])
                place = divmod(int(layout.cell[t]), int(layout.grids[own][2]))
                is_video = len({(frame - first.setdefault(own, frame)) * 2, *place}) > 1
            video.append(is_video)
        parts = (part[begin:end] for part in (x, q, k, v))
        outputs.append(_sample(*parts, video, one_gate, on))
    return torch.cat(outputs)
