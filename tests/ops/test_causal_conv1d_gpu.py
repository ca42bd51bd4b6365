"""The Triton kernels of the causal convolution on a GPU, at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba_kernels import causal_conv1d
from tests.contract import check_kernel, error, results, rounding
from tests.covering import covering
from tests.ops.conv_cases import BOTH, LAYOUTS, OPTIONS, check, inputs

pytestmark = pytest.mark.gpu

# Tests that take much of a GPU's memory take turns.
LARGE = pytest.mark.xdist_group("large")

ONE_MINUTE = 958_464  # at 16 kHz, in whole blocks

# Each has kernels of its own.
BOTH_LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "transposed"])

# Each case is a kernel of its own, which takes a second to compile; each runs at every length.
CASES = covering(
    {
        "width": (1, 2, 3, 4, 5),
        "channels": (1, 5, 40),
        "dtype": (torch.float32, torch.bfloat16, torch.float16),
        **OPTIONS,
        "layout": LAYOUTS,
        "cut": BOTH,
    }
)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_it_errs_no_more_than_the_reference(case: dict[str, Any]) -> None:
    for steps in (1, 2, 3, 5, 63, 64, 65, 1000, 2049):
        against = "reference" if steps <= 65 else "torch"
        check("triton", {**case, "steps": steps}, device="cuda", against=against)


@LARGE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
@pytest.mark.parametrize("steps", [ONE_MINUTE, ONE_MINUTE + 1])
@BOTH_LAYOUTS
def test_a_minute_is_as_exact_as_a_second(
    layout: Any, steps: int, reverse: bool, dtype: torch.dtype
) -> None:
    check_kernel(
        causal_conv1d,
        "triton",
        inputs(steps, batch=1, channels=7),
        dtype,
        device="cuda",
        against="torch",
        dtypes={"initial_state": dtype},
        layout=layout,
        activation="silu",
        reverse=reverse,
    )


@LARGE
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
@BOTH_LAYOUTS
def test_ragged_rows_of_a_million_steps(layout: Any, reverse: bool) -> None:
    check_kernel(
        causal_conv1d,
        "triton",
        inputs(1 << 20, channels=3),
        torch.float32,
        device="cuda",
        against="torch",
        layout=layout,
        lengths=torch.tensor([(1 << 20) - 12345, 1 << 20, 0]),
        reverse=reverse,
        activation="silu",
    )


@LARGE
@BOTH_LAYOUTS
def test_beyond_2_to_the_31_elements(layout: str) -> None:
    """The last channels of 2304, alone in the loss, are what they are without the others."""
    steps, channels, last = 1 << 20, 2304, 3
    torch.cuda.empty_cache()
    gpu: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    shape = (steps, channels) if layout == "contiguous" else (channels, steps)

    def lie(x: Tensor) -> Tensor:
        return x if layout == "contiguous" else x.mT

    large = {
        "x": lie(torch.randn(1, *shape, **gpu)),
        "weight": torch.randn(channels, 4, device="cuda"),
        "bias": torch.randn(channels, device="cuda"),
    }
    small: dict[str, Any] = {k: v[..., -last:] if k == "x" else v[-last:] for k, v in large.items()}
    dy_large = lie(torch.zeros(1, *shape, **gpu))
    dy_small = torch.randn(1, steps, last, **gpu)
    dy_large[..., -last:] = dy_small

    def run(inputs: dict[str, Any], dy: Tensor, backend: Any) -> dict[str, Tensor]:
        leaves: dict[str, Any] = {k: v.detach().requires_grad_() for k, v in inputs.items()}
        y, state = causal_conv1d(
            **leaves, activation="silu", output_final_state=True, backend=backend
        )
        assert state is not None
        gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        return {
            "y": y[..., -last:].detach(),
            "final_state": state[..., -last:].detach(),
            **dict(zip(leaves, gradients, strict=True)),
        }

    exact = run({k: v.double() for k, v in small.items()}, dy_small.double(), "torch")
    plain = run(small, dy_small, "torch")
    got = run(large, dy_large, "triton")
    assert not got["x"][..., :-last].any(), "a gradient of x has strayed"
    got = {
        k: v[..., -last:] if k == "x" else v[-last:] if k in large else v for k, v in got.items()
    }
    for name, value in got.items():
        # A thread sums 4620 steps in turn: roundings walk as far as the square root of many.
        floor = max(rounding(value.dtype), 64 * torch.finfo(torch.float32).eps)
        assert error(value, exact[name]) <= 2 * error(plain[name], exact[name]) + floor, name


@BOTH_LAYOUTS
def test_lengths_out_of_range_touch_no_other_memory(layout: str) -> None:
    """Values on a GPU are not looked at before the kernels run."""
    tensors = {name: x.float().cuda() for name, x in inputs(100).items()}
    if layout == "transposed":
        tensors["x"] = tensors["x"].mT.contiguous().mT
    wrong, right = (torch.tensor(x, device="cuda") for x in ([-(2**40), 2**40, 50], [0, 100, 50]))
    y, _ = causal_conv1d(**tensors, lengths=wrong, backend="triton")
    assert torch.equal(y, causal_conv1d(**tensors, lengths=right, backend="triton")[0])


@BOTH_LAYOUTS
def test_two_runs_are_equal_to_the_bit(layout: Any) -> None:
    tensors = {name: x.float().cuda() for name, x in inputs(50_000, channels=40).items()}
    if layout == "transposed":
        tensors["x"] = tensors["x"].mT.contiguous().mT
    how: dict[str, Any] = {"layout": layout, "activation": "silu"}
    runs = [results(causal_conv1d, "triton", tensors, **how) for _ in range(3)]
    for other in runs[1:]:
        for name, value in other.items():
            assert torch.equal(value, runs[0][name]), name


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@pytest.mark.parametrize("ragged", BOTH, ids=["whole", "ragged"])
@BOTH_LAYOUTS
def test_it_compiles_into_one_graph(layout: Any, ragged: bool) -> None:
    lengths = torch.tensor([300, 0, 129], device="cuda") if ragged else None

    def fn(backend: Any, **x: Any) -> Any:
        return causal_conv1d(**x, lengths=lengths, activation="silu", backend=backend)

    torch.compiler.reset()
    compiled = torch.compile(fn, fullgraph=True)
    tensors = {name: x.float().cuda() for name, x in inputs(300).items()}
    if layout == "transposed":
        tensors["x"] = tensors["x"].mT.contiguous().mT
    plain = results(fn, "triton", tensors, layout=layout)
    got = results(compiled, "triton", tensors, layout=layout)
    for name, value in plain.items():
        assert error(got[name], value) < 1e-6, name


def test_inputs_elsewhere_are_refused() -> None:
    x: dict[str, Any] = {name: v.float() for name, v in inputs(4).items()}
    with pytest.raises(ValueError, match="x is on cpu; Triton needs a CUDA device"):
        causal_conv1d(**x, backend="triton")
    with pytest.raises(ValueError, match="weight is on cpu; it must be on cuda:0 as x is"):
        causal_conv1d(**{**x, "x": x["x"].cuda()})
    x = {name: v.cuda() for name, v in x.items()}
    with pytest.raises(ValueError, match="x is on cuda:0; it must be on the CPU"):
        causal_conv1d(**x, backend="cpu")
    with pytest.raises(ValueError, match="lengths is on cpu; it must be on cuda:0"):
        causal_conv1d(**x, lengths=torch.tensor([1, 2, 3]))
