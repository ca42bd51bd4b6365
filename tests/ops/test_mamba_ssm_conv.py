"""causal_conv1d's functions against a loop in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.mamba_ssm import causal_conv1d_fn, causal_conv1d_update
from tests.ops.mamba_ssm_cases import BATCH, CHANNELS, STEPS, check, close, rand
from tests.ops.mamba_ssm_loops import loop_conv


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
