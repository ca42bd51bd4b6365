"""mamba_ssm's and causal_conv1d's functions against loops in float64, written from the formulas."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels import mamba_ssm
from audiomamba_kernels.mamba_ssm import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_inner_fn,
    selective_scan_fn,
    selective_scan_ref,
    selective_state_update,
)

BATCH, CHANNELS, N, STEPS = 2, 6, 3, 7
KINDS = pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])


def rand(*shape: int, complex: bool = False) -> Tensor:
    real = torch.randn(*shape, dtype=torch.float64)
    return torch.complex(real, torch.randn(*shape, dtype=torch.float64)) if complex else real


def rates(complex: bool) -> Tensor:
    real = -torch.rand(CHANNELS, N, dtype=torch.float64)
    return torch.complex(real, rand(CHANNELS, N)) if complex else real


def close(got: Any, exact: Any) -> None:
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


Function = Callable[..., "Tensor | tuple[Tensor, ...]"]


def check(fn: Function, exact: Function, tensors: dict[str, Tensor | None]) -> None:
    """Compare all outputs, and the gradients of a loss of all outputs for all tensors."""

    def run(fn: Function) -> list[Tensor]:
        leaves = {
            name: None if x is None else x.detach().clone().requires_grad_()
            for name, x in tensors.items()
        }
        outputs = fn(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(1)
        loss = torch.zeros((), dtype=torch.float64)
        for output in outputs:
            parts = torch.view_as_real(output) if output.is_complex() else output
            loss = loss + (parts * rand(*parts.shape)).sum()
        inputs = [x for x in leaves.values() if x is not None]
        return [x.detach() for x in outputs] + list(torch.autograd.grad(loss, inputs))

    for got, wanted in zip(run(fn), run(exact), strict=True):
        assert got.dtype == wanted.dtype
        close(got, wanted)


def loop_scan(
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
    """One channel and one step at a time, over a vector of states."""
    batch, channels, steps = u.shape

    def at(x: Tensor, b: int, d: int, t: int) -> Tensor:
        if x.dim() == 2:
            return x[d]
        rows = x[b] if x.dim() == 3 else x[b, d * x.shape[1] // channels]
        if A.is_complex() and not x.is_complex():
            return torch.complex(rows[:, 2 * t], rows[:, 2 * t + 1])
        return rows[:, t]

    outs, states = [], []
    for b, d in itertools.product(range(batch), range(channels)):
        h = torch.zeros_like(A[d])
        for t in range(steps):
            step = delta[b, d, t]
            if delta_bias is not None:
                step = step + delta_bias[d]
            if delta_softplus:
                step = torch.log1p(torch.exp(step))
            h = torch.exp(step * A[d]) * h + step * at(B, b, d, t) * u[b, d, t]
            y = (at(C, b, d, t) * h).sum()
            y = 2 * y.real if A.is_complex() else y
            if D is not None:
                y = y + D[d] * u[b, d, t]
            if z is not None:
                y = y * z[b, d, t] * torch.sigmoid(z[b, d, t])
            outs.append(y)
        states.append(h)
    out = torch.stack(outs).view(batch, channels, steps)
    return (out, torch.stack(states).view(batch, channels, -1)) if return_last_state else out


FORMS = {"constant": (CHANNELS, N), "shared": (BATCH, N), "1": (BATCH, 1, N), "2": (BATCH, 2, N)}


def a_map(form: str, complex: bool) -> Tensor:
    if form == "constant":
        return rand(*FORMS[form], complex=complex)
    return rand(*FORMS[form], STEPS * (2 if complex else 1))


def scan_inputs(B: str, C: str, complex: bool) -> dict[str, Tensor | None]:
    return {
        "u": rand(BATCH, CHANNELS, STEPS),
        "delta": rand(BATCH, CHANNELS, STEPS).abs() / 2,
        "A": rates(complex),
        "B": a_map(B, complex),
        "C": a_map(C, complex),
        "D": rand(CHANNELS),
        "z": rand(BATCH, CHANNELS, STEPS),
        "delta_bias": rand(CHANNELS),
    }


@KINDS
@pytest.mark.parametrize(("B", "C"), list(itertools.product(FORMS, repeat=2)))
def test_selective_scan_takes_every_form_of_b_and_c(B: str, C: str, complex: bool) -> None:
    options: Any = {"delta_softplus": True, "return_last_state": True}
    check(
        lambda **x: selective_scan_fn(**x, **options),
        lambda **x: loop_scan(**x, **options),
        scan_inputs(B, C, complex),
    )


@KINDS
@pytest.mark.parametrize("absent", list(itertools.product([False, True], repeat=5)))
@pytest.mark.parametrize("fn", [selective_scan_fn, selective_scan_ref])
def test_selective_scan_with_options_present_and_absent(
    fn: Function, absent: tuple[bool, ...], complex: bool
) -> None:
    x = scan_inputs("shared", "2", complex)
    x["delta_bias"] = x["delta_bias"].abs()  # type: ignore[union-attr]  # a tensor
    for name, gone in zip(("D", "z", "delta_bias"), absent[:3], strict=True):
        x[name] = None if gone else x[name]
    options = {"delta_softplus": absent[3], "return_last_state": absent[4]}
    with torch.no_grad():
        close(fn(**x, **options), loop_scan(**x, **options))  # type: ignore[arg-type]  # tensors


@KINDS
def test_selective_scan_keeps_the_types_of_the_peer(complex: bool) -> None:
    x = scan_inputs("shared", "shared", complex)
    low = {k: None if v is None else v.bfloat16() for k, v in x.items() if k not in "A"}
    low |= {k: x[k].float() for k in ("D", "delta_bias")}  # type: ignore[union-attr]
    A = rates(complex).to(torch.complex64 if complex else torch.float32)
    out, state = selective_scan_fn(A=A, **low, return_last_state=True)  # type: ignore[arg-type]
    assert out.dtype == torch.bfloat16
    assert out.shape == (BATCH, CHANNELS, STEPS)
    assert state.dtype == A.dtype
    assert state.shape == (BATCH, CHANNELS, N)


def test_selective_scan_views_complex_maps_and_copies_only_odd_ones() -> None:
    x = scan_inputs("shared", "shared", True)
    exact = selective_scan_fn(**x)  # type: ignore[arg-type]  # tensors
    B, C = x["B"], x["C"]
    assert B is not None
    assert C is not None
    odd = torch.cat([torch.zeros(1), B.flatten()])[1:].view(B.shape)  # an odd place in memory
    strided = torch.stack([C, C], dim=-1)[..., 0]
    whole = torch.view_as_complex(C.view(BATCH, N, STEPS, 2))
    for maps in ({"B": odd, "C": strided}, {"C": whole}):
        close(selective_scan_fn(**{**x, **maps}), exact)  # type: ignore[arg-type]


def test_wrong_maps_are_refused() -> None:
    x: dict[str, Any] = scan_inputs("shared", "2", True)
    with pytest.raises(ValueError, match=r"B has shape \(2, 3, 7\); as A is complex"):
        selective_scan_fn(**{**x, "B": x["B"][..., :STEPS]})
    with pytest.raises(ValueError, match="where groups divides the 6 channels"):
        selective_scan_fn(**{**x, "B": rand(BATCH, 4, N, 2 * STEPS)})
    with pytest.raises(ValueError, match="where groups divides the 6 channels"):
        selective_scan_fn(**{**x, "B": rand(1, BATCH, 2, N, 2 * STEPS)})
    with pytest.raises(ValueError, match=r"u has 6 channels; the other arguments have \[6, 8\]"):
        selective_scan_fn(**{**x, "D": rand(8)})
    with pytest.raises(ValueError, match="must be complex"):
        selective_scan_fn(**{**x, "B": x["A"].real})
    with pytest.raises(ValueError, match=r"it must be \(batch, channels, time\)"):
        selective_scan_fn(**{**x, "u": x["u"][0]})
    with pytest.raises(ValueError, match="B is None; it must be"):
        selective_scan_fn(**{**x, "B": None})
    with pytest.raises(ValueError, match=r"delta has shape \(6,\); it must have 3 axes"):
        selective_scan_fn(**{**x, "delta": rand(CHANNELS)})
    none = rand(BATCH, 0, N, 2 * STEPS)
    with pytest.raises(ValueError, match="where groups divides the 6 channels"):
        selective_scan_fn(**{**x, "B": none})
    with pytest.raises(ValueError, match="where groups divides the 6 channels"):
        selective_scan_fn(**{**x, "B": none, "C": none})


def loop_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    (batch, channels, steps), width = x.shape, weight.shape[1]
    zeros = x.new_zeros(batch, channels, width - 1)
    padded = torch.cat([zeros if initial_states is None else initial_states, x], dim=2)
    outs = []
    for b, t in itertools.product(range(batch), range(steps)):
        y = torch.zeros_like(x[b, :, t])
        for k in range(width):
            source = t - (width - 1) + k
            if seq_idx is None or (source >= 0 and seq_idx[b, source] == seq_idx[b, t]):
                y = y + weight[:, k] * padded[b, :, t + k]
        y = y if bias is None else y + bias
        y = y if activation is None else y * torch.sigmoid(y)
        outs.append(y if seq_idx is None or seq_idx[b, t] >= 0 else y * 0)
    out = torch.stack(outs).view(batch, steps, channels).mT
    return (out, padded[..., steps:]) if return_final_states else out


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("absent", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(("steps", "width"), [(1, 4), (7, 4), (7, 2), (2, 3)])
def test_causal_conv1d_with_options_present_and_absent(
    steps: int, width: int, absent: tuple[bool, ...], activation: Any
) -> None:
    tensors: dict[str, Tensor | None] = {
        "x": rand(BATCH, CHANNELS, steps),
        "weight": rand(CHANNELS, width),
        "bias": None if absent[0] else rand(CHANNELS),
        "initial_states": None if absent[1] else rand(BATCH, CHANNELS, width - 1),
    }
    options: Any = {"activation": activation, "return_final_states": absent[2]}
    check(
        lambda **x: causal_conv1d_fn(**x, **options),
        lambda **x: loop_conv(**x, **options),
        tensors,
    )


def test_causal_conv1d_writes_final_states_where_they_are_wanted() -> None:
    x, weight = rand(BATCH, CHANNELS, STEPS).requires_grad_(), rand(CHANNELS, 4)
    memory = torch.full((BATCH, 3, CHANNELS), torch.nan, dtype=torch.float64).mT
    out, states = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=memory)
    assert states is memory
    close(memory, x[..., -3:])
    (grad,) = torch.autograd.grad(states.sum(), x)
    assert grad.sum() == memory.numel()
    assert isinstance(causal_conv1d_fn(x, weight, final_states_out=memory), Tensor)
    assert out.dtype == torch.float64


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_causal_conv1d_keeps_sequences_apart(width: int, has_bias: bool, activation: Any) -> None:
    seq_idx = torch.tensor([[0, 0, 1, 1, 1, 2, -1], [5, 4, 5, 5, 5, -1, -1]], dtype=torch.int32)
    tensors: dict[str, Tensor | None] = {
        "x": rand(BATCH, CHANNELS, STEPS),
        "weight": rand(CHANNELS, width),
        "bias": rand(CHANNELS) if has_bias else None,
    }
    check(
        lambda **x: causal_conv1d_fn(**x, seq_idx=seq_idx, activation=activation),
        lambda **x: loop_conv(**x, seq_idx=seq_idx, activation=activation),
        tensors,
    )


def test_what_stands_in_other_sequences_has_no_effect() -> None:
    x, weight = rand(1, CHANNELS, STEPS), rand(CHANNELS, 4)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, -1]])
    spoilt = x.clone()
    spoilt[..., :3] = spoilt[..., 6:] = torch.nan
    out = causal_conv1d_fn(spoilt, weight, seq_idx=seq_idx)
    assert isinstance(out, Tensor)
    close(out[..., 3:], torch.cat([loop_conv(x[..., 3:6], weight), torch.zeros(1, 6, 1)], 2))  # type: ignore[list-item]


def test_wrong_convolutions_are_refused() -> None:
    x, weight, seq_idx = rand(BATCH, CHANNELS, STEPS), rand(CHANNELS, 4), torch.zeros(2, 7).int()
    with pytest.raises(ValueError, match="activation is 'relu'"):
        causal_conv1d_fn(x, weight, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seq_idx cannot be combined"):
        causal_conv1d_fn(x, weight, seq_idx=seq_idx, return_final_states=True)
    with pytest.raises(ValueError, match="seq_idx cannot be combined"):
        causal_conv1d_fn(x, weight, seq_idx=seq_idx, initial_states=x[..., :3])
    with pytest.raises(ValueError, match=r"seq_idx has shape \(7,\)"):
        causal_conv1d_fn(x, weight, seq_idx=seq_idx[0])
    with pytest.raises(ValueError, match="weight has shape"):
        causal_conv1d_fn(x, weight[:5], seq_idx=seq_idx)
    with pytest.raises(ValueError, match="length at least 3"):
        causal_conv1d_update(x, x[..., :2], weight)
    with pytest.raises(ValueError, match=r"weight has shape \(6, 1, 4\); it must be \(6, width\)"):
        causal_conv1d_fn(x, weight[:, None])
    with pytest.raises(ValueError, match=r"x has shape \(6, 7\)"):
        causal_conv1d_fn(x[0], weight)
    with pytest.raises(ValueError, match=r"bias has shape \(5,\); it must be \(6,\)"):
        causal_conv1d_fn(x, weight, rand(5), seq_idx=seq_idx)
    with pytest.raises(ValueError, match=r"initial_states has shape \(2, 6, 4\); it must be"):
        causal_conv1d_fn(x, weight, initial_states=x[..., :4])
    out = rand(3, BATCH, CHANNELS, 3)
    with pytest.raises(ValueError, match=r"final_states_out has shape \(3, 2, 6, 3\); it must be"):
        causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=out)
    out = rand(BATCH, CHANNELS, 3).long()
    with pytest.raises(ValueError, match=r"final_states_out is torch\.int64; it must be real"):
        causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=out)


def test_wrong_conv_updates_are_refused() -> None:
    x, weight, state = rand(BATCH, CHANNELS, STEPS), rand(CHANNELS, 4), rand(BATCH, CHANNELS, 3)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        causal_conv1d_update(x, state, weight, activation="relu")  # type: ignore[arg-type]
    for wrong in (rand(BATCH, 5, 3), rand(3, CHANNELS, 3), state[..., :2], state[0]):
        with pytest.raises(ValueError, match=r"conv_state has shape .* must be \(2, 6, length\)"):
            causal_conv1d_update(x, wrong, weight)
        with pytest.raises(ValueError, match="conv_state has shape"):
            causal_conv1d_update(x, wrong, weight, cache_seqlens=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="weight has shape"):
        causal_conv1d_update(x, state, weight[:, None])
    with pytest.raises(ValueError, match="x has shape"):
        causal_conv1d_update(x[0, 0], state, weight)
    for name in ("cache_seqlens", "conv_state_indices"):
        for numbers in (torch.zeros(BATCH), torch.zeros(3).int(), torch.zeros(BATCH).bool()):
            with pytest.raises(ValueError, match=f"{name} is .* it must hold an integer"):
                causal_conv1d_update(x, state, weight, **{name: numbers})  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [3, 4, 9])
@pytest.mark.parametrize("steps", [None, 1, 3, 11])
@pytest.mark.parametrize("rows", [None, [4, 1, 3], [-1, 0, -1], [-1, -1, -1], [0, -1, 2]])
@pytest.mark.parametrize("ring", [False, True])
def test_conv_updates_are_a_convolution(
    ring: bool, rows: list[int] | None, steps: int | None, length: int
) -> None:
    batch, width = 3, 4
    weight, bias = rand(CHANNELS, width), rand(CHANNELS)
    states = rand(batch if rows is None else 5, CHANNELS, length)
    at = torch.tensor([0, 5, 1000], dtype=torch.int32)
    x = rand(batch, CHANNELS) if steps is None else rand(batch, CHANNELS, steps)
    expected, y_exact = states.clone(), torch.zeros(batch, CHANNELS, steps or 1).double()
    for b in range(batch):
        row = b if rows is None else rows[b]
        if row < 0:
            continue
        line = list(expected[row].unbind(-1))
        start = int(at[b]) % length if ring else 0
        ordered = line[start:] + line[:start]  # oldest first, in a ring or not
        for t in range(steps or 1):
            new = x[b] if steps is None else x[b, :, t]
            window = torch.stack([*ordered[len(ordered) - width + 1 :], new], dim=-1)
            y_exact[b, :, t] = F.silu((window * weight).sum(-1) + bias)
            ordered = [*ordered[1:], new]
        start = (start + (steps or 1)) % length if ring else 0
        expected[row] = torch.stack(ordered[length - start :] + ordered[: length - start], dim=-1)
    y = causal_conv1d_update(
        x,
        states,
        weight,
        bias,
        "silu",
        cache_seqlens=at if ring else None,
        conv_state_indices=None if rows is None else torch.tensor(rows, dtype=torch.int32),
    )
    assert y.shape == x.shape
    close(y.view(y_exact.shape), y_exact)
    assert torch.equal(states, expected)


@pytest.mark.parametrize("activation", [None, "swish"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_conv_updates_with_options_present_and_absent(has_bias: bool, activation: Any) -> None:
    x, weight = rand(BATCH, CHANNELS, STEPS), rand(CHANNELS, 4).requires_grad_()
    bias, states = rand(CHANNELS) if has_bias else None, torch.zeros(BATCH, CHANNELS, 4).double()
    y = [causal_conv1d_update(x[..., t], states, weight, bias, activation) for t in range(STEPS)]
    exact = loop_conv(x, weight, bias, activation=activation)
    assert isinstance(exact, Tensor)
    assert not y[0].requires_grad
    close(torch.stack(y, dim=-1), exact.detach())
    close(states, x[..., -4:])


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


RANK, OUT = 2, 5


def inner_inputs(complex: bool, given: str = "") -> dict[str, Tensor | None]:
    size = 2 * N if complex else N
    rows = RANK + size * sum(name not in given for name in "BC")
    return {
        "xz": rand(BATCH, 2 * CHANNELS, STEPS),
        "conv1d_weight": rand(CHANNELS, 1, 4),
        "conv1d_bias": rand(CHANNELS),
        "x_proj_weight": rand(rows, CHANNELS) / 2,
        "delta_proj_weight": rand(CHANNELS, RANK) / 2,
        "out_proj_weight": rand(OUT, CHANNELS),
        "out_proj_bias": rand(OUT),
        "A": rates(complex),
        "B": None,
        "C": None,
        "D": rand(CHANNELS),
        "delta_bias": rand(CHANNELS),
        "B_proj_bias": rand(size),
        "C_proj_bias": rand(size),
    }


def loop_inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    def normed(x: Tensor, weight: Tensor | None) -> Tensor:  # (batch, n, time)
        if weight is None:
            return x
        square = torch.einsum("bnt,bnt->bt", x, x) / x.shape[1] + b_c_dt_rms_eps
        return torch.einsum("bnt,bt,n->bnt", x, square**-0.5, weight)

    def taken(rows: Tensor, bias: Tensor | None) -> Tensor:
        rows = rows if bias is None else rows + bias[:, None]
        if A.is_complex():  # neighbouring rows become neighbouring steps
            rows = rows.reshape(BATCH, N, 2, STEPS).mT.reshape(BATCH, N, 2 * STEPS)
        return rows

    x, z = xz[:, :CHANNELS], xz[:, CHANNELS:]
    u = loop_conv(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    assert isinstance(u, Tensor)
    size = A.shape[1] * (2 if A.is_complex() else 1)
    rows = torch.einsum("rd,bdt->brt", x_proj_weight, u)
    delta = torch.einsum("dr,brt->bdt", delta_proj_weight, rows[:, :RANK])
    B = taken(rows[:, RANK : RANK + size], B_proj_bias) if B is None else B
    C = taken(rows[:, -size:], C_proj_bias) if C is None else C
    B, C = normed(B, b_rms_weight), normed(C, c_rms_weight)
    delta = normed(delta, dt_rms_weight)
    y = loop_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    assert isinstance(y, Tensor)
    out = torch.einsum("ed,bdt->bte", out_proj_weight, y)
    return out if out_proj_bias is None else out + out_proj_bias


@KINDS
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("given", "form"), [("", ""), *itertools.product(["B", "C", "BC"], ["constant", "shared", "2"])]
)
def test_mamba_inner_takes_given_maps_and_its_own(
    form: str, given: str, level: int, complex: bool
) -> None:
    x = inner_inputs(complex, given)
    for name in given:
        x[name], x[f"{name}_proj_bias"] = a_map(form, complex), None
    check(lambda **x: mamba_inner_fn(**x, checkpoint_lvl=level), loop_inner, x)


OPTIONAL = ("conv1d_bias", "out_proj_bias", "D", "delta_bias", "B_proj_bias", "C_proj_bias")


@KINDS
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [(), *itertools.combinations(OPTIONAL, 1), OPTIONAL])
def test_mamba_inner_with_options_present_and_absent(
    absent: tuple[str, ...], softplus: bool, complex: bool
) -> None:
    x = inner_inputs(complex)
    for name in absent:
        x[name] = None
    if not softplus:
        x["delta_proj_weight"] = torch.zeros(CHANNELS, RANK).double()
        x["delta_bias"] = None if x["delta_bias"] is None else x["delta_bias"].abs()
    options: Any = {"delta_softplus": softplus}
    check(lambda **x: mamba_inner_fn(**x, **options), lambda **x: loop_inner(**x, **options), x)


@pytest.mark.parametrize("eps", [1e-6, 0.3])
@pytest.mark.parametrize("present", [("b",), ("c",), ("dt",), ("b", "c", "dt")])
@pytest.mark.parametrize("level", [0, 1])
def test_mamba_inner_normalises_and_differentiates_it(
    level: int, present: tuple[str, ...], eps: float
) -> None:
    x = inner_inputs(False)
    for name in present:
        x[f"{name}_rms_weight"] = rand(CHANNELS if name == "dt" else N)
    check(
        lambda **x: mamba_inner_fn(**x, b_c_dt_rms_eps=eps, checkpoint_lvl=level),
        lambda **x: loop_inner(**x, b_c_dt_rms_eps=eps),
        x,
    )


@pytest.mark.parametrize(("level", "convolutions"), [(0, 1), (1, 2)])
def test_mamba_inner_recomputes_all_but_the_scan(
    level: int, convolutions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiomamba_kernels.mamba_ssm import mamba_inner
    from audiomamba_kernels.selective_scan import cpu

    calls = {"conv": 0, "scan": 0}

    def counted(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return fn(*args, **options)

        return run

    monkeypatch.setattr(mamba_inner, "causal_conv1d", counted("conv", mamba_inner.causal_conv1d))
    monkeypatch.setattr(cpu, "forward", counted("scan", cpu.forward))
    x = {k: v if v is None else v.requires_grad_() for k, v in inner_inputs(False).items()}
    mamba_inner_fn(**x, checkpoint_lvl=level).sum().backward()  # type: ignore[arg-type]  # tensors
    assert calls == {"conv": convolutions, "scan": 1}


def test_mamba_inner_computes_in_the_dtype_of_autocast() -> None:
    x = {k: v if v is None else v.float() for k, v in inner_inputs(False).items()}
    exact = mamba_inner_fn(**x)  # type: ignore[arg-type]  # tensors
    x = {k: v if v is None else v.requires_grad_() for k, v in x.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = mamba_inner_fn(**x)  # type: ignore[arg-type]
    assert y.dtype == torch.bfloat16
    assert float((y.detach().float() - exact).norm() / exact.norm()) < 0.02
    y.float().sum().backward()
    assert all(v is None or (v.grad is not None and v.grad.dtype == v.dtype) for v in x.values())


def test_wrong_inner_arguments_are_refused() -> None:
    x: dict[str, Any] = inner_inputs(True)
    with pytest.raises(ValueError, match="checkpoint_lvl is 2"):
        mamba_inner_fn(**x, checkpoint_lvl=2)
    with pytest.raises(ValueError, match="twice the channels of A"):
        mamba_inner_fn(**{**x, "xz": x["xz"][:, :-1]})
    short = {**x, "x_proj_weight": x["x_proj_weight"][:-1]}
    with pytest.raises(ValueError, match="it must have at least 14: 2 for delta and 6 for each"):
        mamba_inner_fn(**short)
    with pytest.raises(ValueError, match="an RMS norm is over a real map"):
        mamba_inner_fn(**x, b_rms_weight=rand(N))
    for name, wrong, message in (
        ("x_proj_weight", x["x_proj_weight"][:, 1:], r"\(14, 5\); it must be \(any, 6\)"),
        ("out_proj_weight", x["out_proj_weight"].mT, r"\(6, 5\); it must be \(any, 6\)"),
        ("out_proj_bias", rand(4), r"\(4,\); it must be \(5\)"),
        ("conv1d_weight", x["conv1d_weight"][:, 0], r"it must be \(6, 1, any\)"),
        ("B_proj_bias", rand(N), r"\(3,\); it must be \(6\)"),
    ):
        with pytest.raises(ValueError, match=f"{name} has shape .*{message}"):
            mamba_inner_fn(**{**x, name: wrong})
    with pytest.raises(ValueError, match=r"B_proj_bias is torch\.int64; it must be real"):
        mamba_inner_fn(**{**x, "B_proj_bias": x["B_proj_bias"].long()})
    with pytest.raises(ValueError, match=r"out_proj_weight is torch\.float32; it must be"):
        mamba_inner_fn(**{**x, "out_proj_weight": x["out_proj_weight"].float()})


def test_rows_of_the_projection_that_make_a_given_map_are_not_read() -> None:
    x: dict[str, Any] = inner_inputs(True)
    given = {**x, "B": a_map("shared", True), "B_proj_bias": None}
    first, last = x["x_proj_weight"].split((2, 12))
    y = mamba_inner_fn(**{**given, "x_proj_weight": torch.cat((first, last[6:]))})
    torch.testing.assert_close(mamba_inner_fn(**given), y)


@KINDS
def test_the_functions_compile_into_one_graph(complex: bool) -> None:
    def compiled(fn: Function) -> Function:
        return torch.compile(fn, fullgraph=True, backend="aot_eager")

    torch._dynamo.reset()
    check(compiled(mamba_inner_fn), mamba_inner_fn, inner_inputs(complex))
    x = scan_inputs("shared", "2", complex)
    check(compiled(selective_scan_fn), selective_scan_fn, x)


SIGNATURES = {
    "selective_scan_fn": "u delta A B C D=None z=None delta_bias=None delta_softplus=False "
    "return_last_state=False",
    "selective_scan_ref": "u delta A B C D=None z=None delta_bias=None delta_softplus=False "
    "return_last_state=False",
    "mamba_inner_fn": "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight "
    "out_proj_weight out_proj_bias A B=None C=None D=None delta_bias=None B_proj_bias=None "
    "C_proj_bias=None delta_softplus=True checkpoint_lvl=1 b_rms_weight=None c_rms_weight=None "
    "dt_rms_weight=None b_c_dt_rms_eps=1e-06",
    "causal_conv1d_fn": "x weight bias=None seq_idx=None initial_states=None "
    "return_final_states=False final_states_out=None activation=None",
    "causal_conv1d_update": "x conv_state weight bias=None activation=None cache_seqlens=None "
    "conv_state_indices=None",
    "selective_state_update": "state x dt A B C D=None z=None dt_bias=None dt_softplus=False "
    "state_batch_indices=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_peers(name: str) -> None:
    found = [
        p.name if p.default is p.empty else f"{p.name}={p.default}"
        for p in inspect.signature(getattr(mamba_ssm, name)).parameters.values()
    ]
    assert " ".join(found) == SIGNATURES[name]
    assert set(SIGNATURES) == set(mamba_ssm.__all__)
