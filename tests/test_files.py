"""Files that appear whole, locks between processes, and damaged JSON."""

import multiprocessing
import subprocess
import sys
import time

import pytest

from nsa_lab.errors import NsaLabError
from nsa_lab.files import FileLock, clear_unfinished, locked, read_json, whole, write_csv, write_json, write_text


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(OSError, match="full"), whole(file) as unfinished:
        unfinished.write_text("half of the n")
        assert file.read_text() == "old"
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "old"
    with whole(file) as unfinished:
        unfinished.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "new"


def test_a_folder_appears_whole_and_never_over_another(tmp_path):
    for text in ("first", "second"):
        try:
            with whole(tmp_path / "folder") as unfinished:
                unfinished.mkdir()
                (unfinished / "inside").write_text(text)
        except OSError:
            assert text == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder/inside").read_text() == "first"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with whole(tmp_path / "a") as one, whole(tmp_path / "a") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1", "the last to end"


def test_what_a_killed_process_left_is_found(tmp_path):
    code = f"""
import os
from pathlib import Path
from nsa_lab.files import whole
with whole(Path({str(tmp_path)!r}) / "deep" / "a") as unfinished:
    unfinished.parent.mkdir()
    unfinished.write_text("half")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code])
    (tmp_path / "deep/b").write_text("whole")
    assert len(list((tmp_path / "deep").iterdir())) == 2
    clear_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b"]


def test_json_comes_back_and_a_csv_ends_its_lines_as_unix_does(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json", "", ["b"]) == {"b": [1, 2.5, None]}
    assert read_json(tmp_path / "none.json", "") == {}
    write_csv(tmp_path / "a.csv", [["x", "y"], [1, "a,b"]])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n1,"a,b"\n'


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[]", b'{"b": 1}', b"\xff\xfe\x00"])
def test_damaged_json_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(NsaLabError, match=r"a\.json is damaged \(.*\); do this") as caught:
        read_json(tmp_path / "a.json", "do this", ["a"])
    assert "\n" not in str(caught.value)


def test_a_lock_keeps_others_out_until_it_is_free(tmp_path, caplog):
    mine, yours = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert mine.take() and not yours.take() and not yours.take(0.2)
    mine.free()
    assert yours.take()
    yours.free()
    with locked(tmp_path / "lock", "waiting"):
        assert not mine.take()
    assert mine.take() and not caplog.text
    mine.free()


HOLD = """
import sys, time
from pathlib import Path
from nsa_lab.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_lock_that_was_freed_is_not_kept_by_a_fork(tmp_path):
    lock = FileLock(tmp_path / "lock")
    assert lock.take()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    try:
        lock.free()
        assert FileLock(tmp_path / "lock").take()
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("seconds", ["60", "0.5"])
def test_a_lock_is_free_when_its_holder_ends_however_it_ends(tmp_path, caplog, seconds):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock", seconds], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert not FileLock(tmp_path / "lock").take()
    if seconds == "60":
        holder.kill()
        holder.wait()
    started = time.monotonic()
    with locked(tmp_path / "lock", "waiting for them"):
        assert time.monotonic() - started < 30
    assert ("waiting for them" in caplog.text) == (seconds == "0.5")
    holder.wait()
