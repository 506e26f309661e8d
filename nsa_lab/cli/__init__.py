"""The command line, `nsa-lab`."""

from nsa_lab.cli.app import main

__all__ = ["main"]
