"""mamba_ssm's selective scan against a loop in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from audiomamba_kernels.mamba_ssm import selective_scan_fn, selective_scan_ref
from tests.ops.mamba_ssm_cases import (
    BATCH,
    CHANNELS,
    FORMS,
    KINDS,
    STEPS,
    Function,
    N,
    check,
    close,
    rand,
    rates,
    scan_inputs,
)
from tests.ops.mamba_ssm_loops import loop_scan


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
