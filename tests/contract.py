"""The two promises that every operation and every layer is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from audiomamba.state import leaves

Op = Callable[..., tuple[Tensor, Tensor | None]]


def results(
    op: Op, backend: str, tensors: dict[str, Tensor | None], **options: Any
) -> dict[str, Tensor]:
    """Run an op on copies; return y, the final state and all gradients of a loss of both."""
    inputs = {
        k: v if v is None else v.detach().clone().requires_grad_() for k, v in tensors.items()
    }
    y, final_state = op(**inputs, **options, output_final_state=True, backend=backend)
    assert final_state is not None
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    state_loss = torch.view_as_real(final_state) if final_state.is_complex() else final_state
    state_weight = torch.linspace(1, 2, state_loss.numel(), dtype=torch.float64).view(
        state_loss.shape
    )
    ((y * weight).sum() + (state_loss * state_weight).sum()).backward()
    out = {"y": y.detach(), "final_state": final_state.detach()}
    for name, x in inputs.items():
        if x is not None:
            assert x.grad is not None, f"no gradient for {name}"
            out[f"d{name}"] = x.grad
    return out


def error(x: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact result."""
    wide = torch.complex128 if exact.is_complex() else torch.float64
    return float((x.to(wide) - exact.to(wide)).norm() / (exact.to(wide).norm() + 1e-30))


def check_kernel(
    op: Op, backend: str, tensors: dict[str, Tensor | None], dtype: torch.dtype, **options: Any
) -> None:
    """Hold a backend to the reference's own error.

    Against the float64 reference, a backend may err twice as much as the reference does in the same
    dtype, plus sixteen roundings of float32, for it sums in another order, or one of a half
    precision, in which two gradients may meet. In float64 the "exact" result is a loop's, known to
    1e-13.
    """
    exact = results(
        op, "reference", {k: _to(v, torch.float64) for k, v in tensors.items()}, **options
    )
    narrow = {
        k: _to(v, dtype if k in ("u", "delta", "B", "C", "z", "x") else torch.float32)
        for k, v in tensors.items()
    }
    if dtype == torch.float64:
        narrow = {k: _to(v, torch.float64) for k, v in tensors.items()}
    plain = results(op, "reference", narrow, **options)
    got = results(op, backend, narrow, **options)
    assert got.keys() == exact.keys()
    for name in exact:
        assert got[name].dtype == plain[name].dtype, name
        assert got[name].shape == plain[name].shape, name
        floor = 16 * torch.finfo(torch.float32).eps
        if dtype in (torch.bfloat16, torch.float16):
            floor = torch.finfo(dtype).eps / 2
        elif dtype == torch.float64:
            floor = 1e-13
        allowed = 2 * error(plain[name], exact[name]) + floor
        assert error(got[name], exact[name]) <= allowed, (
            f"{name}: {error(got[name], exact[name])} > {allowed}"
        )


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Complex tensors have float32 and float64 parts only."""
    if x is None or not x.is_complex():
        return x if x is None else x.to(dtype)
    return x.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def check_recurrent(
    layer: Callable[[Tensor, Any], tuple[Tensor, Any]],
    x: Tensor,
    initial_state: Any,
    period: int = 1,
) -> None:
    """Hold a layer, in float64, to its contract on x (batch, time, ...): however it is cut, the
    result is the same.

    Outputs, final states, gradients (through the carried state) and causality; states keep shape
    and dtype, and old states stay valid.
    """
    steps = x.shape[1]
    differentiable = x.is_floating_point()
    whole_x = x.detach().clone().requires_grad_(differentiable)
    whole, final = layer(whole_x, None)
    before = [leaf.clone() for leaf in leaves(initial_state)]
    for cuts in (
        (period,),
        (steps - period,),
        tuple(range(period, steps, period)),
        (2 * period, 3 * period),
    ):
        cut_x = x.detach().clone().requires_grad_(differentiable)
        state, ys = initial_state, []
        for start, stop in zip((0, *cuts), (*cuts, steps), strict=True):
            y, state = layer(cut_x[:, start:stop], state)
            ys.append(y)
        torch.testing.assert_close(torch.cat(ys, dim=1), whole, rtol=1e-9, atol=1e-9)
        for got, exact, first in zip(leaves(state), leaves(final), before, strict=True):
            assert got.shape == exact.shape == first.shape
            assert got.dtype == exact.dtype == first.dtype
            torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)
        if differentiable:
            (grad_whole,) = torch.autograd.grad(whole.square().sum(), whole_x, retain_graph=True)
            (grad_cut,) = torch.autograd.grad(torch.cat(ys, dim=1).square().sum(), cut_x)
            torch.testing.assert_close(grad_cut, grad_whole, rtol=1e-8, atol=1e-8)
    for leaf, copy in zip(leaves(initial_state), before, strict=True):
        assert torch.equal(leaf, copy), "a state was written in place"
    check_causal(lambda v: layer(v, None)[0], x)


def check_causal(fn: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Change the input from the middle on: before it, y stays bit-equal; after it, y changes."""
    middle = x.shape[1] // 2
    other = x.clone()
    other[:, middle:] = (
        1 - other[:, middle:] if x.is_floating_point() else (other[:, middle:] + 1) % 7
    )
    a, b = fn(x), fn(other)
    assert torch.equal(a[:, :middle], b[:, :middle])
    assert not torch.equal(a[:, middle:], b[:, middle:])
