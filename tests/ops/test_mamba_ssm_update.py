"""mamba_ssm's update of states against every head by itself, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.mamba_ssm import selective_state_update
from tests.ops.mamba_ssm_cases import BATCH, CHANNELS, KINDS, N, close, rand


def update_inputs(heads: int | None, groups: int | None, complex: bool) -> dict[str, Any]:
    middle = (CHANNELS,) if heads is None else (heads, CHANNELS)
    maps = (BATCH, N) if groups is None else (BATCH, groups, N)
    return {
        "state": rand(BATCH, *middle, N, complex=complex),
        "x": rand(BATCH, *middle),
        "dt": rand(BATCH, *middle).abs(),
        "A": -rand(*middle, N, complex=complex).abs() * (1 + 1j if complex else 1),
        "B": rand(*maps, complex=complex),
        "C": rand(*maps, complex=complex),
        "D": rand(*middle),
        "z": rand(BATCH, *middle),
        "dt_bias": rand(*middle).abs(),
    }


def exact_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Return (out, new state), every head by itself."""
    if state.dim() == 3:
        state, x, dt, A = state[:, None], x[:, None], dt[:, None], A[None]
        D, dt_bias = (None if t is None else t[None] for t in (D, dt_bias))
        z = None if z is None else z[:, None]
        out, new = exact_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
        return out[:, 0], new[:, 0]
    B, C = (t[:, None] if t.dim() == 2 else t for t in (B, C))
    dt = dt if dt_bias is None else dt + dt_bias
    dt = torch.log1p(torch.exp(dt)) if dt_softplus else dt
    heads, outs, news = state.shape[1], [], []
    for head in range(heads):
        step, group = dt[:, head, :, None], head * B.shape[1] // heads
        new = torch.exp(step * A[head]) * state[:, head]
        new = new + step * B[:, group, None] * x[:, head, :, None]
        out = (new * C[:, group, None]).sum(-1)
        out = 2 * out.real if out.is_complex() else out
        out = out if D is None else out + D[head] * x[:, head]
        outs.append(out if z is None else out * F.silu(z[:, head]))
        news.append(new)
    return torch.stack(outs, dim=1), torch.stack(news, dim=1)


@KINDS
@pytest.mark.parametrize(("heads", "groups"), [(None, None), (None, 1), (4, None), (4, 2), (4, 4)])
def test_state_updates_with_heads_and_groups(
    heads: int | None, groups: int | None, complex: bool
) -> None:
    x = update_inputs(heads, groups, complex)
    out_exact, new = exact_update(**x, dt_softplus=True)
    out = selective_state_update(**x, dt_softplus=True)
    close(out, out_exact)
    close(x["state"], new)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", list(itertools.product([False, True], repeat=3)))
def test_state_updates_with_options_present_and_absent(
    absent: tuple[bool, ...], softplus: bool
) -> None:
    x = update_inputs(4, 2, False)
    for name, gone in zip(("D", "z", "dt_bias"), absent, strict=True):
        x[name] = None if gone else x[name]
    out_exact, new = exact_update(**x, dt_softplus=softplus)
    x["A"].requires_grad_()
    out = selective_state_update(**x, dt_softplus=softplus)
    assert not out.requires_grad
    close(out, out_exact)
    close(x["state"], new)


@pytest.mark.parametrize("heads", [None, 4])
@pytest.mark.parametrize("rows", [[4, 1], [-1, 0], [3, -1], [-1, -1]])
def test_state_updates_find_their_rows(rows: list[int], heads: int | None) -> None:
    x = update_inputs(heads, None, False)
    states = rand(5, *x["state"].shape[1:])
    expected, out_exact = states.clone(), torch.zeros_like(x["x"])
    padded = [max(row, 0) for row in rows]
    outs, news = exact_update(**{**x, "state": states[padded]}, dt_softplus=True)
    for b, row in enumerate(rows):
        if row >= 0:
            out_exact[b], expected[row] = outs[b], news[b]
    indices = torch.tensor(rows, dtype=torch.int32)
    out = selective_state_update(
        **{**x, "state": states}, dt_softplus=True, state_batch_indices=indices
    )
    close(out, out_exact)
    close(states, expected)
    assert torch.equal(
        states[[r for r in range(5) if r not in rows]],
        expected[[r for r in range(5) if r not in rows]],
    )


def test_state_updates_write_memory_of_any_layout_and_precision() -> None:
    x = update_inputs(4, 2, False)
    _, new = exact_update(**x, dt_softplus=True)
    moved = x["state"].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    selective_state_update(**{**x, "state": moved}, dt_softplus=True)
    close(moved, new)
    low = {k: v.float() for k, v in x.items()} | {"state": x["state"].bfloat16()}
    out = selective_state_update(**low, dt_softplus=True)
    assert out.dtype == torch.float32
    torch.testing.assert_close(low["state"].double(), new, rtol=1e-2, atol=1e-2)


def test_wrong_state_updates_are_refused() -> None:
    x = update_inputs(4, 2, False)
    with pytest.raises(ValueError, match=r"D has shape \(4, 5\); it must be \(4, 6\)"):
        selective_state_update(**{**x, "D": x["D"][:, :5]})
    with pytest.raises(ValueError, match="B and C have 3 and 2 groups"):
        selective_state_update(**{**x, "B": rand(BATCH, 3, N)})
    with pytest.raises(ValueError, match="state has shape"):
        selective_state_update(**{**x, "state": x["state"][0, 0]})
    with pytest.raises(ValueError, match="B and C have 0 and 0 groups"):
        selective_state_update(**{**x, "B": rand(BATCH, 0, N), "C": rand(BATCH, 0, N)})
    with pytest.raises(ValueError, match=r"B has shape \(2,\); it must be \(2, 3\)"):
        selective_state_update(**{**x, "B": rand(BATCH)})
    with pytest.raises(ValueError, match=r"x has shape .* as many rows"):
        selective_state_update(**{**x, "x": x["x"][:1]})
    with pytest.raises(ValueError, match=r"state_batch_indices is torch\.float32"):
        selective_state_update(**x, state_batch_indices=torch.zeros(BATCH))
