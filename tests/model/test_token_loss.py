"""The chunked cross-entropy against PyTorch's on all logits: loss, hits and gradients."""

import functools

import pytest
import torch
from torch.nn import functional as F

from nsa_lab.model import build_model, video_nsa
from nsa_lab.model.token_loss import token_loss
from nsa_testing import model_batch, tiny_config

ROWS, WIDTH, VOCABULARY = 37, 24, 101


def given(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (ROWS,), generator=generator)


@pytest.mark.parametrize("rows", [1, 8, 36])
def test_chunks_give_the_loss_the_hits_and_the_gradients_of_all_logits(rows):
    hidden, weight, targets = given(torch.float32)
    found = token_loss(hidden, weight, targets, rows)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(found.loss, expected)
    assert torch.equal(found.hits, logits.argmax(-1) == targets)
    for own, theirs in zip(
        torch.autograd.grad(3 * found.loss, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(own, theirs)


def test_under_autocast_the_product_runs_in_its_dtype():
    hidden, weight, targets = given(torch.float32)
    gradients = []
    for rows in (8, ROWS):
        with torch.autocast("cpu", torch.bfloat16):
            found = token_loss(hidden, weight, targets, rows)
        assert found.loss.dtype == torch.float32
        gradients.append((found.loss.detach(), *torch.autograd.grad(found.loss, (hidden, weight))))
    for chunked, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=0.02, atol=2e-3)


def test_no_tensor_of_all_logits_is_made():
    hidden, weight, targets = given(torch.float32)
    with Largest() as largest:
        token_loss(hidden, weight, targets, 4).loss.backward()
    assert largest.numel == VOCABULARY * WIDTH < ROWS * VOCABULARY


def test_a_model_with_tied_embeddings_learns_the_same(tokenizer, monkeypatch):
    model = build_model(tiny_config(), tokenizer)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    batch = model_batch(model, [(3, (2, 2, 2), 9), (2, (1, 2, 2), 6)])
    rows = torch.arange(12, 20)
    targets = batch["input_ids"][0, rows + 1]
    logits = model(**batch, use_cache=False).logits[0, rows]
    losses = [F.cross_entropy(logits.float(), targets)]
    for cut in (3, 8):
        monkeypatch.setattr(video_nsa, "token_loss", functools.partial(token_loss, rows=cut))
        found = model(**batch, use_cache=False, logits_to_keep=rows, targets=targets)
        assert torch.equal(found.hits, logits.argmax(-1) == targets)
        losses.append(found.loss)
    parameters = list(model.parameters())
    plain, *others = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses)
    for loss, gradients in zip(losses[1:], others, strict=True):
        torch.testing.assert_close(loss, losses[0])
        for own, theirs in zip(gradients, plain, strict=True):
            torch.testing.assert_close(own, theirs, atol=1e-6, rtol=1e-4)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out
