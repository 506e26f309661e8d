"""`python -m nsa_lab.cli`: the command line where the `nsa-lab` script is not installed."""

from nsa_lab.cli.app import main

main()
