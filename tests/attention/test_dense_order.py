"""Which attention PyTorch tries first for dense rows on a GPU."""

import logging

import torch
from torch.nn.attention import SDPBackend

from nsa_lab.attention.backends import torch_path


def test_cudnn_comes_first_on_a_gpu_and_that_is_said_once(monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(torch_path, "sdpa_kernel", lambda order, set_priority: asked.append((order, set_priority)))
    monkeypatch.setattr(torch_path, "_said", set())
    with caplog.at_level(logging.INFO, torch_path.__name__):
        for _ in range(2):
            torch_path._preferring_cudnn(torch.device("cuda"))
        torch_path._preferring_cudnn(torch.device("cpu"))
    assert len(asked) == 2 and asked[0][0][0] is SDPBackend.CUDNN_ATTENTION and asked[0][1]
    assert len(caplog.records) == 1
