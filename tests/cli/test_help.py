"""The pages of `--help` on a narrow terminal: nothing cut, a range for each number, the choices that there are."""

import re
from typing import get_args

import pytest
import typer

from nsa_lab import cli
from nsa_lab.cli.app import app
from nsa_lab.comparison.ablation import AT, BOTH
from nsa_lab.evaluation.task_check import SUITE, designs
from nsa_lab.model.export import DTYPES
from nsa_lab.scale import BASE, Policy
from nsa_lab.scale.rates import GPUS


def paths(command, path=()):
    yield path
    for name, one in getattr(command, "commands", {}).items():
        yield from paths(one, (*path, name))


@pytest.fixture
def page(monkeypatch, capfd):
    """The help of a command on 80 columns."""

    def read(*path):
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit):
            cli.main([*path, "--help"])
        return capfd.readouterr().out

    return read


@pytest.mark.parametrize("path", paths(typer.main.get_command(app)), ids=" ".join)
def test_a_page_fits_80_columns_and_each_number_has_a_range(page, path):
    text = page(*path)
    assert "Usage: nsa-lab" in text and max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "cut"
    ranged = re.sub(r"\[[\d.]+<=x<=[\d.]+\]", "", text)
    types = re.findall(r"<[^<>\n│]+>", ranged)
    assert len(types) == ranged.count("<"), "a type or its choices broken over lines"
    assert not {"<int>", "<float>"} & set(types), "a number without a range"


def test_choices_and_defaults_are_those_of_their_tables(page):
    assert f"<{'|'.join(GPUS)}>" in (text := page("plan")) and f"<{'|'.join(get_args(Policy))}>" in text
    assert f"<{'|'.join(DTYPES)}>" in page("export")
    assert f"<{'|'.join((*AT, BOTH))}>" in page("ablate")
    assert str(BASE) in page("promote")
    text = page("tasks", "check")
    assert all(f"{file}" in text for file in SUITE)
    product = f"{len(designs())} x 3 x {len(SUITE)} = {6 * len(designs())} trainings"
    assert product in re.sub(r"\s+", " ", text)
