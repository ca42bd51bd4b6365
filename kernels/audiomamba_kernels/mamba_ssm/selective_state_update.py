"""mamba_ssm.ops.triton.selective_state_update.selective_state_update."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba_kernels.mamba_ssm.cache import check_integers, mask_rows, read_rows, write_rows
from audiomamba_kernels.step import selective_scan_step


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Take one step of the selective scan and write the new state; there is no gradient.

    Args:
        state: (batch, channels, n) or (batch, heads, channels, n), any float or complex dtype;
            overwritten. Everything but B and C has the axis of heads or everything lacks it.
        x: (batch, channels) or (batch, heads, channels).
        dt: Shape of x.
        A: (channels, n) or (heads, channels, n).
        B: (batch, n) or (batch, groups, n); group g serves heads g * heads / groups and on.
        C: As B.
        D: (channels,) or (heads, channels), or None.
        z: Gate, shape of x, or None.
        dt_bias: Shape of D, or None.
        dt_softplus: Whether softplus is applied to dt + dt_bias.
        state_batch_indices: (batch,), integers: the row of state that belongs to each row of x,
            then state has any number of rows. Where it is negative the output is zero and no state
            changes. None is row by row.

    Returns:
        out in x's shape and dtype.

    Raises:
        ValueError: If a shape or a kind is wrong.
    """
    if state.dim() not in (3, 4):
        raise ValueError(
            f"state has shape {tuple(state.shape)}; it must be (batch, channels, n) or (batch, "
            "heads, channels, n)"
        )
    if x.dim() != state.dim() - 1 or (state_batch_indices is None and len(x) != len(state)):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; beside a state of shape {tuple(state.shape)} it must "
            "lack the last axis, and without state_batch_indices have as many rows"
        )
    batch, heads = x.shape[0], state.shape[1] if state.dim() == 4 else 1
    check_integers("state_batch_indices", state_batch_indices, batch)
    inputs, constants = (batch, *state.shape[1:-1]), tuple(state.shape[1:-1])
    for name, tensor, shape in (
        ("x", x, inputs),
        ("dt", dt, inputs),
        ("A", A, tuple(state.shape[1:])),
        ("D", D, constants),
        ("z", z, inputs),
        ("dt_bias", dt_bias, constants),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
    B, C = (x[:, None] if x.dim() == 2 else x for x in (B, C))
    for name, tensor in (("B", B), ("C", C)):
        if tensor.dim() != 3 or (len(tensor), tensor.shape[2]) != (batch, state.shape[-1]):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be ({batch}, "
                f"{state.shape[-1]}) or ({batch}, groups, {state.shape[-1]})"
            )
    groups = B.shape[1]
    if not groups or heads % groups or C.shape[1] != groups:
        raise ValueError(
            f"B and C have {groups} and {C.shape[1]} groups; they must have the same number, and "
            f"it must divide the {heads} heads"
        )
    rows = read_rows(state, state_batch_indices)
    flat = rows.flatten(1, -2)  # (batch, heads * channels, n)
    size = flat.shape[1] // groups
    outs = []
    for group in range(groups):
        at = slice(group * size, (group + 1) * size)
        out, _ = selective_scan_step(
            x.flatten(1)[:, at],
            dt.flatten(1)[:, at],
            A.flatten(0, -2)[at],
            B[:, group],
            C[:, group],
            None if D is None else D.flatten()[at],
            None if z is None else z.flatten(1)[:, at],
            None if dt_bias is None else dt_bias.flatten()[at],
            state=flat[:, at],
            delta_softplus=dt_softplus,
            out_state=flat[:, at],
        )
        outs.append(out)
    in_place = heads == 1 or state.stride(1) == state.shape[2] * state.stride(2)
    if state_batch_indices is not None or not in_place:
        write_rows(state, state_batch_indices, flat.view(rows.shape))
    y = torch.cat(outs, dim=1) if groups > 1 else outs[0]
    return mask_rows(y.view(x.shape), state_batch_indices)
