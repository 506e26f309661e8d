"""Trains lists of configs on worker processes, through deaths, faults and interrupts: for sweeps and comparisons."""
