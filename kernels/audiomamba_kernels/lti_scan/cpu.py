"""The time-invariant scan and its gradient on the CPU: what `op.py` calls."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba_kernels.lti_scan import cpu_loops
from audiomamba_kernels.lti_scan.cpu_loops import Gradients, Inputs
from audiomamba_kernels.selective_scan.cpu_forward import CHUNK
from audiomamba_kernels.selective_scan.reference import compute_dtypes
from audiomamba_kernels.threads import run_tasks
from audiomamba_kernels.tiles import WIDTH, Array, Sequences, sequences


def forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, final state, states before each chunk); arguments as in `lti_scan`."""
    inputs = _inputs(u, delta, A, B, C, D, z, initial_state, lengths, reverse)
    real, _ = compute_dtypes(u, A)
    y, final_state, states = fake(u, A)
    wide = y if y.dtype == real else y.new_empty(y.shape, dtype=real)
    outputs = sequences(wide, wide), _parts(final_state), _parts(states)
    is_complex = A.is_complex() or None
    run_tasks(lambda i: cpu_loops.run(i, inputs, is_complex, *outputs), _tasks(u))
    return wide.to(u.dtype), final_state, states


def backward(
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
) -> tuple[Tensor | None, ...]:
    """Return the gradients of u, delta, A, B, C, D, z and initial_state, None where there is none.

    states is what `forward` returned.
    """
    inputs = _inputs(u, delta, A, B, C, D, z, initial_state, lengths, reverse)
    batch, _, channels = u.shape
    real, kind = compute_dtypes(u, A)
    du = u.new_empty(u.shape, dtype=real)
    dz = None if z is None else torch.empty_like(du)
    dD = du.new_zeros(batch, -(-channels // WIDTH) * WIDTH)
    dinitial, ddecay, dgain, dC = (A.new_empty(batch, *A.shape, dtype=kind) for _ in range(4))
    gradients = Gradients(
        u=sequences(du, du),
        z=sequences(dz, du),
        initial_state=_parts(dinitial),
        decay=_parts(ddecay),
        gain=_parts(dgain),
        C=_parts(dC),
        D=dD.numpy(),
    )
    dfinal = A.new_empty(0, *A.shape) if dfinal_state is None else dfinal_state
    is_complex = A.is_complex() or None
    arrays = sequences(dy.detach().to(real), du), _parts(dfinal.to(kind)), _parts(states)
    run_tasks(
        lambda i: cpu_loops.run_backward(i, inputs, is_complex, *arrays, gradients), _tasks(u)
    )
    delta, A, B = delta.to(real)[:, None], A.to(kind), B.to(kind)
    dlog_decay, dgain = ddecay.sum(0) * torch.exp(delta * A).conj(), dgain.sum(0)
    ddelta = (dlog_decay * A.conj() + dgain * B.conj()).sum(-1)
    return (
        du.to(u.dtype),
        ddelta.real if A.is_complex() else ddelta,
        dlog_decay * delta,
        dgain * delta,
        dC.sum(0),
        None if D is None else dD.sum(0)[:channels],
        dz,
        None if initial_state is None else dinitial,
    )


def fake(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors like those that `forward` returns, but with nothing in them."""
    (batch, steps, _), (_, kind) = u.shape, compute_dtypes(u, A)
    return (
        u.new_empty(u.shape),
        A.new_empty(batch, *A.shape, dtype=kind),
        A.new_empty(batch, -(-steps // CHUNK), *A.shape, dtype=kind),
    )


def fake_gradient(x: Tensor) -> Tensor:
    """Return a tensor like the gradient that `backward` returns of u or z, with nothing in it."""
    return x.new_empty(x.shape)


def _tasks(u: Tensor) -> int:
    return u.shape[0] * -(-u.shape[2] // WIDTH)


def _inputs(
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
) -> Inputs:
    """The inputs as compiled code takes them, in the dtypes of the computation."""
    batch, steps, channels = u.shape
    real, kind = compute_dtypes(u, A)
    delta = delta.detach().to(real)[:, None]
    skip = delta.new_zeros(-(-channels // WIDTH) * WIDTH)
    if D is not None:
        skip[:channels] = D.detach()

    def sequence(x: Tensor | None) -> Sequences:
        return sequences(None if x is None else x.detach().to(real), like=skip)

    return Inputs(
        u=sequence(u),
        decay=_parts(torch.exp(delta * A.to(kind))),
        gain=_parts(delta * B.to(kind)),
        C=_parts(C.to(kind)),
        D=skip.numpy(),
        z=sequence(z),
        initial_state=_parts(
            A.new_empty(0, *A.shape, dtype=kind)
            if initial_state is None
            else initial_state.to(kind)
        ),
        lengths=(torch.full((batch,), steps) if lengths is None else lengths.contiguous()).numpy(),
        steps=steps,
        reverse=reverse,
    )


def _parts(x: Tensor) -> Array:
    """Return x (..., state) as an array (..., state, parts), 2 (real, imaginary) if complex."""
    x = x.detach().resolve_conj().contiguous()
    array: Array = (torch.view_as_real(x) if x.is_complex() else x[..., None]).numpy()
    return array
