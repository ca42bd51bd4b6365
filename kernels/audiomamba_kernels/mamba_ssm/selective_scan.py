"""mamba_ssm.ops.selective_scan_interface.selective_scan_fn."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba_kernels.backend import Backend
from audiomamba_kernels.selective_scan import selective_scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan of `audiomamba_kernels.selective_scan`.

    Args:
        u: (batch, channels, time).
        delta: Shape of u.
        A: (channels, state), real or complex.
        B: (channels, state) constant and of A's kind; or (batch, state, time) or (batch, groups,
            state, time), where group g serves channels g * channels / groups and on. If A is
            complex the last axis is 2 * time, real and imaginary part in turn.
        C: As B, independently.
        D: (channels,) or None.
        z: Gate, shape of u, or None.
        delta_bias: (channels,) or None.
        delta_softplus: Whether softplus is applied to delta + delta_bias.
        return_last_state: Whether the state after the last step is returned too.

    Returns:
        out in u's shape and dtype, or (out, last_state) with last_state (batch, channels, state),
        float32 or complex64 (float64 or complex128 if u is float64).

    Raises:
        ValueError: If a shape or a kind is wrong.
    """
    out, last_state = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (out, last_state) if return_last_state else out


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Do as `selective_scan_fn`, by a loop over time in plain PyTorch."""
    out, last_state = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, "reference")
    return (out, last_state) if return_last_state else out


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (out, last_state); arguments as in `selective_scan_fn`."""
    if u.dim() != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}; it must be (batch, channels, time)")
    channels = u.shape[1]
    for name, x, dims in (("delta", delta, 3), ("A", A, 2), ("D", D, 1), ("z", z, 3)):
        if x is not None and x.dim() != dims:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {dims} axes")
    for name, x in (("B", B), ("C", C)):
        if x is None or x.dim() not in (2, 3, 4):
            raise _not_a_map(name, x, channels)
    B, C = (_complex_map(x, name, u) if A.is_complex() else x for x, name in ((B, "B"), (C, "C")))
    _check_channels(channels, delta, A, B, C, D, z, delta_bias)
    groups = max(x.shape[1] if x.dim() == 4 else 1 for x in (B, C))
    for name, x in (("B", B), ("C", C)):
        if x.dim() == 4 and (not x.shape[1] or groups % x.shape[1] or channels % groups):
            raise _not_a_map(name, x, channels)
    size = channels // groups
    outs, states = [], []
    for group in range(groups):
        at = slice(None) if groups == 1 else slice(group * size, (group + 1) * size)
        out, state = selective_scan(
            u[:, at].mT,
            delta[:, at].mT,
            A[at],
            _of_group(B, group, groups, at),
            _of_group(C, group, groups, at),
            None if D is None else D[at],
            None if z is None else z[:, at].mT,
            None if delta_bias is None else delta_bias[at],
            delta_softplus=delta_softplus,
            output_final_state=True,
            backend=backend,
        )
        assert state is not None
        outs.append(out.mT)
        states.append(state)
    if groups == 1:
        return outs[0], states[0]
    return torch.cat(outs, dim=1), torch.cat(states, dim=1)


def _not_a_map(name: str, x: Tensor | None, channels: int) -> ValueError:
    found = "is None" if x is None else f"has shape {tuple(x.shape)}"
    return ValueError(
        f"{name} {found}; it must be (channels, state), (batch, state, time) or (batch, groups, "
        f"state, time), where groups divides the {channels} channels and the groups of the other"
    )


def _check_channels(channels: int, delta: Tensor, A: Tensor, *others: Tensor | None) -> None:
    """Refuse channels that no group would meet; the scan checks all else."""
    B, C, D, z, delta_bias = others
    constant = [x for x in (A, B, C, D, delta_bias) if x is not None and x.dim() < 3]
    found = {
        *(x.numel() if x.dim() < 2 else len(x) for x in constant),
        *(x.shape[1] for x in (delta, z) if x is not None),
    }
    if found != {channels}:
        raise ValueError(f"u has {channels} channels; the other arguments have {sorted(found)}")


def _complex_map(x: Tensor, name: str, u: Tensor) -> Tensor:
    """View (..., 2 * time) as complex (..., time); a constant or complex map stays."""
    if x.dim() < 3 or x.is_complex():
        return x
    if x.shape[-1] != 2 * u.shape[-1]:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; as A is complex, its last axis must be "
            f"{2 * u.shape[-1]}, a real and an imaginary part for each step"
        )
    x = x if x.dtype == torch.float64 else x.float()
    pairs = x.unflatten(-1, (u.shape[-1], 2))  # type: ignore[no-untyped-call]
    if torch.compiler.is_compiling() or not _can_be_complex(pairs):
        return torch.complex(pairs[..., 0], pairs[..., 1])
    return torch.view_as_complex(pairs)


def _can_be_complex(pairs: Tensor) -> bool:
    """Say whether pairs stand in memory as complex numbers do: side by side, at even places."""
    *outer, inner = pairs.stride()
    return inner == 1 and not any(step % 2 for step in (*outer, pairs.storage_offset()))


def _of_group(x: Tensor, group: int, groups: int, at: slice) -> Tensor:
    """Return what one group of channels meets: (batch, time, state) or constant (size, state)."""
    if x.dim() == 2:
        return x[at]
    return x.mT if x.dim() == 3 else x[:, group * x.shape[1] // groups].mT
