"""Rows and videos that a list names are left out, wherever they stand."""

import json

import pytest

from nsa_lab.config import load_config
from nsa_lab.data import load_samples
from nsa_lab.data.annotations import parsed_rows, read_annotations
from nsa_lab.data.drop import read_drop, row_digest, write_drop
from nsa_lab.errors import NsaLabError

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]


@pytest.fixture
def folder(tmp_path):
    """Three videos (never opened here); two rows of the first, then one each, then a row and a line that are none."""
    for letter in "abc":
        (tmp_path / f"{letter}.mp4").touch()
    rows = [{"id": f"{n}", "video": f"{letter}.mp4", "conversations": TALK} for n, letter in enumerate("aabc")]
    lines = [*(json.dumps(row) for row in [*rows, {"id": "4"}]), "{no JSON"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path


def listed(folder, *entries):
    write_drop(folder / "drop.jsonl", entries)
    return read_drop(folder / "drop.jsonl")


def test_a_video_goes_with_all_its_rows_and_a_row_alone_even_where_it_is_none(folder, caplog):
    rows = {place: row_digest(row) for place, row, _ in parsed_rows(folder / "rows.jsonl", folder)}
    assert len(set(rows.values())) == 6
    bad = [{"row": rows["line 5"]}, {"row": rows["line 6, column 2"]}]
    drop = listed(folder, {"video": "a.mp4", "reason": "damaged"}, {"row": rows["line 3"], "video": "b.mp4"}, *bad)
    (folder / "rows.jsonl").write_text("\n\n" + (folder / "rows.jsonl").read_text())
    samples = read_annotations(folder / "rows.jsonl", folder, drop=drop)
    assert [sample.id for sample in samples] == ["3"] and samples.skipped == {}
    assert "5 rows are left out by data.drop=" in caplog.text
    assert len(read_annotations(folder / "rows.jsonl", folder, skip=True, drop=listed(folder))) == 4


def test_the_setting_reaches_both_splits_and_names_what_it_cannot_read(folder):
    rows = [{"id": f"{n}", "video": f"{letter}.mp4", "conversations": TALK} for n, letter in enumerate("abc")]
    (folder / "good.json").write_text(json.dumps(rows))
    (folder / "drop.jsonl").write_text('{"video": "a.mp4"}\n\n')
    given = {"data.annotations": str(folder / "good.json"), "data.videos": str(folder)}
    given |= {"data.val_annotations": str(folder / "good.json"), "data.drop": str(folder / "drop.jsonl")}
    samples = load_samples(load_config(None, given))
    assert [len(samples[split]) for split in ("train", "val")] == [2, 2]
    every = "".join(json.dumps({"video": f"{letter}.mp4"}) + "\n" for letter in "abc")
    for content, said in (
        (every, "names all 3 rows; correct the list"),
        ('{"id": 1}', r"drop.jsonl:1: .* names no video and no row"),
        ("a.mp4", "not JSON"),
    ):
        (folder / "drop.jsonl").write_text(content)
        with pytest.raises(NsaLabError, match=said):
            load_samples(load_config(None, given))
    with pytest.raises(NsaLabError, match=r"cannot be read .*; name a list of `nsa-lab data check`"):
        load_samples(load_config(None, given | {"data.drop": str(folder / "none.jsonl")}))


def test_a_folder_holds_the_annotations_of_all_subsets_beside_their_videos(folder):
    root = folder / "llava"
    for subset, names in (("0_30_s", "ab"), ("1_2_m", "a")):
        (root / subset / "deep").mkdir(parents=True)
        for letter in names:
            (root / subset / "deep" / f"{letter}.mp4").touch()
        rows = [{"video": f"deep/{letter}.mp4", "conversations": TALK, "data_source": subset} for letter in names]
        (root / subset / "qa.json").write_text(json.dumps(rows))
    (root / "deep").mkdir()
    (root / "deep" / "shared.mp4").touch()
    rows = [{"video": "deep/shared.mp4", "conversations": TALK}]
    (root / "1_2_m" / "cap.jsonl").write_text(json.dumps(rows[0]))
    samples = read_annotations(root, root)
    found = {sample.id: sample.video.relative_to(root).as_posix() for sample in samples}
    assert found == {
        "0_30_s/qa.json: row 1": "0_30_s/deep/a.mp4",
        "0_30_s/qa.json: row 2": "0_30_s/deep/b.mp4",
        "1_2_m/cap.jsonl: line 1": "deep/shared.mp4",
        "1_2_m/qa.json: row 1": "1_2_m/deep/a.mp4",
    }
    (root / "1_2_m" / "deep" / "a.mp4").unlink()
    with pytest.raises(NsaLabError, match=r"llava: 1_2_m/qa.json: row 1: video .*deep/a.mp4 does not exist"):
        read_annotations(root, root)
    (folder / "empty").mkdir()
    with pytest.raises(NsaLabError, match="is a folder without a file"):
        read_annotations(folder / "empty", root)
