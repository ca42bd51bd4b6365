"""What is particular to the compiled CPU backend of the selective scan: blocks, chunks, threads."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiomamba_kernels import selective_scan, vector_math
from audiomamba_kernels.jit import fingerprint, jit
from audiomamba_kernels.selective_scan import cpu, cpu_backward, cpu_forward
from audiomamba_kernels.selective_scan.cpu_forward import CHUNK
from audiomamba_kernels.threads import run_tasks
from audiomamba_kernels.tiles import WIDTH
from tests.contract import check_kernel, error, results
from tests.covering import covering
from tests.ops.selective_cases import BOTH, inputs, rand

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")

# test_selective_scan.py holds this backend to the contract in one block of channels.
CASES = covering(
    {
        "channels": (WIDTH, WIDTH + 1, 3 * WIDTH - 1),
        "steps": (1, CHUNK, 2 * CHUNK + 1),
        "n": (1, 5),
        "dtype": (torch.float64, torch.float32),
        "complex": BOTH,
        "constant": ("", "B", "C", "BC"),
        "absent": ((), ("D", "delta_bias"), ("z", "initial_state")),
        "delta_softplus": BOTH,
        "reverse": BOTH,
        "ragged": BOTH,
        "layout": ("contiguous", "transposed", "strided"),
    }
)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_blocks_and_chunks_err_no_more_than_the_reference(case: dict[str, Any]) -> None:
    channels, n, steps = case["channels"], case["n"], case["steps"]
    tensors = inputs(steps, channels=channels, n=n, complex=case["complex"])
    for name in case["constant"]:
        tensors[name] = rand(channels, n, complex=case["complex"])
    for name in case["absent"]:
        tensors[name] = None
    if not case["delta_softplus"]:
        tensors["delta"] = tensors["delta"].abs() * 0.3  # type: ignore[union-attr]  # a tensor
        if tensors["delta_bias"] is not None:
            tensors["delta_bias"] = tensors["delta_bias"].abs() * 0.1
    check_kernel(
        selective_scan,
        "cpu",
        tensors,
        case["dtype"],
        layout=case["layout"],
        delta_softplus=case["delta_softplus"],
        reverse=case["reverse"],
        lengths=torch.tensor([steps, 0, (steps + 1) // 2]) if case["ragged"] else None,
    )


def test_a_state_of_256_is_right() -> None:
    check_kernel(
        selective_scan, "cpu", inputs(70, channels=2, n=256), torch.float32, delta_softplus=True
    )


def run(tensors: dict[str, Tensor | None], **options: Any) -> list[Tensor]:
    """Return outputs and gradients, of ones, from the functions of the backend."""
    args = [tensors[name] for name in NAMES]
    how = (options.get("lengths"), True, options.get("reverse", False))
    y, final_state, states = cpu.forward(*args, *how)  # type: ignore[arg-type]
    assert states.shape == cpu.states_shape(*y.shape, final_state.shape[2])
    gradients = cpu.backward(
        torch.ones_like(y),
        torch.ones_like(final_state),
        states,
        *args,  # type: ignore[arg-type]
        *how,
    )
    return [y, final_state, *(x for x in gradients if x is not None)]


def single(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {
        k: v if v is None else v.to(torch.complex64 if v.is_complex() else torch.float32)
        for k, v in tensors.items()
    }


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_any_number_of_threads_gives_the_same_bits(
    complex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SLICE", 1)
    tensors = single(inputs(3 * CHUNK, channels=4 * WIDTH + 3, complex=complex))
    alone = run(tensors)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for a, b in zip(alone, run(tensors), strict=True):
            assert torch.equal(a, b)


def test_sums_over_many_rows_are_taken_in_one_group() -> None:
    """A group holds several blocks of channels."""
    tensors = single(inputs(5, batch=cpu.GROUPS, channels=2 * WIDTH + 1))
    parts = [
        run({k: v[i : i + 1] if v is not None and v.dim() == 3 else v for k, v in tensors.items()})
        for i in range(cpu.GROUPS)
    ]
    for i, whole in enumerate(run(tensors)):
        if len(whole) == cpu.GROUPS:
            torch.testing.assert_close(whole, torch.cat([part[i] for part in parts]))


def test_an_absent_gradient_of_the_final_state_is_zero() -> None:
    tensors = single(inputs(9))
    args = [tensors[name] for name in NAMES]
    y, final_state, states = cpu.forward(*args, None, True, False)  # type: ignore[arg-type]
    both = [
        cpu.backward(y, dfinal, states, *args, None, True, False)  # type: ignore[arg-type]
        for dfinal in (None, torch.zeros_like(final_state))
    ]
    for a, b in zip(*both, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_no_rows_give_no_rows() -> None:
    tensors = {k: v if v is None else v[:0] if v.dim() == 3 else v for k, v in inputs(4).items()}
    y, final_state, *gradients = run(tensors)
    assert y.shape == (0, 4, 5)
    assert final_state.shape == (0, 5, 3)
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z"])
def test_a_nan_is_not_lost(name: str) -> None:
    tensors: dict[str, Any] = inputs(3 * CHUNK, channels=WIDTH + 1)
    tensors[name].view(-1)[0] = torch.nan
    y, _ = selective_scan(**single(tensors), delta_softplus=True, backend="cpu")
    assert y[0, 0].isnan().any()
    assert not y[0, 0].isnan().all() or name in ("B", "C")


def test_softplus_is_the_identity_from_twenty_on_as_in_pytorch() -> None:
    tensors = inputs(5)
    tensors["delta"] = torch.linspace(15, 25, 75).double().view(3, 5, 5)
    tensors["delta_bias"] = None
    check_kernel(selective_scan, "cpu", tensors, torch.float64, delta_softplus=True)


@pytest.mark.parametrize("module", [cpu_forward, cpu_backward])
def test_kept_code_belongs_to_its_sources(module: Any) -> None:
    cells = inspect.unwrap(module.run).__closure__
    expected = fingerprint(Path(module.__file__).parent, "cpu*.py")
    assert [cell.cell_contents for cell in cells or ()] == [expected]


def test_an_error_in_a_thread_is_raised() -> None:
    torch.set_num_threads(2)

    def task(i: int) -> None:
        raise ValueError(f"task {i}")

    with pytest.raises(ValueError, match="task 0"):
        run_tasks(task, 4)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (vector_math.exp, np.exp),
        (vector_math.exp2, np.exp2),
        (vector_math.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (vector_math.silu, lambda x: x / (1 + np.exp(-x))),
        (vector_math.softplus, lambda x: np.logaddexp(x, 0)),
        (vector_math.gelu, lambda x: torch.nn.functional.gelu(torch.from_numpy(x)).numpy()),
        (lambda x: vector_math.sincos(x)[0], np.sin),
        (lambda x: vector_math.sincos(x)[1], np.cos),
    ],
)
def test_elementary_functions_are_exact_in_float64(function: Any, expected: Any) -> None:
    inner = jit(function) if function.__name__ == "<lambda>" else function
    compiled = jit(lambda x: inner(x))
    x = np.linspace(-30, 30, 201)
    got = [float(compiled(v)) for v in x]
    np.testing.assert_allclose(got, expected(x), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_gradients_that_are_sums_over_a_long_time_keep_their_digits(complex: bool) -> None:
    single = {
        name: x.to(torch.complex64 if x.is_complex() else torch.float32)
        for name, x in inputs(100_000, batch=1, channels=3, n=2, complex=complex).items()
        if x is not None
    }
    wide = {
        k: x.to(torch.complex128 if x.is_complex() else torch.float64) for k, x in single.items()
    }
    got = results(selective_scan, "cpu", single, delta_softplus=True)
    exact = results(selective_scan, "cpu", wide, delta_softplus=True, dy_dtype=torch.float32)
    for name in ("dA", "dD", "ddelta_bias"):
        assert error(got[name], exact[name]) < 1e-6, name
