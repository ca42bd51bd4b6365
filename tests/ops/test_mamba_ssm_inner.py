"""mamba_ssm's inner function against loops in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from audiomamba_kernels.mamba_ssm import mamba_inner_fn
from tests.ops.mamba_ssm_cases import CHANNELS, KINDS, RANK, N, a_map, check, inner_inputs, rand
from tests.ops.mamba_ssm_loops import loop_inner


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
