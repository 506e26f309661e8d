"""Annotations and videos looked at before a training: nothing stops it, nothing is lost, the list holds."""

import json
import multiprocessing
import os
import signal
from functools import partial

import pytest

from nsa_lab.config import load_config
from nsa_lab.data import VideoDataset, lengths, load_samples
from nsa_lab.data.annotations import parsed_rows
from nsa_lab.data.check import DROP, LEDGER, check
from nsa_lab.data.processes import in_processes
from nsa_lab.data.summary import decoding, groups, quantiles, sizes
from nsa_lab.errors import NsaLabError
from nsa_videos import write

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]


@pytest.fixture
def forked(monkeypatch):
    """Processes are forked; those tests that ask for `workers` spawn them as well, where all tests are run."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Four good videos of 20 to 50 frames a 30th of a second, one cut off, one damaged, and ten rows about them."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(6):
        write(folder / f"{number}.mp4", times=range(20 + 10 * min(number, 3)), noise=number > 3)
    content = (folder / "4.mp4").read_bytes()
    (folder / "4.mp4").write_bytes(content[: len(content) // 2])
    spoiled = bytearray((folder / "5.mp4").read_bytes())
    spoiled[len(spoiled) // 2 : len(spoiled) // 2 + 3000] = bytes(3000)
    (folder / "5.mp4").write_bytes(bytes(spoiled))
    rows = [row(f"{n}.mp4", n) for n in (0, 1, 2, 3, 0, 4, 4, 5)]
    rows += [
        row("gone.mp4", 9),
        {"id": "none"},
        row("0.mp4", 10, text="<|video_pad|>"),
        row("0.mp4", 11, " word" * 400),
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def row(video, number, text="Red."):
    talk = [TALK[0], {"from": "gpt", "value": text}]
    return {"id": str(number), "video": video, "conversations": talk, "task": f"part {number % 2}"}


@pytest.fixture
def config(films, clips):
    def make(**settings):
        given = {"data.annotations": str(films / "rows.json"), "data.videos": str(films), "data.cache_dir": str(clips)}
        return load_config(None, given | {"data.fps": 8, "data.max_tokens": 200} | settings)

    return make


@pytest.mark.usefixtures("workers")
def test_all_is_counted_and_what_the_list_names_is_all_that_a_training_could_not_use(
    config, tmp_path, tokenizer, monkeypatch
):
    reads = []
    monkeypatch.setattr("nsa_lab.data.check.parsed_rows", lambda *given: reads.append(given) or parsed_rows(*given))
    found = check(config(), tmp_path, workers=2)
    assert len(reads) == 1, "annotations may be large"
    assert found.lost == {
        "unreadable video": 3,
        "missing video file": 1,
        "unusable row": 1,
        "reserved token in its text": 1,
        "more than data.max_tokens tokens": 1,
    }
    lines = [json.loads(line) for line in (tmp_path / DROP).read_text().splitlines()]
    assert lines == found.drop
    assert [line["video"] for line in lines if "row" not in line] == ["4.mp4", "5.mp4", "gone.mp4"]
    assert ["place" in line for line in lines if "row" in line] == [True] * 3
    assert (
        "5.mp4 cannot be read" in lines[1]["reason"]
        and "tokens (6 frames of 56x56) are more than" in lines[-1]["reason"]
    )

    assert [len(good) for good in (found.good, found.looks)] == [5, 4]
    assert sizes(found)["frames at data.fps"] == [6, 8, 11, 14]
    assert sizes(found)["seconds of a video"] == pytest.approx([20 / 30, 1, 40 / 30, 50 / 30], rel=1e-3)
    parts = {group.group: (group.rows, group.questions, group.videos) for group in groups(found)}
    assert parts == {"part 0": (3, 3, 2), "part 1": (2, 2, 2), "all": (5, 5, 4)}
    assert groups(found)[-1].hours == pytest.approx((140 / 30) / 3600, rel=1e-3)

    left = config(**{"data.drop": str(tmp_path / DROP), "data.val_annotations": str(tmp_path / "val.json")})
    (tmp_path / "val.json").write_text(json.dumps([row("0.mp4", 0)]))
    data = VideoDataset(load_samples(left)["train"], tokenizer, left.data)
    assert sorted(len(data[at].input_ids) for at in range(len(data))) == sorted(good.tokens for good in found.good)
    with pytest.raises(NsaLabError, match="is the list that would be written; give another --out"):
        check(left, tmp_path)
    again = check(left, tmp_path / "again", workers=2)
    assert (len(again.good), again.drop, again.lost) == (5, [], {})


@pytest.mark.usefixtures("forked")
def test_it_goes_on_where_it_was_ended_and_looks_again_at_what_changed(config, films, tmp_path):
    told = []

    def stop(*numbers):
        told.append(numbers)
        if numbers[0] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(config(), tmp_path, on_progress=stop)
    with open(tmp_path / LEDGER, "a") as ledger:
        ledger.write('["half a li')
    first = check(config(), tmp_path, on_progress=lambda *numbers: told.append(numbers))
    assert told[:5] == [(0, 6, 0), (1, 6, 0), (2, 6, 0), (3, 6, 0), (3, 6, 0)] and told[-1] == (6, 6, 2)
    os.utime(films / "1.mp4")
    told.clear()
    second = check(config(), tmp_path, on_progress=lambda *numbers: told.append(numbers))
    assert told[0] == (3, 6, 0), "all but the changed one and the two that cannot be read"
    assert second.drop == first.drop and second.good == first.good and second.looks.keys() == first.looks.keys()


@pytest.mark.usefixtures("forked")
def test_without_decoding_damage_is_not_seen_and_with_it_later_it_is(config, tmp_path):
    quick = check(config(), tmp_path, decode=False)
    assert quick.lost["unreadable video"] == 2 and decoding(quick) is None
    told = []
    whole = check(config(), tmp_path, on_progress=lambda *numbers: told.append(numbers))
    assert told[0] == (0, 6, 0) and whole.lost["unreadable video"] == 3
    taken = decoding(whole)
    assert taken.videos == 4 and 0 < taken.seconds < 1 and taken.per_second == pytest.approx(1 / taken.seconds)
    assert taken.cores(2 * taken.tokens_per_second) == pytest.approx(2)
    known = check(config(), tmp_path, decode=False).looks
    assert whole.looks.items() <= known.items(), "what was decoded is not looked at again"


@pytest.mark.usefixtures("forked")
def test_a_training_measures_nothing_that_was_looked_at(config, tmp_path, monkeypatch):
    own = {"data.cache_dir": str(tmp_path / "cache"), "data.on_bad_sample": "skip", "data.fewest_frames": 7}
    check(config(**own), tmp_path / "found")
    drop = {"data.drop": str(tmp_path / "found" / DROP)}
    monkeypatch.setattr(lengths, "read_shape", None)
    split = load_samples(config(**own | drop))
    assert {sample.video.name for part in split.values() for sample in part} == {"1.mp4", "2.mp4", "3.mp4"}


@pytest.mark.usefixtures("forked")
def test_videos_of_other_lengths_are_no_fault_and_are_not_decoded(config, tmp_path):
    """Frames at 8 a second: 6, 8, 11 and 14."""
    found = check(config(**{"data.fewest_frames": 7, "data.most_frames": 11}), tmp_path)
    assert sorted(found.looks[row.video].shape.frames for row in found.good) == [8, 11]
    assert found.outside == 6 and found.lost == {"unreadable video": 2, "missing video file": 1, "unusable row": 1}
    assert {look.shape.frames for look in found.looks.values() if look.decode_s is None} == {6, 14}
    told = []
    again = check(config(**{"data.fewest_frames": 7}), tmp_path, on_progress=lambda *numbers: told.append(numbers))
    assert told[0] == (3, 6, 0), "of the one that is not outside any more, not decoded yet, and the two unreadable ones"
    assert sorted(again.looks[row.video].shape.frames for row in again.good) == [8, 11, 14]


def dies(item, folder):
    """The process ends while it has `once` in hand for the first time, and `always` each time."""
    name, number = item
    first = not (folder / name).exists()
    (folder / name).touch()
    if name == "always" or (name == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("bad", ["once", "always"])
def test_a_process_that_dies_costs_no_result_but_of_what_kills_it_twice(tmp_path, bad):
    items = [("fine-a", 0), ("fine-b", 1), (bad, 2), *((f"fine-{n}", n) for n in range(3, 12))]
    found = dict(in_processes(partial(dies, folder=tmp_path), items, workers=2))
    wanted = {item: None if item[0] == "always" else item[1] for item in items}
    assert found == wanted


def test_quantiles():
    assert quantiles([3.0]) == dict.fromkeys(("least", "10%", "median", "90%", "most"), 3.0)
    assert quantiles(list(range(11)))["90%"] == 9
