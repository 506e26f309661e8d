"""FastV against dense attention under masks written down token by token."""

from statistics import fmean

import pytest
import torch

from nsa_lab.baselines.fastv import FastV, Pruning
from nsa_lab.errors import NsaLabError
from nsa_reducers import (
    SAMPLES,
    TOLERANCE,
    assert_follows,
    embedded,
    kept_of,
    make_model,
    masked_decoder,
    packed,
    sample_of,
    strongest_of,
)
from nsa_testing import assert_close


def reference(layer, drop, end=-1):
    """`end`: the place of the question's last token."""

    def start(model, sample):
        is_video = sample.ids == model.config.video_token_id
        places = is_video.nonzero().flatten().tolist()
        kept = torch.ones_like(is_video)

        def alive(number, x, attention):
            if number == layer and places:
                row = attention[:, end].mean(0)
                best = strongest_of([row[place].item() for place in places], kept_of(1 - drop, len(places)))
                kept[places] = False
                kept[[places[n] for n in best]] = True
            return kept.clone()

        return embedded(model, sample), alive

    return start


@pytest.mark.parametrize("heads", ["{num_heads: 4, num_kv_heads: 2}", "{num_heads: 4, num_kv_heads: 1}"])
@pytest.mark.parametrize(("layer", "drop"), [(1, 0.5), (2, 0.75), (3, 0.0)])
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.singly
def test_later_layers_have_what_the_question_attends_to(tokenizer, name, layer, drop, heads):
    given = f"attention.reducer={{kind: fastv, fastv: {{layer: {layer}, drop: {drop}}}}}"
    model = make_model(tokenizer, given, f"model={heads}")
    samples = [sample_of(model, parts, seed) for seed, parts in enumerate(SAMPLES[name])]
    assert_follows(model, samples, reference(layer, drop))


def test_a_question_that_reads_the_clips_end_alone_chooses_there(tokenizer):
    model = make_model(tokenizer, "attention.reducer={kind: fastv, fastv: {layer: 2}}", "attention.text_window=9")
    assert_follows(model, [sample_of(model, [3, (4, 2, 3), 5], 1)], reference(2, 0.5))


@torch.no_grad()
@pytest.mark.parametrize("way", ["answering", "labels", "targets"])
def test_the_question_ends_before_the_first_answer(tokenizer, way):
    """Where answers are given, as in training: of a sample with two, before the first."""
    model = make_model(tokenizer, "attention.reducer={kind: fastv, fastv: {layer: 1}}")
    samples = [sample_of(model, parts, 3) for parts in ([3, (4, 2, 3), 9], [2, (3, 2, 2), 4])]
    batch, length = packed(samples), 36 + 18
    answered = torch.tensor([30, 31, 34, 36 + 15])
    labels = torch.full((1, length), -100).index_copy(1, answered + 1, batch["input_ids"][:, answered + 1])
    for sample, end, begin in ((samples[0], 30, 0), (samples[1], 15, 36)):
        logits, has = masked_decoder(model, sample, *reference(1, 0.5, end)(model, sample))
        _, others = masked_decoder(model, sample, *reference(1, 0.5)(model, sample))
        assert not torch.equal(has[-1], others[-1]), "the last token chooses alike: the test shows nothing"
        own = slice(begin, begin + len(sample.ids))
        if way == "targets":
            targets = batch["input_ids"][0, answered + 1]
            found = model(**batch, use_cache=False, logits_to_keep=answered, targets=targets).loss
            whole = model(**batch, use_cache=False, labels=labels).loss
            torch.testing.assert_close(found, whole)
            continue
        given = {"answering": labels[:, 1:] != -100} if way == "answering" else {"labels": labels}
        found = model(**batch, use_cache=False, **given).logits[0, own]
        assert_close(found[has[-1]], logits[has[-1]], TOLERANCE)
        assert not found[~has[-1]].any()


@torch.no_grad()
def test_a_prompt_without_its_question_is_refused(tokenizer):
    model = make_model(tokenizer, "attention.reducer.kind=fastv")
    sample = sample_of(model, [3, (2, 2, 2), 9], 0)
    batch = {"input_ids": sample.ids[None, :14], "pixel_values_videos": sample.pixels[0]}
    batch |= {"video_grid_thw": sample.patches(), "position_ids": sample.positions[:, None, :14]}
    batch["answering"] = torch.arange(20)[None] == 19
    with pytest.raises(NsaLabError, match=r"6 tokens after the end of this input; give the whole prompt"):
        model(**batch)


def test_the_papers_setting_leaves_53_6_percent_over_28_layers():
    assert fmean(FastV.left(FastV.Config(Pruning()), 28, 1, 56)) == 30
