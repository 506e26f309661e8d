import dataclasses
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data import DataLoader

from nsa_lab.config.schema import DataConfig
from nsa_lab.data import BadSampleError, Sample, Turn, VideoDataset, pack
from nsa_lab.data import dataset as dataset_module
from nsa_lab.errors import NsaLabError

TURNS = (Turn("What colour was the flash?", "red"), Turn("Where was it?", "northwest"))


def sample(path, task="needle", turns=TURNS):
    return Sample(path.stem, path, turns, task)


def same(one, other):
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, field.name


@pytest.mark.parametrize(
    ("frames", "width", "height", "grid", "tokens"),
    [
        (1, 56, 56, (1, 4, 4), 4),
        (5, 56, 56, (3, 4, 4), 12),
        (2, 252, 168, (1, 12, 18), 54),
        (2, 280, 168, (1, 12, 20), 60),
        (4, 224, 224, (2, 16, 16), 128),
        (2, 640, 360, (1, 12, 20), 60),
    ],
    ids=["one frame", "odd count", "54 tokens", "60 tokens", "64 tokens a pair", "resized"],
)
def test_example(make_video, tokenizer, frames, width, height, grid, tokens):
    path = make_video(frames=frames, width=width, height=height)
    example = VideoDataset([sample(path)], tokenizer, DataConfig())[0]
    assert example.grid_thw.tolist() == [list(grid)]
    assert example.pixel_values.shape == (grid[0] * grid[1] * grid[2], 1176)
    assert (example.token_types == 2).sum() == tokens
    length = len(example.input_ids)
    assert example.position_ids.shape == (3, length)
    assert len(example.labels) == len(example.answer_index) == len(example.token_types) == length
    first = int((example.token_types == 2).nonzero()[0])
    steps = example.position_ids[0, first : first + tokens : tokens // grid[0]] - first
    assert steps.tolist() == [2 * step for step in range(grid[0])], "a pair of frames a second, two ids a second"


@pytest.mark.parametrize("positions", ["qwen", "transformers"])
def test_the_question_stands_where_the_setting_says(make_video, tokenizer, positions):
    path = make_video(frames=20, width=56, height=56)
    example = VideoDataset([sample(path)], tokenizer, DataConfig(positions=positions))[0]
    video = example.token_types == 2
    after = int(video.nonzero()[-1]) + 1
    ids = example.position_ids[:, video] if positions == "qwen" else example.position_ids[1:, video]
    assert example.position_ids[:, after].tolist() == [int(ids.max()) + 1] * 3


def test_odd_last_frame_is_shown_twice(make_video, tokenizer):
    pixels = VideoDataset([sample(make_video(frames=3))], tokenizer, DataConfig())[0].pixel_values
    last = pixels[-1].view(3, 2, 14, 14)
    assert torch.equal(last[:, 0], last[:, 1])


def test_blind_equals_grey(make_video, tokenizer, monkeypatch):
    path = make_video()
    blind = VideoDataset([sample(path)], tokenizer, DataConfig(blind=True))[0]
    seen = VideoDataset([sample(path)], tokenizer, DataConfig())[0]
    assert torch.equal(blind.position_ids, seen.position_ids)
    assert not torch.equal(blind.pixel_values, seen.pixel_values)
    read = dataset_module.read_clip
    monkeypatch.setattr(dataset_module, "read_clip", lambda *a: grey(read(*a)))
    same(blind, VideoDataset([sample(path)], tokenizer, DataConfig())[0])


def grey(clip):
    return dataclasses.replace(clip, frames=torch.full_like(clip.frames, 128))


@pytest.mark.parametrize(("mebibytes", "decodes"), [(1024, 2), (0, 6)])
def test_cache_saves_decoding_and_changes_nothing(make_video, tokenizer, monkeypatch, mebibytes, decodes):
    samples = [sample(make_video("a.mp4")), sample(make_video("b.mp4", frames=5))]
    plain = VideoDataset(samples, tokenizer, DataConfig(memory_cache_mib=0))
    expected = [plain[0], plain[1]]
    read, calls = dataset_module.read_clip, []
    monkeypatch.setattr(dataset_module, "read_clip", lambda *a: calls.append(a) or read(*a))
    data = VideoDataset(samples, tokenizer, DataConfig(memory_cache_mib=mebibytes))
    for _ in range(3):
        same(data[0], expected[0])
        same(data[1], expected[1])
    assert len(calls) == decodes


def test_cache_stops_at_its_limit(make_video, tokenizer):
    samples = [sample(make_video(f"{n}.mp4", frames=8, width=224, height=224)) for n in range(3)]
    data = VideoDataset(samples, tokenizer, DataConfig(memory_cache_mib=2))
    assert len([data[index] for index in range(3)]) == 3
    assert list(data._cache) == [str(samples[0].video)]


def test_too_long(make_video, tokenizer):
    data = VideoDataset([sample(make_video())], tokenizer, DataConfig(max_tokens=40))
    with pytest.raises(BadSampleError, match=r"sample clip: \d+ tokens .*max_tokens=40; raise it, or lower data.fps"):
        data[0]


def test_unreadable_video_is_an_error_by_default(make_video, tokenizer):
    path = make_video()
    path.write_text("")
    with pytest.raises(BadSampleError, match=r"sample clip: video .*clip\.mp4 cannot be read.*; re-encode"):
        VideoDataset([sample(path)], tokenizer, DataConfig())[0]


def spoilt(make_video, count, bad):
    paths = [make_video(f"{number}.mp4", frames=2) for number in range(count)]
    for number in bad:
        paths[number].write_text("")
    return [sample(path) for path in paths]


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_takes_the_next_and_counts(make_video, tokenizer, caplog, workers):
    samples = spoilt(make_video, 5, bad=[1, 4])
    data = VideoDataset(samples, tokenizer, DataConfig(on_bad_sample="skip"))
    good = VideoDataset(samples, tokenizer, DataConfig())
    loader = DataLoader(data, batch_size=1, collate_fn=lambda batch: batch[0], num_workers=workers)
    for example, expected in zip(loader, (0, 2, 2, 3, 0), strict=True):
        same(example, good[expected])
    assert data.skipped() == {"unreadable video": 2}
    if not workers:
        assert len([record for record in caplog.records if "on_bad_sample=skip" in record.message]) == 1


def test_skipping_most_is_refused(make_video, tokenizer):
    data = VideoDataset(spoilt(make_video, 4, bad=[0, 1, 2]), tokenizer, DataConfig(on_bad_sample="skip"))
    with pytest.raises(NsaLabError, match=r"more than half of 4 samples are bad \(3 with unreadable video\)"):
        [data[index] for index in range(4)]


def test_worker_errors_stay_one_line(make_video, tokenizer):
    data = VideoDataset(spoilt(make_video, 1, bad=[0]), tokenizer, DataConfig())
    with pytest.raises(BadSampleError) as error:
        list(DataLoader(data, batch_size=1, collate_fn=pack, num_workers=1))
    assert str(error.value).startswith("sample 0: video")
    assert "\n" not in str(error.value)


def test_pickles_without_its_cache(make_video, tokenizer):
    data = VideoDataset([sample(make_video())], tokenizer, DataConfig())
    before = data[0]
    again = pickle.loads(ForkingPickler.dumps(data))
    assert again._cache == {}
    assert len(data._cache) == 1
    same(again[0], before)


def test_ends_like_a_sequence(make_video, tokenizer):
    assert len(list(VideoDataset([sample(make_video())], tokenizer, DataConfig()))) == 1


def test_system_prompt_of_the_row_wins(make_video, tokenizer):
    spoken = dataclasses.replace(sample(make_video()), system="Be brief.")
    text = tokenizer.decode(VideoDataset([spoken], tokenizer, DataConfig())[0].input_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_pack_two_samples(make_video, tokenizer):
    samples = [
        sample(make_video("a.mp4")),
        sample(make_video("b.mp4", frames=3, width=84), task="order", turns=TURNS[:1]),
    ]
    data = VideoDataset(samples, tokenizer, DataConfig())
    one, two = data[0], data[1]
    batch = pack([one, two])
    lengths = [len(one.input_ids), len(two.input_ids)]
    total = sum(lengths)
    for key in ("input_ids", "labels", "mm_token_type_ids", "answer_index"):
        assert batch[key].shape == (1, total), key
        assert batch[key].dtype == torch.int64, key
    assert torch.equal(batch["input_ids"][0], torch.cat([one.input_ids, two.input_ids]))
    assert batch["position_ids"].shape == (4, 1, total)
    assert batch["position_ids"][0, 0].tolist() == [*range(lengths[0]), *range(lengths[1])]
    assert torch.equal(batch["position_ids"][1:, 0], torch.cat([one.position_ids, two.position_ids], dim=1))
    assert batch["video_grid_thw"].tolist() == [[4, 4, 4], [2, 4, 6]]
    assert batch["pixel_values_videos"].shape == (64 + 48, 1176)
    assert batch["answer_tasks"] == ["needle", "needle", "order"]
    for number, answer in enumerate(["red", "northwest", "red"]):
        ids = batch["input_ids"][0, batch["answer_index"][0] == number]
        assert tokenizer.decode(ids) == f"{answer}<|im_end|>"
    assert (batch["answer_index"][0, lengths[0] :] != 0).all()
    assert batch["mm_token_type_ids"].sum() == 2 * (16 + 12)
