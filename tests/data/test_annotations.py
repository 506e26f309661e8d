import json

import pytest

from nsa_lab.data.annotations import Turn, read_annotations
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
    samples = read([{**ROW, "video": "lost.mp4"}, ROW], skip_missing=True)
    assert [sample.video.name for sample in samples] == ["a.mp4"]
    assert [record.message for record in caplog.records if "1 of 2 rows" in record.message]


def test_all_videos_missing_is_never_skipped(read):
    with pytest.raises(NsaLabError, match="2 of 2 rows have no video file"):
        read([{**ROW, "video": "lost.mp4"}] * 2, skip_missing=True)
