"""The linear recurrence in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiomamba_kernels.recurrence import linear_recurrence


def rand(*shape: int, complex: bool) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128 if complex else torch.float64)


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 70), complex=st.booleans(), seed=st.integers(0, 1000))
def test_it_is_the_loop(steps: int, complex: bool, seed: int) -> None:
    torch.manual_seed(seed)
    a, b, h = (rand(2, steps, 3, complex=complex) for _ in range(3))
    got = linear_recurrence(a, b, h[:, 0])
    state = h[:, 0]
    for t in range(steps):
        state = a[:, t] * state + b[:, t]
        torch.testing.assert_close(got[:, t], state, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
def test_its_gradients_are_right(complex: bool) -> None:
    inputs = [rand(2, 5, 3, complex=complex).requires_grad_() for _ in range(2)]
    h = rand(2, 3, complex=complex).requires_grad_()
    assert torch.autograd.gradcheck(linear_recurrence, (*inputs, h))


@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
def test_it_is_registered_right(complex: bool) -> None:
    """Fake tensors, autograd and aliasing, as torch.compile and torch.export rely on them."""
    kind = torch.complex64 if complex else torch.float32
    a, b, h = (rand(2, 9, 3, complex=complex).to(kind).requires_grad_() for _ in range(3))
    torch.library.opcheck(linear_recurrence, (a, b, h[:, 0].detach()))
