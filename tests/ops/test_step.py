"""A step is the scan or the convolution, one sample at a time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels import causal_conv1d, lti_scan, selective_scan
from audiomamba_kernels.step import causal_conv1d_step, lti_mamba_step, selective_scan_step
from tests.contract import error
from tests.ops.step_cases import (
    BACKENDS,
    BATCH,
    CHANNELS,
    DEVICE,
    DTYPES,
    KINDS,
    STEPS,
    TRITON,
    exact,
    rand,
    scan_inputs,
    tolerance,
)


def scan_by_steps(
    x: dict[str, Any], backend: Any, delta_softplus: bool = False
) -> tuple[Tensor, Tensor]:
    state, ys = x["initial_state"], []
    for t in range(STEPS):
        now: dict[str, Any] = {
            name: None if x[name] is None else x[name][:, t]
            for name in ("u", "delta", "B", "C", "z")
        }
        y, state = selective_scan_step(
            **now,
            **{name: x[name] for name in ("A", "D", "delta_bias")},
            state=state,
            delta_softplus=delta_softplus,
            backend=backend,
        )
        ys.append(y)
    return torch.stack(ys, dim=1), state


def check_scan(x: dict[str, Any], backend: Any, dtype: torch.dtype, softplus: bool) -> None:
    y, state = scan_by_steps(x, backend, softplus)
    wide = {name: exact(tensor) for name, tensor in x.items()}
    y_exact, state_exact = selective_scan(
        **wide, delta_softplus=softplus, output_final_state=True, backend="reference"
    )
    assert state_exact is not None
    assert y.dtype == dtype
    assert state.dtype == (torch.complex64 if x["A"].is_complex() else torch.float32)
    assert error(y, y_exact) < tolerance(dtype)
    assert error(state, state_exact) < tolerance(torch.float32)


@BACKENDS
@DTYPES
@KINDS
@pytest.mark.parametrize("n", [1, 3])
def test_scan_steps_equal_the_scan(n: int, complex: bool, dtype: torch.dtype, backend: str) -> None:
    check_scan(scan_inputs(n, complex, dtype), backend, dtype, softplus=True)


@BACKENDS
@KINDS
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", list(itertools.product([False, True], repeat=3)))
def test_scan_steps_with_options_present_and_absent(
    absent: tuple[bool, ...], softplus: bool, complex: bool, backend: str
) -> None:
    x = scan_inputs(3, complex, torch.float32)
    x["delta_bias"] = x["delta_bias"].abs()
    for name, gone in zip(("D", "z", "delta_bias"), absent, strict=True):
        x[name] = None if gone else x[name]
    check_scan(x, backend, torch.float32, softplus)


@pytest.mark.parametrize("backend", [TRITON])
def test_scan_steps_of_small_and_large_softplus(backend: str) -> None:
    delta = torch.linspace(-30, 30, BATCH * CHANNELS, device=DEVICE).view(BATCH, CHANNELS)
    ones = torch.ones(BATCH, 1, device=DEVICE)
    _, state = selective_scan_step(
        torch.ones_like(delta),
        delta,
        torch.zeros(CHANNELS, 1, device=DEVICE),
        ones,
        ones,
        state=torch.zeros(BATCH, CHANNELS, 1, device=DEVICE),
        delta_softplus=True,
        backend=backend,  # type: ignore[arg-type]  # one of them
    )
    torch.testing.assert_close(
        state[..., 0].double(), F.softplus(delta.double()), rtol=2e-6, atol=0
    )


@BACKENDS
@DTYPES
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 5])
def test_conv_steps_equal_the_convolution(
    width: int, has_bias: bool, activation: Any, dtype: torch.dtype, backend: Any
) -> None:
    x, state = rand(BATCH, STEPS, CHANNELS, dtype=dtype), rand(BATCH, width - 1, CHANNELS)
    weight, bias = rand(CHANNELS, width), rand(CHANNELS) if has_bias else None
    y_exact, final = causal_conv1d(
        exact(x),
        exact(weight),
        exact(bias),
        activation=activation,
        initial_state=exact(state),
        output_final_state=True,
        backend="reference",
    )
    ys = []
    for t in range(STEPS):
        y, state = causal_conv1d_step(
            x[:, t], state, weight, bias, activation=activation, backend=backend
        )
        ys.append(y)
    assert final is not None
    assert y.dtype == dtype
    assert error(torch.stack(ys, dim=1), y_exact) < tolerance(dtype)
    assert torch.equal(state, final.float())


@BACKENDS
@KINDS
@pytest.mark.parametrize(
    ("dtype", "absent"),
    [
        *((torch.float32, absent) for absent in itertools.product([False, True], repeat=3)),
        (torch.bfloat16, (False, False, False)),
    ],
)
def test_lti_mamba_steps_equal_convolution_and_scan(
    dtype: torch.dtype, absent: tuple[bool, ...], complex: bool, backend: Any
) -> None:
    n, width = 3, 4
    x = scan_inputs(n, complex, dtype)
    delta, B, C = torch.rand(CHANNELS, device=DEVICE), *rand(2, CHANNELS, n, complex=complex)
    weight = rand(CHANNELS, width)
    z, bias, D = (
        None if gone else tensor
        for tensor, gone in zip((x["z"], x["delta_bias"], x["D"]), absent, strict=True)
    )
    conv, ssm = rand(BATCH, width - 1, CHANNELS), x["initial_state"]
    u, conv_exact = causal_conv1d(
        exact(x["u"]),
        exact(weight),
        exact(bias),
        activation="silu",
        initial_state=exact(conv),
        output_final_state=True,
        backend="reference",
    )
    y_exact, ssm_exact = lti_scan(
        u,
        *map(exact, (delta, x["A"], B, C, D, z)),
        initial_state=exact(ssm),
        output_final_state=True,
        backend="reference",
    )
    decay, gain = torch.exp(delta[:, None] * x["A"]), delta[:, None] * B
    ys = []
    for t in range(STEPS):
        now = None if z is None else z[:, t]
        y, conv, ssm = lti_mamba_step(
            x["u"][:, t], now, conv, ssm, weight, bias, decay, gain, C, D, backend=backend
        )
        ys.append(y)
    assert ssm_exact is not None
    assert conv_exact is not None
    assert y.dtype == dtype
    assert ssm.dtype == (torch.complex64 if complex else torch.float32)
    assert error(torch.stack(ys, dim=1), y_exact) < tolerance(dtype)
    assert torch.equal(conv, conv_exact.float())
    assert error(ssm, ssm_exact) < tolerance(torch.float32)


@KINDS
def test_steps_in_float64_are_exact(complex: bool) -> None:
    x = {k: exact(v) for k, v in scan_inputs(3, complex, torch.float32).items()}
    y, state = scan_by_steps(x, None)
    y_exact, state_exact = selective_scan(**x, output_final_state=True, backend="reference")
    torch.testing.assert_close(y, y_exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, state_exact, rtol=1e-12, atol=1e-12)


def test_wrong_shapes_kinds_and_options_are_refused() -> None:
    x = scan_inputs(3, True, torch.float32)
    now: dict[str, Any] = {k: x[k][:, 0] for k in ("u", "delta", "B", "C")} | {"A": x["A"]}
    state = x["initial_state"]
    with pytest.raises(ValueError, match="a step takes one sample"):
        selective_scan_step(**{**now, "u": x["u"]}, state=state)
    with pytest.raises(ValueError, match=r"B has shape \(2, 3, 3\); it must be \(2, 3\)"):
        selective_scan_step(**{**now, "B": x["B"]}, state=state)
    with pytest.raises(ValueError, match=r"C is torch\.float32; it must be complex"):
        selective_scan_step(**{**now, "C": now["C"].real}, state=state)
    with pytest.raises(ValueError, match=r"delta is torch\.int64; it must be real"):
        selective_scan_step(**{**now, "delta": now["delta"].long()}, state=state)
    with pytest.raises(ValueError, match="out_state has shape"):
        selective_scan_step(**now, state=state, out_state=state[:1])
    with pytest.raises(ValueError, match="state is on meta"):
        selective_scan_step(**now, state=state.to("meta"))
    with pytest.raises(ValueError, match="backend is 'cuda'; choose None"):
        selective_scan_step(**now, state=state, backend="cuda")  # type: ignore[arg-type]
    u, A, past, weight = now["u"], x["A"], rand(BATCH, 3, CHANNELS), rand(CHANNELS, 4)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        causal_conv1d_step(u, past, weight, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"state has shape \(2, 2, 5\); it must be \(2, 3, 5\)"):
        causal_conv1d_step(u, past[:, 1:], weight)
    with pytest.raises(ValueError, match=r"gain is torch\.float32; it must be complex"):
        lti_mamba_step(u, None, past, state, weight, None, A, A.real, A)
