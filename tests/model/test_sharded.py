"""A checkpoint in parts is read as one, and runs nobody's code."""

import os
import pickle
import re
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp

from nsa_lab.errors import NsaLabError
from nsa_lab.model import sharded, trained
from nsa_lab.model.sharded import REST, TABLE, as_one, read_rest, read_tensors, scattered
from nsa_lab.model.trained import check_readable


class Runs:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def parts(tmp_path):
    """A folder of parts with a tensor and a value that is none."""
    state = {
        "state_dict": {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer_0": {"lr": 0.5},
    }
    dcp.save(state, checkpoint_id=tmp_path / "parts", no_dist=True)
    torch.save({"global_step": 3}, tmp_path / "parts" / REST)
    return tmp_path / "parts"


def test_parts_are_looked_through_once(parts, monkeypatch):
    looked = []
    monkeypatch.setattr(sharded, "refuse_code", looked.append)
    monkeypatch.setattr(sharded, "_numbered", dict)
    assert as_one(parts)["global_step"] == 3 and looked == [parts]


def test_parts_are_read_as_one(parts):
    assert check_readable(parts) == read_rest(parts)["global_step"] == 3
    found = read_tensors(parts)
    assert torch.equal(found["state_dict"]["a"], torch.arange(3.0)) and found["optimizer_0"] == {"lr": 0.5}
    assert set(read_tensors(parts, "state_dict")) == {"state_dict"}


def test_a_scattered_tensor_is_read_by_rows(parts):
    found = scattered(parts, "state_dict")
    assert found.keys() == {"a", "b"} and scattered(parts, "optimizer_0") == {}
    assert len(found["a"]) == 3 and found["b"].shape == (2,)
    assert found["a"][1:].tolist() == [1.0, 2.0] and torch.equal(found["b"][...], torch.ones(2, dtype=torch.bfloat16))


def with_code_as_table(folder, mark):
    (folder / TABLE).write_bytes(pickle.dumps(Runs(mark)))


def with_code_in_the_table(folder, mark):
    table = pickle.loads((folder / TABLE).read_bytes())
    (folder / TABLE).write_bytes(pickle.dumps(replace(table, planner_data=Runs(mark))))


def with_code_as_a_value(folder, mark):
    table = pickle.loads((folder / TABLE).read_bytes())
    (index,) = (index for index in table.storage_data if index.fqn == "optimizer_0.lr")
    torch.save(Runs(mark), folder / "evil")
    info = replace(table.storage_data[index], relative_path="evil", offset=0, length=(folder / "evil").stat().st_size)
    table.storage_data[index] = info
    (folder / TABLE).write_bytes(pickle.dumps(table))


def with_a_part_elsewhere(folder, mark):
    table = pickle.loads((folder / TABLE).read_bytes())
    table.storage_data = {i: replace(info, relative_path="../parts-2") for i, info in table.storage_data.items()}
    (folder / TABLE).write_bytes(pickle.dumps(table))


@pytest.mark.parametrize(
    "spoil", [with_code_as_table, with_code_in_the_table, with_code_as_a_value, with_a_part_elsewhere]
)
def test_parts_that_could_run_code_are_refused(parts, tmp_path, spoil):
    mark = tmp_path / "ran"
    spoil(parts, mark)
    with pytest.raises(NsaLabError, match="could run code"):
        check_readable(parts)
    for read in (read_tensors, lambda folder: scattered(folder, "state_dict")):
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            read(parts)
    assert not mark.exists()


@pytest.mark.parametrize("name", [TABLE, REST, "__0_0.distcp"])
def test_a_missing_part_is_named(parts, name):
    (parts / name).unlink()
    with pytest.raises(NsaLabError, match=f"its part {re.escape(name)} is missing"):
        check_readable(parts)


def test_a_part_that_is_cut_off_is_named(parts):
    part = parts / "__0_0.distcp"
    os.truncate(part, part.stat().st_size - 1)
    with pytest.raises(NsaLabError, match=r"its part __0_0\.distcp is cut off"):
        check_readable(parts)


def test_a_flipped_bit_of_a_part_is_seen_up_to_a_size(parts, monkeypatch):
    part = parts / "__0_0.distcp"
    content = part.read_bytes()
    number = torch.arange(3.0).numpy().tobytes()
    part.write_bytes(content.replace(number, bytes([1]) + number[1:]))
    with pytest.raises(NsaLabError, match=r"state_dict\.a is not as it was written"):
        check_readable(parts)
    monkeypatch.setattr(trained, "CHECKED", 1)
    assert check_readable(parts) == 3
