"""Every backend of every operation against the float64 reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba_kernels import causal_conv1d, lti_scan, selective_scan
from audiomamba_kernels.lti_scan import chunk_maps, lti_chunks
from tests.contract import check_kernel, error, results

STEPS = (1, 2, 63, 127, 128, 129, 300)


def rand(*shape: int, complex: bool = False) -> Tensor:
    real = torch.randn(*shape, dtype=torch.float64)
    return torch.complex(real, torch.randn(*shape, dtype=torch.float64)) if complex else real


def decays(channels: int, n: int, complex: bool) -> Tensor:
    real = -torch.rand(channels, n, dtype=torch.float64) - 0.01
    return torch.complex(real, torch.randn(channels, n, dtype=torch.float64)) if complex else real


def lti_inputs(
    steps: int, complex: bool, *, batch: int = 2, channels: int = 5, n: int = 3
) -> dict[str, Tensor]:
    return {
        "u": rand(batch, steps, channels),
        "delta": torch.rand(channels, dtype=torch.float64) * 0.1,
        "A": decays(channels, n, complex),
        "B": rand(channels, n, complex=complex),
        "C": rand(channels, n, complex=complex),
        "D": rand(channels),
        "z": rand(batch, steps, channels),
        "initial_state": rand(batch, channels, n, complex=complex),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("steps", STEPS)
def test_lti_scan_errs_no_more_than_its_reference(
    steps: int, complex: bool, dtype: torch.dtype
) -> None:
    check_kernel(lti_scan, "torch", dict(lti_inputs(steps, complex)), dtype)


@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("absent", list(itertools.product([False, True], repeat=3)))
def test_lti_scan_options_present_and_absent(absent: tuple[bool, ...], complex: bool) -> None:
    inputs: dict[str, Tensor | None] = dict(lti_inputs(7, complex))
    for name, gone in zip(("D", "z", "initial_state"), absent, strict=True):
        inputs[name] = None if gone else inputs[name]
    check_kernel(lti_scan, "torch", inputs, torch.float64)


@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
def test_lti_scan_in_bfloat16_stays_within_its_rounding(complex: bool) -> None:
    """Input, output and the maps of a chunk are rounded to bfloat16; the carry is not."""
    inputs = lti_inputs(300, complex)
    wide = {k: torch.complex64 if v.is_complex() else torch.float32 for k, v in inputs.items()}
    low = {k: v.to(torch.bfloat16 if k in ("u", "z") else wide[k]) for k, v in inputs.items()}
    exact = results(lti_scan, "reference", {k: v.double() if not v.is_complex() else v.to(
        torch.complex128) for k, v in low.items()})  # fmt: skip
    got = results(lti_scan, "torch", dict(low))
    assert got["y"].dtype == torch.bfloat16
    assert got["final_state"].dtype == wide["A"]
    for name, value in got.items():
        roundings = 1 if name in ("y", "final_state") else 2  # a gradient passes two products
        assert error(value, exact[name]) < roundings * torch.finfo(torch.bfloat16).eps, name


def test_lti_scan_does_as_it_is_told_under_autocast() -> None:
    inputs = lti_inputs(300, True)
    inputs = {
        k: v.to(torch.complex64 if v.is_complex() else torch.float32) for k, v in inputs.items()
    }
    plain = results(lti_scan, "torch", dict(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        got = results(lti_scan, "torch", dict(inputs))
    for name, value in got.items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
def test_lti_scan_is_the_selective_scan_with_constant_parameters(complex: bool) -> None:
    x = lti_inputs(150, complex)
    constant = {
        "delta": x["delta"].expand_as(x["u"]),
        "B": x["B"][:1].expand(2, 150, -1),
        "C": x["C"][:1].expand(2, 150, -1),
    }
    x["B"], x["C"] = x["B"][:1].expand(5, -1), x["C"][:1].expand(5, -1)
    y, h = lti_scan(**x, output_final_state=True)  # type: ignore[arg-type]
    y2, h2 = selective_scan(**{**x, **constant}, output_final_state=True)  # type: ignore[arg-type]
    torch.testing.assert_close(y, y2)
    torch.testing.assert_close(h, h2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("absent", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize(("steps", "width"), [(1, 4), (2, 4), (65, 2), (64, 3), (3, 1)])
def test_causal_conv1d_errs_no_more_than_its_reference(
    steps: int, width: int, absent: tuple[bool, bool], activation: str | None, dtype: torch.dtype
) -> None:
    inputs: dict[str, Tensor | None] = {
        "x": rand(2, steps, 5),
        "weight": rand(5, width),
        "bias": None if absent[0] else rand(5),
        "initial_state": None if absent[1] else rand(2, width - 1, 5),
    }
    if inputs["initial_state"] is not None and dtype == torch.bfloat16:
        inputs["initial_state"] = inputs[
            "initial_state"
        ].bfloat16()  # a state read from bfloat16 samples
    check_kernel(causal_conv1d, "torch", inputs, dtype, activation=activation)


def test_causal_conv1d_equals_torch_conv1d() -> None:
    x, weight, bias = rand(2, 33, 5), rand(5, 4), rand(5)
    exact = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=3, groups=5)[
        ..., :33
    ].mT
    torch.testing.assert_close(causal_conv1d(x, weight, bias)[0], exact)


GRADCHECKS: dict[str, Any] = {
    "conv": (
        lambda *x: causal_conv1d(*x, activation="silu", backend="reference")[0],
        lambda: (rand(2, 5, 3), rand(3, 4), rand(3)),
    ),
    "lti": (
        lambda *x: lti_scan(
            *x[:7], initial_state=x[7], output_final_state=True, backend="reference"
        ),
        lambda: lti_inputs(4, True, channels=2, n=2).values(),
    ),
}


@pytest.mark.parametrize("op", GRADCHECKS)
def test_the_reference_passes_gradcheck(op: str) -> None:
    fn, inputs = GRADCHECKS[op]
    assert torch.autograd.gradcheck(fn, [x.requires_grad_() for x in inputs()])


def test_decays_whose_product_underflows_are_exact() -> None:
    """A product of decays is zero in float32 after 129 such steps; nothing may divide by it."""
    steps = 2048
    A = torch.full((1, 1), -16.0)
    u = torch.ones(1, steps, 1)
    expected = 0.05 / (1 - torch.exp(torch.tensor(-0.8)))
    y, _ = lti_scan(u, torch.full((1,), 0.05), A, torch.ones(1, 1), torch.ones(1, 1))
    torch.testing.assert_close(y[0, -1, 0], expected)


@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
def test_custom_ops_are_registered_right(complex: bool) -> None:
    """Fake tensors, autograd and aliasing, as torch.compile and torch.export rely on them."""
    kind = torch.complex64 if complex else torch.float32
    x = {
        k: v.to(kind if v.is_complex() else torch.float32)
        for k, v in lti_inputs(12, complex).items()
    }
    maps = chunk_maps(x["delta"], x["A"], x["B"], x["C"], 4)
    inputs = (x["u"].permute(2, 0, 1), *maps, x["initial_state"])
    torch.library.opcheck(lti_chunks, [v.detach().clone().requires_grad_() for v in inputs])


def test_wrong_shapes_kinds_and_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="no time steps"):
        causal_conv1d(torch.zeros(1, 0, 3), torch.zeros(3, 4))
    y = lti_inputs(4, False)
    with pytest.raises(ValueError, match="must be complex if and only if A"):
        lti_scan(**{**y, "C": y["C"].to(torch.complex128)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="initial_state has shape"):
        lti_scan(**{**y, "initial_state": y["initial_state"][:1]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation is 'relu'"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 4), activation="relu")  # type: ignore[arg-type]
