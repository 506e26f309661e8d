import json

import pytest

from nsa_lab.data.annotations import read_annotations
from nsa_lab.data.rows import Turn
from nsa_lab.errors import NsaLabError

QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER = {"from": "gpt", "value": "A cat."}
ROW = {"id": "a", "video": "a.mp4", "conversations": [QUESTION, ANSWER], "data_source": "0_30_s"}


@pytest.fixture
def read(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()

    def read(content, **options):
        path = tmp_path / "rows.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return read_annotations(path, tmp_path, **options)

    return read


def test_llava_row(read, tmp_path):
    (sample,) = read([ROW])
    assert (sample.id, sample.video, sample.task, sample.system) == ("a", tmp_path / "a.mp4", "0_30_s", None)
    assert sample.turns == (Turn("What is it?", "A cat."),)


@pytest.mark.parametrize("value", ["What is it?\n<image>", "<video>What is it?", "What <video>is it?", " What is it? "])
def test_placeholder_anywhere(read, value):
    (sample,) = read([{**ROW, "conversations": [{"from": "human", "value": value}, ANSWER]}])
    assert sample.turns[0].question == "What is it?"


def test_turns_in_order(read):
    more = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]
    (sample,) = read([{**ROW, "conversations": [QUESTION, ANSWER, *more]}])
    assert sample.turns == (Turn("What is it?", "A cat."), Turn("Where?", "Here."))


