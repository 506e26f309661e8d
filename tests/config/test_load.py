"""Configs: which value wins, what is refused and how it is said, and what makes a run another run."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import yaml

from nsa_lab.attention.methods import METHODS
from nsa_lab.config import (
    AttentionConfig,
    ExperimentConfig,
    attention_from_dict,
    config_hash,
    flatten,
    layer_attention,
    load_config,
    parse_layer_range,
    to_dict,
    to_yaml,
    tree,
)
from nsa_lab.config.rules import FRACTIONS, MAX_SEED, NOT_NEGATIVE, POSITIVE, notices
from nsa_lab.errors import ConfigError, NsaLabError

NEEDLE = "tasks.needle.enabled=true"
# Shapes that the numbers below are about.
SHAPE = [
    "model={hidden_size: 64, num_layers: 2, num_heads: 4, num_kv_heads: 2, vision_hidden_size: 64}",
    *(f"tasks.{task}.{side}" for task in ("needle", "order") for side in ("frames=64", "width=56", "height=56")),
]
BRANCHES = "attention.branches"


@pytest.fixture
def write(tmp_path):
    """Writes YAML files under one folder; gives the path of the last."""

    def call(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return call


def config(*overrides):
    return load_config(None, [NEEDLE, *SHAPE, *overrides])


def problems(*overrides, path=None):
    """The faults of a config, by path."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, [NEEDLE, *SHAPE, *overrides] if path is None else overrides)
    found = caught.value.problems
    assert str(caught.value).splitlines() == [f"{p.path}: {p.message}" for p in found], "one line each"
    return {p.path: p.message for p in found}


def value_of(config, key):
    return flatten(to_dict(config))[key]


# Which value wins


def test_defaults_then_extends_then_file_then_command_line(write):
    mine = write(
        {
            "base.yaml": {"tasks": {"needle": {"enabled": True}}, "training": {"steps": 2, "batch_size": 2}, "seed": 2},
            "mine.yaml": {"extends": "base.yaml", "training": {"batch_size": 3}, "seed": 3},
        }
    )
    loaded = load_config(mine, ["seed=4"])
    assert (loaded.seed, loaded.training.batch_size, loaded.training.steps) == (4, 3, 2)
    assert loaded.training.warmup_steps == ExperimentConfig().training.warmup_steps
    assert load_config(mine, {"seed": 4}) == loaded


