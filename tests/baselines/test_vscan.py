"""VScan against its steps written down frame by frame, window by window, token by token."""

import math
from statistics import fmean

import pytest
import torch

from nsa_lab.baselines.vscan import Scans, VScan
from nsa_reducers import (
    SAMPLES,
    assert_follows,
    embedded,
    kept_of,
    make_model,
    sample_of,
    seen_in_tower,
    strongest_of,
    video_places,
)


def scanned(early, late, columns, keep):
    """Of one frame: the tokens chosen by `late` everywhere, then those by `early` in windows."""
    count = kept_of(keep, len(late))
    everywhere = strongest_of(late, count - count // 2)
    windows = {}
    for token in range(len(early)):
        windows.setdefault((token // columns // 4, token % columns // 4), []).append(token)
    cap = math.ceil(count // 2 / len(windows))
    first, second = [], []
    for tokens in windows.values():
        free = sorted((t for t in tokens if t not in everywhere), key=lambda t: (-early[t], t))
        first, second = first + free[:cap], second + free[cap:]
    ranked = sorted(first, key=lambda t: (-early[t], t)) + sorted(second, key=lambda t: (-early[t], t))
    return sorted([*everywhere, *ranked[: count // 2]])


def reference(keep, late, layer):
    def start(model, sample):
        x = embedded(model, sample)
        plain, kept = x.clone(), torch.ones(len(x), dtype=torch.bool)
        for number, video in enumerate(video_places(model, sample)):
            early, last = (seen_in_tower(model, sample, number, block)[0] for block in (0, 2))
            for places, *scores in zip(video, early, last, strict=True):
                stays = scanned(*scores, sample.grids[number][2], keep)
                members = {token: [token] for token in stays}
                for token, place in enumerate(places):
                    kept[place] = token in stays
                    if token not in stays:
                        likeness = [
                            torch.cosine_similarity(plain[place], plain[places[t]], dim=0).item() for t in stays
                        ]
                        members[stays[likeness.index(max(likeness))]].append(token)
                for token, others in members.items():
                    x[places[token]] = plain[[places[other] for other in others]].mean(0)

        def alive(number, x, attention):
            is_video = sample.ids == model.config.video_token_id
            places = (is_video & kept).nonzero().flatten().tolist()
            if number == layer and places:
                score = question_to(model.model.language_model.layers[layer], x, places)
                best = strongest_of(score, kept_of(late, len(places)))
                kept[places] = False
                kept[[places[n] for n in best]] = True
            return kept.clone()

        return x, alive

    return start


def question_to(layer, x, places):
    """What the last token's query says of the places, head by head, without rotary embedding."""
    own, normed = layer.self_attn, layer.input_layernorm(x)
    q = own.q_proj(normed[-1]).view(-1, own.head_dim)
    k = own.k_proj(normed[places]).view(len(places), -1, own.head_dim)
    heads = [(k[:, h // (len(q) // k.shape[1])] @ q[h] / math.sqrt(own.head_dim)).softmax(0) for h in range(len(q))]
    return torch.stack(heads).mean(0).tolist()


@pytest.mark.singly
@pytest.mark.parametrize(("keep", "late", "layer"), [(0.5, 0.5, 2), (0.7, 1.0, 1), (0.167, 0.333, 3), (1.0, 0.3, None)])
@pytest.mark.parametrize("name", SAMPLES)
def test_frames_and_then_the_question_choose(tokenizer, name, keep, late, layer):
    own = f"{{keep: {keep}, late: {late}, layer: {'null' if layer is None else layer}}}"
    model = make_model(tokenizer, f"attention.reducer={{kind: vscan, vscan: {own}}}")
    samples = [sample_of(model, parts, seed) for seed, parts in enumerate(SAMPLES[name])]
    share = assert_follows(model, samples, reference(keep, late, 2 if layer is None else layer))
    assert share < 1


def test_where_windows_have_too_few_left_the_frame_fills_up():
    from nsa_lab.baselines.vscan import best_by_window

    score = torch.arange(20.0, dtype=torch.float64).flip(0)[None]  # 4 x 5 tokens: a window of 4 x 4, one of 4 x 1
    taken = torch.zeros(1, 20, dtype=torch.bool)
    taken[0, [4, 9, 14, 19]] = True  # all of the second
    assert best_by_window(score, taken, 4, 5)[0].nonzero().flatten().tolist() == [0, 1, 2, 3]
    taken[0, 19] = False
    assert best_by_window(score, taken, 4, 5)[0].nonzero().flatten().tolist() == [0, 1, 2, 19]


def test_the_published_shares():
    for own, expected in ((Scans(), 0.111), (Scans(0.6, 0.67), 0.501)):
        assert fmean(VScan.left(VScan.Config(own), 28, 1, 10**6)) == pytest.approx(expected * 10**6, rel=0.01)