def test_jsonl_equals_json(read):
    rows = [ROW, {**ROW, "id": "b", "video": "b.mp4"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read(lines + "\n\n") == read(rows)


def test_jsonl_with_a_line_separator_inside_a_string(read):
    row = {**ROW, "conversations": [QUESTION, {"from": "gpt", "value": "one\u2028two"}]}
    (sample,) = read(json.dumps(row, ensure_ascii=False))
    assert sample.turns[0].answer == "one\u2028two"


@pytest.mark.parametrize(
    ("content", "extra"),
    [
        ("<video>What is it?", {"videos": ["a.mp4"]}),
        ("What is it?", {"video": "a.mp4"}),
        ([{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What is it?"}], {}),
    ],
)
def test_messages_row(read, tmp_path, content, extra):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
    (sample,) = read([{"messages": [{"role": "system", "content": "Be brief."}, *messages], **extra}])
    assert (sample.video, sample.task, sample.system) == (tmp_path / "a.mp4", "video", "Be brief.")
    assert sample.turns == (Turn("What is it?", "A cat."),)


def test_task_field_before_data_source(read):
    assert read([{**ROW, "task": "needle"}])[0].task == "needle"


def without(key):
    return {name: value for name, value in ROW.items() if name != key}


@pytest.mark.parametrize(
    ("content", "place", "fault"),
    [
        ('[{"id": 1},\n {"id" 2}]', "line 2, column 8", "not JSON"),
        (json.dumps(ROW) + "\n{oops\n", "line 2, column 2", "not JSON"),
        ([ROW, without("conversations")], "row 2", "neither `conversations` nor `messages`"),
        ([without("video")], "row 1", "has no `video`"),
        ([ROW, ROW, {**ROW, "conversations": []}], "row 3", "is empty"),
        ([{**ROW, "conversations": [ANSWER, QUESTION]}], "row 1", "turns come as assistant, user"),
        ([{**ROW, "conversations": [QUESTION]}], "row 1", "turns come as user"),
        ([{**ROW, "conversations": [{"from": "system", "value": "Hi"}]}], "row 1", "turns come as nothing"),
        ([{**ROW, "conversations": [{"from": "bot", "value": "?"}, ANSWER]}], "row 1", "'bot'; use one of"),
        ([{**ROW, "conversations": [{"from": "human"}, ANSWER]}], "row 1", "lacks `from` or `value`"),
        ([{**ROW, "conversations": [{"from": "human", "value": "<image>"}, ANSWER]}], "row 1", "holds no text"),
        ([{**ROW, "conversations": [{"from": "human", "value": 3}, ANSWER]}], "row 1", "is a int; write text"),
        ([without("video") | {"videos": ["a.mp4", "b.mp4"]}], "row 1", "has 2 videos"),
        ([{**ROW, "video": None}], "row 1", "`video` is None"),
        ([ROW, {**ROW, "video": "lost.mp4"}], "row 2", "does not exist (1 of 2 rows have no video file)"),
        ([{**ROW, "video": "."}], "row 1", "is a folder"),
        (["text"], "row 1", "is a str, not an object"),
        ([], "", "holds no samples"),
        ("", "", "holds no samples"),
    ],
)
def test_faults_name_file_place_and_remedy(read, content, place, fault):
    with pytest.raises(NsaLabError) as error:
        read(content)
    message = str(error.value)
    assert "rows.json" in message
    assert place in message
    assert fault in message
    assert "\n" not in message
    assert ";" in message, "no remedy"


def test_missing_file(tmp_path):
    with pytest.raises(NsaLabError, match=r"annotations .*none\.json do not exist; correct the path"):
        read_annotations(tmp_path / "none.json", tmp_path)


def test_missing_videos_are_skipped_aloud(read, caplog):
    samples = read([{**ROW, "video": "lost.mp4"}, ROW], skip=True)
    assert [sample.video.name for sample in samples] == ["a.mp4"]
    assert [record.message for record in caplog.records if "1 of 2 rows" in record.message]


def test_all_videos_missing_is_never_skipped(read):
    with pytest.raises(NsaLabError, match="2 of 2 rows have no video file"):
        read([{**ROW, "video": "lost.mp4"}] * 2, skip=True)


def turns(*values):
    return [{"from": who, "value": value} for who, value in zip(("human", "gpt") * 4, values, strict=False)]


def parts(*content):
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "A cat."}]}


TEXT = {"type": "text", "text": "What is it?"}
BAD_ROWS = {
    "text only": without("video"),
    "no answer at the end": {**ROW, "conversations": [QUESTION, ANSWER, QUESTION]},
    "no conversations": without("conversations"),
    "empty conversations": {**ROW, "conversations": []},
    "conversations that are text": {**ROW, "conversations": "What is it?"},
    "a turn that is text": {**ROW, "conversations": ["What is it?", "A cat."]},
    "a role that is a list": {**ROW, "conversations": [{"from": ["human"], "value": "?"}, ANSWER]},
    "an answer that is a number": {**ROW, "conversations": turns("What is it?", 3)},
    "an answer that is null": {**ROW, "conversations": turns("What is it?", None)},
    "an answer that is NaN": {**ROW, "conversations": turns("What is it?", float("nan"))},
    "an empty answer": {**ROW, "conversations": turns("What is it?", " ")},
    "a lone surrogate": {**ROW, "conversations": turns("What is it?", "\ud800")},
    "a null video": {**ROW, "video": None},
    "an empty video": {**ROW, "video": ""},
    "a video that is a list": {**ROW, "video": ["a.mp4"]},
    "a video that is a number": {**ROW, "video": 7},
    "a video that is NaN": {**ROW, "video": float("nan")},
    "videos that are text": without("video") | {"videos": "a.mp4"},
    "videos of numbers": without("video") | {"videos": [7]},
    "two videos": without("video") | {"videos": ["a.mp4", "b.mp4"]},
    "an image": {**ROW, "image": "a.jpg"},
    "images": {**ROW, "images": ["a.jpg"]},
    "an image part": parts({"type": "video", "video": "a.mp4"}, {"type": "image", "image": "a.jpg"}, TEXT),
    "a part that is text": parts({"type": "video", "video": "a.mp4"}, "What is it?"),
    "a part whose text is a number": parts({"type": "video", "video": "a.mp4"}, {"type": "text", "text": 3}),
    "messages of the wrong type": {"video": "a.mp4", "messages": {"role": "user"}},
    "an id that is a list": {**ROW, "id": ["a"]},
    "an id that is NaN": {**ROW, "id": float("nan")},
    "a task that is an object": {**ROW, "task": {"name": "x"}},
    "a meta that is a list": {**ROW, "meta": [1]},
    "a list": [ROW],
    "null": None,
    "a number": 3,
    "NaN": float("nan"),
    "a video outside": {**ROW, "video": "../a.mp4"},
    "a video outside, by a detour": {**ROW, "video": "x/../../a.mp4"},
    "an absolute path": {**ROW, "video": "/etc/passwd"},
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_what_is_wrong_with_a_row_is_that_rows(read, row, caplog):
    with pytest.raises(NsaLabError, match=r"rows\.json: row 2: .*; .*data\.on_bad_sample=skip") as error:
        read([ROW, row, ROW])
    assert "\n" not in str(error.value)
    samples = read([ROW, row, ROW], skip=True)
    assert len(samples) == 2
    assert samples.skipped == {"unusable row": 1}
    assert "1 of 3 rows cannot be used and are left out; the first is row 2: " in caplog.text


@pytest.mark.parametrize("line", [b"{oops", b"[1", b"9" * 5000, b'{"a":' * 100_000, b"\xff\xfe"], ids=range(5))
def test_a_line_that_is_no_json_is_that_lines(read, tmp_path, line):
    good = json.dumps(ROW).encode()
    content = b"\n".join([good, line, good])
    (tmp_path / "lines.jsonl").write_bytes(content)
    with pytest.raises(NsaLabError, match=r"lines\.jsonl: line 2"):
        read_annotations(tmp_path / "lines.jsonl", tmp_path)
    samples = read_annotations(tmp_path / "lines.jsonl", tmp_path, skip=True)
    assert (len(samples), samples.skipped) == (2, {"unusable row": 1})


def test_bytes_that_are_no_utf8_spoil_their_row_alone(tmp_path, read):
    read([ROW])
    rows = json.dumps([ROW, {**ROW, "conversations": turns("What?", "caf\u00e9")}], ensure_ascii=False)
    (tmp_path / "latin.json").write_bytes(rows.encode("latin-1"))
    with pytest.raises(NsaLabError, match=r"row 2: `conversations\[1\]\.value` holds what is no UTF-8 text"):
        read_annotations(tmp_path / "latin.json", tmp_path)
    assert read_annotations(tmp_path / "latin.json", tmp_path, skip=True).skipped == {"unusable row": 1}


def test_kinds_are_counted_apart(read):
    samples = read([ROW, None, {**ROW, "video": "lost.mp4"}, {**ROW, "video": "n" * 5000}, ROW], skip=True)
    assert (len(samples), samples.skipped) == (2, {"unusable row": 1, "missing video file": 2})


def test_bad_rows_alone_are_never_skipped(read):
    with pytest.raises(NsaLabError, match=r"2 of 2 rows cannot be used; correct them; the first is row 1: is a None"):
        read([None, None], skip=True)


def test_ids_may_repeat_and_be_numbers_or_nothing(read):
    samples = read([ROW, ROW, {**ROW, "id": 7}, {**ROW, "id": None}, without("id")])
    assert [sample.id for sample in samples] == ["a", "a", "7", "row 4", "row 5"]


def test_fields_that_are_null_are_not_there(read):
    row = {**ROW, "task": None, "data_source": None, "meta": None, "image": None, "images": []}
    assert read([row])[0].task == "video"
    null = parts({"type": "video", "video": "a.mp4", "text": None}, {**TEXT, "video": None})
    assert read([null])[0].turns[0].question == "What is it?"


def test_paths_inside_the_folder(read, tmp_path):
    rows = [{**ROW, "video": name} for name in ("./a.mp4", "x/../a.mp4", str(tmp_path / "a.mp4"))]
    assert {sample.video for sample in read(rows)} == {tmp_path / "a.mp4"}


def test_absolute_paths_by_a_setting(read, tmp_path):
    other = tmp_path.with_name(f"{tmp_path.name}-other.mp4")
    other.touch()
    with pytest.raises(NsaLabError, match=r"absolute path .*or allow such paths with data\.absolute_videos=true"):
        read([{**ROW, "video": str(other)}])
    assert read([{**ROW, "video": str(other)}], absolute=True)[0].video == other
