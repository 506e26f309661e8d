"""A folder to sweep in."""

from pathlib import Path

import pytest

from nsa_sweeps import SPACE


@pytest.fixture
def pictures():
    """Asked for by a test of a sweep's pictures, which take seconds to draw."""


@pytest.fixture
def undrawn(request, monkeypatch):
    """The quick suite draws a sweep's pictures where a test asks for them; elsewhere the files hold their names."""
    if "pictures" in request.fixturenames or request.config.getoption("all"):
        return
    for writer in ("page.write_html", "picture.write_png"):
        monkeypatch.setattr(f"nsa_lab.search.{writer}", lambda outcome, file: file.write_text(file.name))


@pytest.fixture
def folder(tmp_path, monkeypatch, workers, undrawn):
    """A folder with a base experiment and a sweep file, as the current one; the stand-in runner importable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr("nsa_lab.search.study.PROBES", 4)  # each is a config loaded; one shows these spaces whole
    (tmp_path / "base.yaml").write_text("name: base\ntasks: {needle: {enabled: true}}\ntracking: {enabled: false}\n")
    (tmp_path / "space.py").write_text(SPACE)
    return tmp_path
