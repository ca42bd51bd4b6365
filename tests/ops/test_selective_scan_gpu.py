"""The Triton kernels of the selective scan on a GPU, at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba_kernels import selective_scan
from tests.contract import IN_TIME, check_kernel, error, results, rounding
from tests.covering import covering
from tests.ops.selective_cases import BOTH, LAYOUTS, OPTIONS, TF32, check, inputs

pytestmark = pytest.mark.gpu

# Tests that take much of a GPU's memory take turns.
LARGE = pytest.mark.xdist_group("large")

ONE_MINUTE = 958_464  # at 16 kHz, in whole blocks
ONE_SECOND = 16_000

# Each case is a kernel of its own, which takes seconds to compile; each runs at every length.
CASES = covering(
    {
        "n": (1, 4, 16, 17, 64, 256),
        "channels": (1, 3, 40),
        "dtype": (torch.float32, torch.bfloat16, torch.float16),
        **OPTIONS,
        "layout": LAYOUTS,
        "cut": BOTH,
    }
)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_it_errs_no_more_than_the_reference(case: dict[str, Any]) -> None:
    for steps in (1, 2, 63, 64, 65, 1000, 2049):
        against = "reference" if steps <= 65 else "torch"
        check("triton", {**case, "steps": steps}, device="cuda", against=against)


@pytest.mark.parametrize("dtypes", [("B",), ("C",), ("B", "C")], ids="".join)
def test_maps_of_float32_have_gradients_of_float32(dtypes: tuple[str, ...]) -> None:
    """Also beside inputs of half precision, whose tensor cores would cut them."""
    tensors = inputs(65, channels=40, n=16)
    wide = dict.fromkeys(dtypes, torch.float32)
    check_kernel(selective_scan, "triton", tensors, torch.bfloat16, device="cuda", dtypes=wide)


@LARGE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_a_minute_is_as_exact_as_a_second(complex: bool, dtype: torch.dtype) -> None:
    """The plain loop would take minutes over a minute: its error over a second is the measure.

    A sum over a minute may cancel, as that of ddelta does a thousandfold here, and then errs more
    in any order; so what plain PyTorch errs over the minute, chunk by chunk, is a measure too.
    """
    options: dict[str, Any] = {"delta_softplus": True, "dy_dtype": dtype}
    minute = {
        name: x.to("cuda", torch.complex64 if x.is_complex() else wanted)
        for name, x in inputs(ONE_MINUTE, batch=1, channels=4, n=16, complex=complex).items()
        if x is not None and (wanted := dtype if name in IN_TIME else torch.float32)
    }
    second = {k: x[:, :ONE_SECOND] if k in IN_TIME else x for k, x in minute.items()}

    def exactly(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        wide = {
            name: x.to(torch.complex128 if x.is_complex() else torch.float64)
            for name, x in tensors.items()
        }
        return results(selective_scan, "torch", wide, **options)

    got, exact = results(selective_scan, "triton", minute, **options), exactly(minute)
    chunked = results(selective_scan, "torch", minute, **options)
    plain, exact_second = results(selective_scan, "reference", second, **options), exactly(second)
    wider = TF32 if complex and dtype == torch.bfloat16 else {}
    for name in exact:
        known = error(plain[name], exact_second[name]), error(chunked[name], exact[name])
        allowed = 2 * max(known) + wider.get(name, rounding(got[name].dtype))
        found = error(got[name], exact[name])
        assert found <= allowed, f"{name}: {found} > {allowed}"


@LARGE
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_ragged_rows_of_a_million_steps(reverse: bool) -> None:
    check_kernel(
        selective_scan,
        "triton",
        inputs(1 << 20, batch=2, channels=3, n=4),
        torch.float32,
        device="cuda",
        against="torch",
        lengths=torch.tensor([(1 << 20) - 12345, 1 << 20]),
        reverse=reverse,
        delta_softplus=True,
    )


@LARGE
def test_beyond_2_to_the_31_elements() -> None:
    """The last channels of 2304, alone in the loss, are what they are without the others."""
    steps, channels, last, n = 1 << 20, 2304, 3, 4
    torch.cuda.empty_cache()
    gpu: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    large: dict[str, Tensor] = {
        "u": torch.randn(1, steps, channels, **gpu),
        "delta": torch.rand(1, steps, channels, **gpu),
        "A": -torch.rand(channels, n, device="cuda") - 0.01,
        "B": torch.randn(1, steps, n, **gpu),
        "C": torch.randn(1, steps, n, **gpu),
    }
    small = {k: v[-last:] if k == "A" else v[..., -last:] for k, v in large.items()}
    small |= {k: large[k] for k in ("B", "C")}
    dy_small = torch.randn(1, steps, last, **gpu)
    dy_large = torch.zeros(1, steps, channels, **gpu)
    dy_large[..., -last:] = dy_small

    def run(inputs: dict[str, Tensor], dy: Tensor, backend: Any) -> dict[str, Tensor]:
        leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
        y, h = selective_scan(**leaves, output_final_state=True, backend=backend)
        grads = torch.autograd.grad(y, list(leaves.values()), dy)
        got = {"y": y[..., -last:], "final_state": h[:, -last:]}  # type: ignore[index]  # asked for
        got |= {k: g[-last:] if k == "A" else g for k, g in zip(leaves, grads, strict=True)}
        return {k: v.detach() for k, v in got.items()}

    exact = run({k: v.double() for k, v in small.items()}, dy_small.double(), "torch")
    plain = run(small, dy_small, "torch")
    got = run(large, dy_large, "triton")
    for name in ("u", "delta"):
        assert not got[name][..., :-last].any(), f"a gradient of {name} has strayed"
        got[name] = got[name][..., -last:]
    for name, value in got.items():
        # A thread sums 16384 steps in turn: roundings walk as far as the square root of many.
        floor = max(rounding(value.dtype), 128 * torch.finfo(torch.float32).eps)
        assert error(value, exact[name]) <= 2 * error(plain[name], exact[name]) + floor, name


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_two_runs_are_equal_to_the_bit(complex: bool) -> None:
    tensors = {
        k: v if v is None else v.to("cuda", torch.complex64 if v.is_complex() else torch.float32)
        for k, v in inputs(5000, channels=40, n=16, complex=complex).items()
    }
    runs = [results(selective_scan, "triton", tensors, delta_softplus=True) for _ in range(3)]
    for other in runs[1:]:
        for name, value in other.items():
            assert torch.equal(value, runs[0][name]), name


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@pytest.mark.parametrize("ragged", [None, "lengths"])
def test_it_compiles_into_one_graph(ragged: str | None) -> None:
    lengths = torch.tensor([300, 0, 129], device="cuda") if ragged else None

    def fn(backend: Any, **x: Any) -> Any:
        return selective_scan(**x, lengths=lengths, delta_softplus=True, backend=backend)

    torch.compiler.reset()
    compiled = torch.compile(fn, fullgraph=True)
    tensors = {k: v if v is None else v.cuda().float() for k, v in inputs(300).items()}
    plain = results(fn, "triton", tensors)
    got = results(compiled, "triton", tensors)
    for name, value in plain.items():
        assert error(got[name], value) < 1e-6, name


def test_inputs_elsewhere_are_refused() -> None:
    x: dict[str, Any] = inputs(4)
    with pytest.raises(ValueError, match="x is on cpu; Triton needs a CUDA device"):
        selective_scan(**x, backend="triton")
    with pytest.raises(ValueError, match="A is on cpu; it must be on cuda:0 as u is"):
        selective_scan(**{**x, "u": x["u"].cuda(), "delta": x["delta"].cuda()})
    x = {k: v.cuda() for k, v in x.items()}
    with pytest.raises(ValueError, match="x is on cuda:0; it must be on the CPU"):
        selective_scan(**x, backend="cpu")
    with pytest.raises(ValueError, match="lengths is on cpu; it must be on cuda:0"):
        selective_scan(**x, lengths=torch.tensor([1, 2, 3]))