def test_extends_is_relative_to_the_file_that_says_it(write, monkeypatch, tmp_path):
    leaf = write(
        {
            "base.yaml": {"tasks": {"needle": {"enabled": True}}, "seed": 1, "name": "base"},
            "designs/middle.yaml": {"extends": "../base.yaml", "seed": 2},
            "designs/deep/leaf.yaml": {"extends": "../middle.yaml", "name": "leaf"},
        }
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_config(leaf)
    assert (loaded.name, loaded.seed, loaded.tasks.needle.enabled) == ("leaf", 2, True)


@pytest.mark.parametrize(
    "files",
    [{"a.yaml": "extends: a.yaml"}, {"b.yaml": "extends: sub/c.yaml", "sub/c.yaml": "extends: ../b.yaml"}],
    ids=["itself", "two files"],
)
def test_extends_in_a_circle_is_refused(write, files):
    with pytest.raises(NsaLabError, match="goes round in a circle"):
        load_config(write(files))


def test_a_missing_parent_is_named_with_its_neighbour(write):
    file = write({"base.yaml": "seed: 1", "mine.yaml": "extends: bass.yaml"})
    with pytest.raises(NsaLabError, match=r"bass\.yaml does not exist; did you mean .*base\.yaml"):
        load_config(file)


def test_a_file_that_is_no_mapping_is_refused(write):
    with pytest.raises(NsaLabError, match=r"mine\.yaml holds a list, not keys and values"):
        load_config(write({"mine.yaml": "- 1\n- 2"}))


def test_an_empty_file_is_the_defaults(write):
    assert load_config(write({"empty.yaml": "\n"}), [NEEDLE]) == load_config(None, [NEEDLE])


def test_a_section_may_be_a_mapping_on_the_command_line():
    loaded = config(f"{BRANCHES}={{window: {{size: 7}}, selection: {{block_count: 5}}}}")
    assert (loaded.attention.branches.window.size, loaded.attention.branches.selection.block_count) == (7, 5)
    assert loaded.attention.branches.compression.enabled, "what is not named keeps its default"


def test_the_last_override_wins_and_a_section_is_not_replaced_by_its_part():
    assert config("seed=1", "seed=2").seed == 2
    both = config(
        "attention.branches={window: {size: 7}}", "attention={gate: {kind: linear}, text_window: 3}"
    ).attention
    assert (both.branches.window.size, both.gate.kind, both.text_window) == (7, "linear", 3)
    with pytest.raises(NsaLabError, match=r"training was given a value before"):
        config("training=3", "training.steps=4")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.steps=1e3", 1000),
        ("training.steps=1_000", 1000),
        ("model.num_layers=2e0", 2),
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=1", 1.0),
        ("model.rope_theta=10000", 10_000.0),
        ("model.rope_theta=null", None),
        ("training.resume=no", False),
        ("name=7", "7"),
        ("name=a=b", "a=b"),
        ("data.system_prompt='Be brief, please: yes'", "Be brief, please: yes"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_as_people_write_them(override, value):
    found = value_of(config(override), override.partition("=")[0])
    assert found == value and type(found) is type(value)


# Layers


def test_layer_overrides_hold_in_their_range_and_later_keys_win():
    attention = config(
        "model.num_layers=4",
        "attention.layers={0-2: {partition: {block_size: 8}}, 2: {method: dense}, 1-2: {gate: {kind: linear}}}",
    ).attention
    layers = [layer_attention(attention, index) for index in range(4)]
    assert [layer.partition.block_size for layer in layers] == [8, 8, 8, 64]
    assert [layer.method for layer in layers] == ["nsa", "nsa", "dense", "nsa"]
    assert [layer.gate.kind for layer in layers] == ["mlp", "linear", "linear", "mlp"]
    assert all(layer.layers == {} for layer in layers)
    assert attention.partition.block_size == 64, "the base is not changed"


def test_layer_overrides_merge_over_files_and_command_line(write):
    file = write(
        {
            "base.yaml": {
                "tasks": {"needle": {"enabled": True}},
                "attention": {"layers": {0: {"partition": {"block_size": 8}}}},
            },
            "mine.yaml": {"extends": "base.yaml", "attention": {"layers": {"0": {"partition": {"kind": "frame"}}}}},
        }
    )
    first = layer_attention(load_config(file, ["attention.layers.0.method=dense"]).attention, 0)
    assert (first.partition.block_size, first.partition.kind, first.method) == (8, "frame", "dense")


def test_layer_ranges():
    assert parse_layer_range("7") == (7, 7) and parse_layer_range("0-3") == (0, 3)
    for text in ("", "a", "3-1", "-1", "0-", "1-2-3"):
        with pytest.raises(ValueError):
            parse_layer_range(text)


def test_an_attention_design_survives_plain_dicts():
    attention = config("attention.layers={0-1: {method: dense}}", "attention.gate.temperature=2").attention
    assert attention_from_dict(asdict(attention)) == attention
    with pytest.raises(ConfigError, match=r"attention\.mehtod: unknown key 'mehtod'; did you mean 'method'"):
        attention_from_dict({"mehtod": "dense"})
    with pytest.raises(ConfigError, match=r"attention\.method: <built-in function len> is not"):
        attention_from_dict({"method": len, "context": (each for each in ())})


def test_what_is_done_to_a_design_is_not_done_to_what_is_remembered():
    given, before = AttentionConfig(), AttentionConfig().branches.window.size
    layer = layer_attention(given, 0)
    given.branches.window.size = layer.branches.window.size = before + 1
    assert layer_attention(AttentionConfig(), 0).branches.window.size == before


def test_no_more_is_remembered_where_threads_ask_at_once(monkeypatch):
    asked = []

    @tree._remembered
    def doubled(x):
        asked.append(x)
        time.sleep(0.001)
        return 2 * x

    monkeypatch.setattr(tree, "MOST_REMEMBERED", 2)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(doubled, range(8))) == list(range(0, 16, 2))
    assert [doubled(x) for x in range(8)] == list(range(0, 16, 2)) and len(asked) >= 14


# What is refused


def test_all_faults_of_all_files_are_said_at_once(write):
    file = write(
        {
            "base.yaml": {"tasks": {"needle": {"enabled": True}}, "traning": {"steps": 3}},
            "mine.yaml": {"extends": "base.yaml", "attention": {"method": "dens", "gate": 3}},
        }
    )
    found = problems("training.stepz=3", "seed=x", "training.resume=1", path=file)
    assert "did you mean 'training'?" in found["traning"]
    assert found["attention.method"] == f"'dens' is not a choice; did you mean 'dense'? allowed: {', '.join(METHODS)}"
    assert found["attention.gate"].startswith("3 is not a mapping; expected keys kind, temperature, value")
    assert "unknown key 'stepz'; did you mean 'steps'? known: steps, batch_size" in found["training.stepz"]
    assert found["seed"] == "'x' is not an integer"
    assert found["training.resume"] == "1 is not true or false"
    assert len(found) == 6


def test_a_bad_choice_does_not_hide_a_bad_number():
    given = ("attention.method=dens", "training.batch_size=0", "training.learning_rate=fast", "training.beta1=2")
    found = problems(*given, "training.activation_offload=1")
    assert list(found) == ["attention.method", "training.learning_rate", "training.batch_size", "training.beta1"]
    assert found["training.batch_size"] == "0 is not positive"


@pytest.mark.parametrize(
    ("override", "path", "said"),
    [
        ("attention.semantics=released", "attention.semantics", "method (nsa is the paper's, released the published"),
        ("training.steps=1.5", "training.steps", "1.5 is not an integer"),
        ("training.steps=true", "training.steps", "True is not an integer"),
        ("training.threads=true", "training.threads", "True is not an integer or null"),
        ("training.learning_rate=null", "training.learning_rate", "None is not a number"),
        ("training.learning_rate=fast", "training.learning_rate", "'fast' is not a number"),
        ("data.videos=true", "data.videos", "True is not a string or null"),
        ("name=[1]", "name", "[1] is not a string"),
        ("attention=dense", "attention", "'dense' is not a mapping"),
        ("attention.layers=3", "attention.layers", "3 is not a mapping from layer ranges"),
        ("attention.layers={0: 3}", "attention.layers.0", "3 is not a mapping"),
        ("attention.layers={a-b: {method: dense}}", "attention.layers.a-b", "write '7' or '0-3'"),
        ("attention.layers={1-0: {method: dense}}", "attention.layers.1-0", "write '7' or '0-3'"),
        ("attention.layers={0: {method: dnse}}", "attention.layers.0.method", "did you mean 'dense'?"),
        ("attention.layers={0: {layers: {1: {method: dense}}}}", "attention.layers.0.layers", "cannot be nested"),
        ("attention.layers={0: {method: '${nope.x}'}}", "attention.layers.0.method", "write the value itself"),
        ("attention.layers={0: {method: '???'}}", "attention.layers.0.method", "stands for a value that is missing"),
        ("name=${seed}", "name", "write the value itself"),
    ],
)
def test_values_that_do_not_fit_are_named(override, path, said):
    found = problems(override)
    assert set(found) == {path} and said in found[path], found


RULES = [
    *((f"{path}=0", path, "0") for path in POSITIVE),
    *((f"{path}=-1", path, "negative") for path in NOT_NEGATIVE),
    *((f"{path}=1.5", path, "outside 0 to 1") for path in FRACTIONS),
    ("data.fps=.inf", "data.fps", "not a finite number"),
    ("training.learning_rate=.nan", "training.learning_rate", "not a finite number"),
    (f"seed={2**32}", "seed", "largest seed, 4294967295"),
    (f"tasks.seed={2**32}", "tasks.seed", "largest seed, 4294967295"),
    ("training.threads=0", "training.threads", "leave it null for all cores"),
    ("training.activation_offload=8", "training.activation_offload", "set both, or leave it 0"),
    (
        "training={activation_checkpointing: true, recompute: auto, activation_offload: 1e308}",
        "training.activation_offload",
        "more than a host has",
    ),
    # The model's shape
    ("model.num_layers=0", "model.num_layers", "not positive"),
    ("model.vision_layers=0", "model.vision_layers", "not positive"),
    ("model.num_kv_heads=3", "model.num_heads", "4 heads do not divide over 3"),
    ("model.hidden_size=66", "model.hidden_size", "does not divide over 4 heads"),
    ("model.hidden_size=32", "model.hidden_size", "head dim of 8"),
    ("model.vision_hidden_size=60", "model.vision_hidden_size", "multiple of 8"),
    # Attention
    ("attention.partition.block_size=0", "attention.partition.block_size", "not positive"),
    ("attention.partition.kind=scenes", "attention.partition.kind", "did you mean 'scene'? allowed: uniform, frame"),
    ("attention.partition={kind: scene, max_size: 63}", "attention.partition.max_size", "less than block_size=64"),
    ("attention.partition={kind: router, max_size: 63}", "attention.partition.max_size", "less than block_size=64"),
    ("attention.partition={kind: scene, min_size: 0}", "attention.partition.min_size", "outside 1 to the mean length"),
    ("attention.partition={kind: scene, min_size: 65}", "attention.partition.min_size", "outside 1 to the mean length"),
    ("attention.partition={kind: shifted, phase: 64}", "attention.partition.phase", "outside 1 to 63"),
    ("attention.partition={kind: shifted, phase: 0}", "attention.partition.phase", "null takes half a block"),
    ("attention.partition={kind: shifted, block_size: 1}", "attention.partition.block_size", "cannot be shifted"),
    ("attention.partition={kind: random_like, seed: -1}", "attention.partition.seed", "negative"),
    ("attention.partition={kind: tile, tile: {cycle: ''}}", "attention.partition.tile.cycle", "names no shape"),
    (
        "attention.partition={kind: tile, tile: {cycle: time cub}}",
        "attention.partition.tile.cycle",
        "did you mean 'cube'",
    ),
    ("attention.partition={kind: tile, tile: {max_frames: 0}}", "attention.partition.tile.max_frames", "not positive"),
    ("attention.partition={kind: cluster, cluster: {blocks: 3}}", "attention.partition.cluster.blocks", "power of two"),
    ("attention.partition={kind: cluster, cluster: {blocks: 1}}", "attention.partition.cluster.blocks", "power of two"),
    (
        "attention.partition={kind: router, router: {loss_weight: -1}}",
        "attention.partition.router.loss_weight",
        "negative",
    ),
    (
        "attention.partition={kind: router, router: {group_size: 0}}",
        "attention.partition.router.group_size",
        "null shares one router",
    ),
    (
        "attention={partition: {kind: router}, branches: {compression: {enabled: false}}}",
        "attention.partition.kind",
        "learns only through the compression branch",
    ),
    ("attention.compressor={kind: mlp, mlp_hidden: 0}", "attention.compressor.mlp_hidden", "not positive"),
    ("attention.gate.temperature=0", "attention.gate.temperature", "not positive"),
    (f"{BRANCHES}.window.size=0", f"{BRANCHES}.window.size", "use 1 or more"),
    (f"{BRANCHES}.selection.block_count=0", f"{BRANCHES}.selection.block_count", "not positive"),
    (f"{BRANCHES}.selection.query_tile=0", f"{BRANCHES}.selection.query_tile", "not positive"),
    (f"{BRANCHES}.selection.query_tile=2000", f"{BRANCHES}.selection.query_tile", "can span 32 more blocks"),
    (f"{BRANCHES}.selection.initial_blocks=32", f"{BRANCHES}.selection.block_count", "less than the 33 forced"),
    (f"{BRANCHES}.selection.initial_blocks=-1", f"{BRANCHES}.selection.initial_blocks", "negative"),
    (f"{BRANCHES}.selection.local_blocks=-1", f"{BRANCHES}.selection.local_blocks", "negative"),
    (
        f"{BRANCHES}={{compression: {{enabled: false}}, selection: {{enabled: false}}, window: {{enabled: false}}}}",
        BRANCHES,
        "all branches are off; enable one, or set attention.method=dense",
    ),
    (
        "attention={compressor: {kind: mlp}, branches: {compression: {enabled: false}}}",
        "attention.compressor.kind",
        "learns only through the compression branch",
    ),
    (f"{BRANCHES}.selection.rule=token_budget", f"{BRANCHES}.selection.token_budget", "is not set"),
    (
        f"{BRANCHES}.selection.token_budget=64",
        f"{BRANCHES}.selection.token_budget",
        "set {path}.rule=token_budget".replace("{path}", f"{BRANCHES}.selection"),
    ),
    (
        f"{BRANCHES}.selection={{rule: token_budget, token_budget: 63}}",
        f"{BRANCHES}.selection.token_budget",
        "63 tokens do not hold the 1 forced blocks of up to 64 tokens",
    ),
    (
        "attention={partition: {kind: scene}, branches: {selection: {rule: token_budget, token_budget: 127}}}",
        f"{BRANCHES}.selection.token_budget",
        "127 tokens do not hold the 1 forced blocks of up to 128 tokens",
    ),
    (
        f"{BRANCHES}.selection={{rule: token_budget, token_budget: 0, local_blocks: 0}}",
        f"{BRANCHES}.selection.token_budget",
        "0 tokens do not hold",
    ),
    ("attention.text_window=0", "attention.text_window", "holds no token"),
    ("attention={method: dense, text_window: 0}", "attention.text_window", "holds no token"),
    ("attention.layers={1-2: {method: dense}}", "attention.layers.1-2", "layers 0 to 1"),
    ("attention.layers={0: {partition: {block_size: 0}}}", "attention.layers.0.partition.block_size", "not positive"),
    *((f"name='{name}'", "name", "leads to another folder") for name in ("../../x", "/tmp/x", "a/b", "..", "a\\b")),
    ("name=''", "name", "it is empty"),
    (f"name={'x' * 201}", "name", "longer than 200 bytes"),
    # Data
    ("tasks.needle.enabled=false", "tasks", "nothing to train on"),
    ("data={annotations: a.json, videos: .}", "data.annotations", "beside the task needle"),
    ("data.videos=clips", "data.annotations", "is not set, but data.videos is; give both"),
    ("data.min_pixels=60000", "data.min_pixels", "more than data.max_pixels=50176"),
    ("data.fewest_frames=0", "data.fewest_frames", "not positive; leave it null"),
    ("data.most_frames=-1", "data.most_frames", "not positive; leave it null"),
    ("data={fewest_frames: 9, most_frames: 8}", "data.fewest_frames", "more than data.most_frames=8"),
    ("data.frames_as=stills", "data.frames_as", "images"),
    # Tasks
    ("tasks.needle.width=30", "tasks.needle.width", "not a multiple of 28 pixels"),
    ("tasks.needle.height=0", "tasks.needle.height", "not a multiple of 28 pixels"),
    ("tasks.needle.noise=2", "tasks.needle.noise", "outside 0 to 1"),
    ("tasks.needle.distractors=-1", "tasks.needle.distractors", "negative"),
    ("tasks.needle.event_frames=65", "tasks.needle.event_frames", "more than the clip's 64 frames"),
    ("tasks.needle.questions=3", "tasks.needle.questions", "colour and place"),
    *((f"tasks.needle.{f}=0", f"tasks.needle.{f}", "0") for f in ("frames", "event_frames", "questions", "val_clips")),
    ("tasks.order={enabled: true, events: 9}", "tasks.order.events", "use 2 to 8"),
    ("tasks.order={enabled: true, events: 4, questions: 3}", "tasks.order.questions", "3 questions need 6 events"),
    (
        "tasks.order={enabled: true, frames: 62, events: 4, event_frames: 15}",
        "tasks.order.event_frames",
        "4 events of 15 frames do not fit into 62 frames",
    ),
    ("tasks.recall={enabled: true, scenes: 9}", "tasks.recall.scenes", "use 2 to 8"),
    ("tasks.recall={enabled: true, frames: 14}", "tasks.recall.frames", "fewer than the 16"),
    ("tasks.recall={enabled: true, closing_frames: 3}", "tasks.recall.closing_frames", "not a positive multiple of 2"),
    ("tasks.recall={enabled: true, event_frames: 4}", "tasks.recall.event_frames", "more than shortest_frames=2"),
    ("tasks.recall={enabled: true, event_frames: 1}", "tasks.recall.event_frames", "not a positive multiple of 2"),
    ("tasks.needle.closing_frames=3", "tasks.needle.closing_frames", "neither 0 nor a multiple of 2"),
    ("tasks.needle.closing_frames=-2", "tasks.needle.closing_frames", "neither 0 nor a multiple of 2"),
    (
        "tasks.needle={event_frames: 60, closing_frames: 8}",
        "tasks.needle.event_frames",
        "more than the clip's 56 frames",
    ),
    ("tasks.frames=3", "tasks.needle.frames", "3 is not a positive multiple of 2"),
    ("tasks.haystack={enabled: true, decoys: 8}", "tasks.haystack.decoys", "use 0 to 7, one colour each"),
    (
        "tasks.direction={enabled: true, event_frames: 17}",
        "tasks.direction.event_frames",
        "2 events of 17 frames do not",
    ),
    ("tasks.count={enabled: true, most: 11}", "tasks.count.most", "use 2 to 10"),
    ("tasks.count={enabled: true, most: 5}", "tasks.count.event_frames", "5 events of 6 frames do not fit into 32"),
    ("tasks.count={enabled: true, questions: 3}", "tasks.count.questions", "more than 2: how many and where"),
    ("tasks.gist={enabled: true, frames: 26}", "tasks.gist.frames", "fewer than the 28"),
    ("tasks.gist={enabled: true, visits: 0}", "tasks.gist.visits", "0 is not positive"),
    ("tasks.pointer={enabled: true, hops: 3}", "tasks.pointer.hops", "3 hops need 5 scenes, of which there are 4"),
    ("tasks.pointer={enabled: true, least_hops: 3}", "tasks.pointer.least_hops", "3 is not from 0 to hops=2"),
    ("tasks.duration={enabled: true, frames: 18}", "tasks.duration.frames", "fewer than the 20"),
    ("tasks.duration={enabled: true, lead_frames: 0}", "tasks.duration.lead_frames", "not a positive multiple of 2"),
]


@pytest.mark.parametrize(("override", "path", "said"), RULES, ids=[rule[0][:60] for rule in RULES])
def test_broken_rules_are_named(override, path, said):
    found = problems(override)
    assert path in found and said in found[path], found


def test_rules_of_a_partition_that_is_not_chosen_do_not_hold():
    settings = "max_size: 1, phase: 99, tile: {cycle: x}, router: {group_size: 0}, cluster: {blocks: 3}"
    assert config(f"attention.partition={{{settings}}}").attention.partition.kind == "uniform"
    assert config("attention={method: dense, partition: {kind: tile, tile: {cycle: x}}}")


def test_rules_of_a_branch_or_task_that_is_off_do_not_hold():
    assert config(f"{BRANCHES}.window={{enabled: false, size: 0}}")
    assert config(f"{BRANCHES}.selection={{enabled: false, block_count: 0}}")
    assert config("attention.method=dense", f"{BRANCHES}.window.size=0")
    assert config("tasks.order.events=9")


def test_the_largest_seed_is_allowed():
    assert config(f"seed={MAX_SEED}", f"tasks.seed={MAX_SEED}").seed == MAX_SEED


def test_more_selected_blocks_than_a_clip_has_is_said_not_refused():
    # 64 frames of 56 x 56 pixels are 32 x 2 x 2 = 128 tokens: 2 blocks of 64.
    (said,) = notices(config(f"{BRANCHES}.selection.block_count=3"))
    assert "block_count=3" in said and "2 blocks of a needle clip (128 tokens)" in said
    assert notices(config(f"{BRANCHES}.selection.block_count=2")) == []
    assert notices(config("attention.method=dense")) == []
    assert notices(config(f"{BRANCHES}.selection.enabled=false")) == []


def test_a_token_budget_that_holds_the_clip_is_said():
    budget = f"{BRANCHES}.selection={{rule: token_budget, block_count: 9, token_budget: TOKENS}}"
    (said,) = notices(config(budget.replace("TOKENS", "128")))
    assert "token_budget=128 holds all 128 tokens of a needle clip" in said
    assert notices(config(budget.replace("TOKENS", "127"))) == []


# What makes a run another run


def test_yaml_of_a_config_loads_as_the_same_config(write):
    first = config(
        "name='7'",
        "training.learning_rate=1e-5",
        "model.rope_theta=3",
        "attention.layers={0: {method: dense}, '1': {gate: {temperature: 2}}}",
        "data.system_prompt='yes: no'",
        "tracking.uri=http://somewhere:5000",
    )
    again = load_config(write({"again.yaml": to_yaml(first)}))
    assert again == first and config_hash(again) == config_hash(first)
    assert load_config(None, flatten(to_dict(first))) == first
