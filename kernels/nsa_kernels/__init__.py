"""GPU kernels of nsa-lab's attention ops. None so far: the ops run on nsa_lab.attention.backends.torch_path."""
