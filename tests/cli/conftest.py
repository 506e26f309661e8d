import pytest

from nsa_lab import cli


@pytest.fixture
def nsa_lab(capfd):
    """Runs one command in this process; gives exit code, stdout and stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call
