"""VisionZip's form for Qwen2.5-VL against its steps written down frame by frame, token by token."""

import pytest
import torch

from nsa_lab.baselines.visionzip import VisionZip, Zip
from nsa_lab.errors import NsaLabError
from nsa_reducers import (
    SAMPLES,
    assert_follows,
    embedded,
    kept_of,
    make_model,
    packed,
    sample_of,
    seen_in_tower,
    strongest_of,
    video_places,
)


def zipped(received, keys, keep, contextual):
    """Of one frame: the tokens that stay, and of each contextual one those that are added to it."""
    count = kept_of(keep, len(received))
    means = round(contextual * count)
    dominant = strongest_of(received, count - means)
    rest = [token for token in range(len(received)) if token not in dominant]
    targets = rest[:: max(1, len(rest) // means)][:means] if means else []
    added = {target: [] for target in targets}
    for token in rest:
        if token not in targets and targets:
            likeness = [float(torch.cosine_similarity(keys[token], keys[target], dim=0)) for target in targets]
            added[targets[likeness.index(max(likeness))]].append(token)
    return {*dominant, *targets}, added


def reference(keep, contextual):
    def start(model, sample):
        x = embedded(model, sample)
        plain, kept = x.clone(), torch.ones(len(x), dtype=torch.bool)
        for number, video in enumerate(video_places(model, sample)):
            for places, received, keys in zip(video, *seen_in_tower(model, sample, number, 2), strict=True):
                stays, added = zipped(received, keys, keep, contextual)
                for token, place in enumerate(places):
                    kept[place] = token in stays
                for target, others in added.items():
                    if others:
                        x[places[target]] += plain[[places[other] for other in others]].mean(0)
        return x, lambda number, x, attention: kept

    return start


@pytest.mark.singly
@pytest.mark.parametrize(("keep", "contextual"), [(0.5, 0.3), (0.2, 0.0), (0.6, 1.0), (1.0, 0.4)])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_frame_keeps_dominant_tokens_and_means_of_others(tokenizer, name, keep, contextual):
    given = f"attention.reducer={{kind: visionzip, visionzip: {{keep: {keep}, contextual: {contextual}}}}}"
    model = make_model(tokenizer, given)
    samples = [sample_of(model, parts, seed) for seed, parts in enumerate(SAMPLES[name])]
    share = assert_follows(model, samples, reference(keep, contextual))
    assert share < 1 or keep == 1


def test_the_defaults_are_54_and_10_of_576():
    own = Zip()
    received, keys = [float(n) for n in torch.rand(576)], list(torch.rand(576, 4))
    stays, added = zipped(received, keys, own.keep, own.contextual)
    assert (len(stays) - len(added), len(added)) == (54, 10)
    assert VisionZip.left(VisionZip.Config(own), 28, 3, 576) == [3 * 64] * 28


@torch.no_grad()
def test_without_pixels_there_is_nothing_to_choose_by(tokenizer):
    model = make_model(tokenizer, "attention.reducer.kind=visionzip")
    sample = sample_of(model, [3, (2, 2, 2), 3], 0)
    batch = packed([sample])
    del batch["pixel_values_videos"]
    with pytest.raises(NsaLabError, match="the tower did not run; pass pixel_values_videos"):
        model(inputs_embeds=embedded(model, sample)[None], use_cache=False, **{**batch, "input_ids": None})
