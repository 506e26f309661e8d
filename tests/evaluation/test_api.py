"""The Python API as a notebook would use it: README's own lines, and the edges around them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

import nsa_lab
from nsa_lab import SparseAttention, ask, build_model, load_config, load_model, score, train
from nsa_lab.attention.trace import Trace
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.partition import PARTITIONERS
from nsa_lab.training.build import build_data
from nsa_testing import assert_close

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "name": "api",
    "tasks.needle": {"enabled": True, "frames": 8, "train_clips": 48, "val_clips": 8},
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "attention.partition.block_size": 4,
    "training": {"steps": 30, "batch_size": 8, "val_every": 30, "learning_rate": 3e-3, "warmup_steps": 5, "threads": 1},
    "tracking.enabled": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    places = {"data.cache_dir": str(folder / "cache"), "output.dir": str(folder / "runs")}
    return train(load_config(None, SMALL | places), progress_bar=False), folder


def test_the_api_has_at_most_eight_names_and_costs_nothing_to_import():
    assert len(nsa_lab.__all__) <= 8
    assert all(callable(getattr(nsa_lab, name)) for name in nsa_lab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        nsa_lab.trian  # noqa: B018


def test_a_run_is_loaded_asked_and_evaluated(run):
    result, folder = run
    model = load_model(result.directory)
    assert not model.training
    metrics = score(model)
    for name in ("val/loss", "val/accuracy", "val/accuracy/needle"):
        assert metrics[name] == pytest.approx(result.metrics[name], abs=1e-5), "as at the end of the training"
    clips = sorted(folder.rglob("val/*.mp4"))
    answers = [ask(model, clip, "What colour was the flash?", max_new_tokens=4) for clip in clips]
    assert len(answers) == 8 and all(isinstance(answer, str) for answer in answers)


def test_greedy_answers_are_what_the_accuracy_counts(run):
    """Teacher-forced exact matches and written answers are the same thing."""
    model = load_model(run[0].directory)
    torch.manual_seed(3)
    for parameter in model.lm_head.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    from nsa_lab.data import load_samples

    samples = load_samples(model.experiment)["val"]
    right = [ask(model, s.video, s.turns[0].question, max_new_tokens=4) == s.turns[0].answer for s in samples]
    assert sum(right) / len(right) == pytest.approx(score(model)["val/accuracy"])


def test_answers_with_the_cache_are_those_of_whole_forwards(run):
    """Every token of a long answer equals the argmax of one forward over all before it."""
    from nsa_lab.data import Sample, Turn, VideoDataset, load_tokenizer, pack
    from nsa_lab.evaluation.decode import greedy
    from nsa_lab.model import MODEL_INPUTS

    result, folder = run
    model = load_model(result.directory)
    clip, data = next(folder.rglob("val/*.mp4")), model.experiment.data
    tokenizer = load_tokenizer(data.tokenizer, Path(data.cache_dir))
    sample = Sample("x", clip, (Turn("What colour was the flash?", None),), "ask")
    example = VideoDataset([sample], tokenizer, data).example(sample)
    batch = pack([example])
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    with torch.no_grad():
        (ids,) = greedy(model, [example], end=-1, count=6)
        for number, token in enumerate(ids):
            more = torch.tensor([ids[:number]], dtype=torch.int64)
            last = inputs["position_ids"][:, :, -1:] + 1 + torch.arange(number)
            whole = inputs | {
                "input_ids": torch.cat([inputs["input_ids"], more], 1),
                "position_ids": torch.cat([inputs["position_ids"], last], 2),
                "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, number)),
            }
            assert int(model(**whole, use_cache=False).logits[0, -1].argmax()) == token


def test_what_cannot_be_asked_says_why(run, tmp_path):
    result, folder = run
    model = load_model(result.directory)
    with pytest.raises(NsaLabError, match=r"nowhere\.mp4"):
        ask(model, tmp_path / "nowhere.mp4", "What?")
    with pytest.raises(NsaLabError, match=r"nowhere (does not exist|cannot be read)"):
        load_model(tmp_path / "nowhere")
    bare = build_model(model.experiment)
    bare.experiment = None
    with pytest.raises(NsaLabError, match=r"nsa_lab\.load_model"):
        ask(bare, next(folder.rglob("*.mp4")), "What?")


def test_weights_in_a_folder_are_loaded_with_their_design(run, tmp_path):
    result, _ = run
    model = load_model(result.directory)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, {"data.tokenizer": "offline"})
    assert again.attentions()[0].design == model.attentions()[0].design
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    changed = load_model(tmp_path, ["data.tokenizer=offline", "attention.branches.window.size=9"])
    design = changed.attentions()[0].design
    assert (design.branches.window.size, design.partition.block_size) == (9, 4), "on top of what is stored"


@pytest.mark.parametrize("rate", [2, 4])
@pytest.mark.parametrize("positions", ["qwen", "transformers"])
def test_data_and_model_count_positions_alike(run, tmp_path, rate, positions):
    """The positions of training and ask are those that the loaded weights would compute themselves."""
    result, folder = run
    load_model(result.directory).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text()) | {"positions": positions}
    stored["vision_config"]["tokens_per_second"] = rate
    file.write_text(json.dumps(stored))
    model = load_model(tmp_path, {"data.tokenizer": "offline", "data.cache_dir": str(folder / "cache")})
    assert model.experiment.data.positions == positions
    places = {"model.path": str(tmp_path), "data.cache_dir": str(folder / "cache"), "data.positions": positions}
    data, _ = build_data(load_config(None, SMALL | places))
    example = data.val[0]
    seconds = torch.tensor([2 / model.experiment.data.fps])
    given = {"video_grid_thw": example.grid_thw, "second_per_grid_ts": seconds}
    own, _ = model.model.get_rope_index(example.input_ids[None], **given)
    assert torch.equal(example.position_ids, own[:, 0])
    assert example.position_ids[0, example.token_types == 2].unique().diff().tolist() == [rate] * 3


def test_a_model_is_asked_and_evaluated_at_its_own_positions(run):
    """Whatever the settings say that it is evaluated with."""
    result, folder = run
    model, settings = load_model(result.directory), load_model(result.directory).experiment
    before = score(model)["val/loss"]
    question = next(folder.rglob("val/*.mp4")), "What colour was the flash?"
    answer = ask(model, *question, max_new_tokens=6)
    other = dataclasses.replace(settings, data=dataclasses.replace(settings.data, positions="transformers"))
    assert score(model, other)["val/loss"] == before
    model.experiment = other
    assert ask(model, *question, max_new_tokens=6) == answer
    model.config.positions = "transformers"
    assert score(model)["val/loss"] != before


# The layer alone


def heads(count, generator=None):
    shapes = ((count, 4, 16), (count, 2, 16), (count, 2, 16))
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_the_layer_takes_q_k_and_v(kind):
    attention = SparseAttention(4, 2, 16, block_size=6, block_count=2, window=5, design={"partition.kind": kind})
    attention.double()
    q, k, v = heads(48)
    trace = Trace("choice", "cost")
    out = attention(q, k, v, grid=(8, 2, 3), trace=trace)
    assert out.shape == q.shape and out.isfinite().all()
    assert trace.of("choice")[0].shape == (48, 2, 2)
    out.square().sum().backward()
    assert attention.branches.gate.logit.grad is not None


def test_the_layer_takes_hidden_states():
    attention = SparseAttention(4, 2, 16, hidden_size=40, block_size=6, block_count=2, window=5).double()
    x = torch.randn(48, 40, dtype=torch.float64)
    assert attention(x, grid=(8, 2, 3)).shape == x.shape


def test_everything_in_reach_is_dense_attention_and_videos_are_apart():
    design = {"branches.compression.enabled": False, "branches.selection.enabled": False, "gate.kind": "fixed"}
    attention = SparseAttention(4, 2, 16, window=100, design=design)
    q, k, v = heads(48)
    out = attention(q, k, v, grid=[(4, 2, 3), (4, 2, 3)])
    for part in (slice(0, 24), slice(24, 48)):
        rows = q[part].transpose(0, 1)
        keys, values = (x[part].transpose(0, 1).repeat_interleave(2, 0) for x in (k, v))
        dense = torch.nn.functional.scaled_dot_product_attention(rows, keys, values, is_causal=True)
        assert_close(out[part], dense.transpose(0, 1), 1e-12)


def test_settings_that_no_layer_can_have_are_named():
    with pytest.raises(ConfigError, match=r"attention\.partition\.kind: 'scenes' .*did you mean 'scene'"):
        SparseAttention(4, 2, 16, design={"partition.kind": "scenes"})
    with pytest.raises(ConfigError, match=r"attention\.branches\.selection\.block_count: 0 is not positive"):
        SparseAttention(4, 2, 16, block_count=0)
    with pytest.raises(ValueError, match="48 tokens, but the grids hold 40"):
        SparseAttention(4, 2, 16)(*heads(48), grid=(5, 2, 4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_readme_s_python_runs_as_written(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out
