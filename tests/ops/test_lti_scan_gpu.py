"""The Triton kernels of the time-invariant scan on a GPU, at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba_kernels import lti_scan
from audiomamba_kernels.lti_scan import TRITON_MAX_STATE
from audiomamba_kernels.lti_scan.triton_lti import padded_state, tiling_of
from tests.contract import WIDER, check_kernel, error, results
from tests.covering import covering
from tests.ops.lti_cases import BOTH, LAYOUTS, OPTIONS, check, inputs, single

pytestmark = pytest.mark.gpu

# Tests that take much of a GPU's memory take turns.
LARGE = pytest.mark.xdist_group("large")

ONE_MINUTE = 958_464  # at 16 kHz, in whole blocks

# Each case is a kernel of its own, which takes seconds to compile; each runs at every length.
CASES = covering(
    {
        "n": (1, 8, 17, 32, 64),
        "channels": (1, 3, 40),
        "dtype": (torch.float32, torch.bfloat16, torch.float16),
        **OPTIONS,
        "layout": LAYOUTS,
        "cut": BOTH,
    }
)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_it_errs_no_more_than_the_reference(case: dict[str, Any]) -> None:
    A = torch.empty(1, case["n"], dtype=torch.complex64 if case["complex"] else torch.float32)
    tiling = tiling_of(case["dtype"], padded_state(A))
    tile = tiling.chunk * tiling.rows
    for steps in (1, 2, 63, 64, 65, 1000, tile - 1, tile, tile + 1, 9 * tile + 100):
        against = "reference" if steps <= 65 else "torch"
        check("triton", {**case, "steps": steps}, device="cuda", against=against)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_the_most_states(complex: bool, dtype: torch.dtype) -> None:
    """256 real numbers, and twice as many, which None leaves to PyTorch."""
    case: dict[str, Any] = {"D": True, "z": True, "initial_state": True, "ragged": "lengths"}
    case |= {"complex": complex, "dtype": dtype, "channels": 40}
    n = TRITON_MAX_STATE // (2 if complex else 1)
    how: dict[str, Any] = {"device": "cuda"}
    if dtype == torch.float32:
        how["wider"] = WIDER["lti_scan, 256 numbers, float32"]
    for steps in (1, 33, 1100):
        how["against"] = "reference" if steps <= 33 else "torch"
        check("triton", {**case, "n": n, "steps": steps}, **how)
    tensors: dict[str, Any] = {
        k: v if v is None else v.cuda()
        for k, v in single(steps=9, n=2 * n, complex=complex).items()
    }
    assert torch.equal(lti_scan(**tensors)[0], lti_scan(**tensors, backend="torch")[0])


@LARGE
@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_a_minute_is_as_exact_as_a_second(complex: bool) -> None:
    check_kernel(
        lti_scan,
        "triton",
        inputs(ONE_MINUTE, batch=1, channels=4, n=8, complex=complex),
        torch.float32,
        device="cuda",
        against="torch",
    )


@LARGE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_a_million_steps_of_three_lengths(reverse: bool, dtype: torch.dtype) -> None:
    case: dict[str, Any] = {
        "complex": True,
        "D": True,
        "z": True,
        "initial_state": True,
        "reverse": reverse,
    }
    case |= {"steps": 1 << 20, "channels": 2, "n": 4, "dtype": dtype, "ragged": "lengths"}
    check("triton", case, device="cuda", against="torch")


@LARGE
def test_beyond_2_to_the_31_elements() -> None:
    """The last channels of 2304, alone in the loss, are what they are without the others."""
    steps, channels, last, n = 1 << 20, 2304, 3, 4
    torch.cuda.empty_cache()
    large: dict[str, Tensor] = {
        "u": torch.randn(1, channels, steps, device="cuda", dtype=torch.bfloat16).mT,
        **{k: v.cuda() for k, v in single(steps=1, channels=channels, n=n).items() if k in "ABC"},  # type: ignore[union-attr]
        "delta": 0.1 * torch.rand(channels, device="cuda"),
    }
    small = {k: v[..., -last:] if k == "u" else v[-last:] for k, v in large.items()}
    dy_large = torch.zeros_like(large["u"])
    dy_small = torch.randn_like(small["u"])
    dy_large[..., -last:] = dy_small

    def run(inputs: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
        leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
        y, h = lti_scan(**leaves, output_final_state=True, backend="triton")  # type: ignore[arg-type]
        grads = torch.autograd.grad(y, list(leaves.values()), dy)
        got = {"y": y[..., -last:].detach(), "final_state": h[:, -last:].detach()}  # type: ignore[index]
        cut = {
            k: g[..., -last:] if k == "u" else g[-last:] for k, g in zip(leaves, grads, strict=True)
        }
        return got | cut

    for (name, a), b in zip(
        run(large, dy_large).items(), run(small, dy_small).values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_two_runs_are_equal_to_the_bit() -> None:
    tensors = {
        k: v if v is None else v.cuda() for k, v in single(steps=9999, channels=40, n=8).items()
    }
    runs = [results(lti_scan, "triton", tensors) for _ in range(3)]
    for other in runs[1:]:
        for name, value in other.items():
            assert torch.equal(value, runs[0][name]), name


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@pytest.mark.parametrize("ragged", [None, "lengths"])
def test_it_compiles_into_one_graph(ragged: str | None) -> None:
    lengths = torch.tensor([300, 0, 129], device="cuda") if ragged else None

    def fn(backend: Any, **x: Any) -> Any:
        return lti_scan(**x, lengths=lengths, backend=backend)

    torch.compiler.reset()
    compiled = torch.compile(fn, fullgraph=True)
    tensors = {k: v if v is None else v.cuda() for k, v in single(steps=300, complex=True).items()}
    plain = results(fn, "triton", tensors)
    got = results(compiled, "triton", tensors)
    for name, value in plain.items():
        assert error(got[name], value) < 1e-6, name
