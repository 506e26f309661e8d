"""What sweeps and comparisons share: worker processes, and the Python files that say what to train."""
