"""A store for the runs of a folder's tests."""

import pytest

from nsa_lab import tracking
from nsa_tracking import config_in


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """An output folder whose tracking database exists."""
    folder = tmp_path_factory.mktemp("runs")
    tracking.prepare_store(config_in(folder))
    return folder
