"""The time-invariant scan as one operator that autograd, torch.compile and torch.export know."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from audiomamba_kernels.backend import on_device
from audiomamba_kernels.lti_scan.layout import to_rows


def _module(backend: str) -> ModuleType:
    """Import a backend when it first runs: compilers take a while to load."""
    if backend == "triton":
        from audiomamba_kernels.lti_scan import triton_lti

        return triton_lti
    from audiomamba_kernels.lti_scan import cpu

    return cpu


@torch.library.custom_op("audiomamba::lti_scan", mutates_args=())
def lti_scan_op(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state, and what `forward` of the backend keeps for `backward`."""
    with on_device(u):
        y, final_state, states = _module(backend).forward(
            u, delta, A, B, C, D, z, initial_state, lengths, reverse
        )
    return y, final_state, states


@lti_scan_op.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _module(backend).fake(u, A)  # type: ignore[no-any-return]


@torch.library.custom_op("audiomamba::lti_scan_backward", mutates_args=())
def lti_scan_backward_op(
    dy: Tensor,
    dfinal_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    backend: str,
) -> list[Tensor]:
    """Return the gradients of those of the eight tensors that are there, in order."""
    inputs = (u, delta, A, B, C, D, z, initial_state)
    with on_device(u):
        gradients = _module(backend).backward(dy, dfinal_state, states, *inputs, lengths, reverse)
    return [
        # Rows (u and z) keep their layout; what is small is contiguous, as the fake says.
        gradient.to(x.dtype)
        if x.dim() == 3 and not x.is_complex() and x is not initial_state
        else gradient.to(x.dtype).contiguous()
        for x, gradient in zip(inputs, gradients, strict=True)
        if x is not None
    ]


@lti_scan_backward_op.register_fake
def _(
    dy: Tensor,
    dfinal_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    backend: str,
) -> list[Tensor]:
    du, dz = (None if x is None else _module(backend).fake_gradient(x) for x in (u, z))
    others = (None if x is None else x.new_empty(x.shape) for x in (delta, A, B, C, D))
    dh = None if initial_state is None else initial_state.new_empty(initial_state.shape)
    return [x for x in (du, *others, dz, dh) if x is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dy: Tensor | None, dfinal_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    states, *tensors = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    dy = to_rows(dy) if ctx.backend == "triton" else dy  # which torch.compile may fuse
    given = iter(lti_scan_backward_op(dy, dfinal_state, states, *tensors, ctx.reverse, ctx.backend))
    gradients = [None if x is None else next(given) for x in tensors[:8]]
    return *gradients, None, None, None


lti_scan_op.register_autograd(_backward, setup_context=_save)
