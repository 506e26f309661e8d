"""From a sweep to a large training: what a design needs on real GPUs (`plan`), and its config there (`promote`)."""
