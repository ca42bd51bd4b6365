"""A step is the scan or the convolution, one sample at a time."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels import causal_conv1d, lti_scan, selective_scan
from audiomamba_kernels.backend import why_not
from audiomamba_kernels.step import causal_conv1d_step, lti_mamba_step, selective_scan_step
from tests.contract import error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, STEPS, CHANNELS = 2, 3, 5
TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(
        why_not("triton", torch.empty(0, device=DEVICE)) is not None,
        reason="needs a CUDA device or TRITON_INTERPRET=1",
    ),
)
BACKENDS = pytest.mark.parametrize("backend", [TRITON, "reference"])
KINDS = pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def rand(*shape: int, complex: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, device=DEVICE)
    return torch.complex(x, torch.randn(*shape, device=DEVICE)) if complex else x.to(dtype)


def exact(x: Any) -> Any:
    """Widen tensors to float64."""
    if not isinstance(x, Tensor):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def tolerance(dtype: torch.dtype) -> float:
    """A rounding of a half precision (the interpreter cuts), or a few of float32 a step."""
    return 4e-7 * STEPS if dtype == torch.float32 else torch.finfo(dtype).eps


def scan_inputs(n: int, complex: bool, dtype: torch.dtype) -> dict[str, Any]:
    shape = (BATCH, STEPS, CHANNELS)
    rates = -torch.rand(CHANNELS, n, device=DEVICE)
    return {
        "u": rand(*shape, dtype=dtype),
        "delta": rand(*shape, dtype=dtype).abs() / 2,
        "A": torch.complex(rates, rand(CHANNELS, n) * 3) if complex else rates,
        "B": rand(BATCH, STEPS, n, complex=complex),
        "C": rand(BATCH, STEPS, n, complex=complex),
        "D": rand(CHANNELS),
        "z": rand(*shape, dtype=dtype),
        "delta_bias": rand(CHANNELS),
        "initial_state": rand(BATCH, CHANNELS, n, complex=complex),
    }


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


Step = Callable[[list[Tensor], list[Any]], tuple[Tensor, ...]]


def a_step(name: str, complex: bool, dtype: torch.dtype, backend: Any) -> tuple[Step, list[Tensor]]:
    """Return a function of states and where to write them, and states, in unusual layouts."""
    n, width = 3, 4
    x = scan_inputs(n, complex, torch.float32)
    u, z, B, C = (x[key][:, 0] for key in ("u", "z", "B", "C"))
    weight, maps = rand(CHANNELS, width), rand(3, CHANNELS, n, complex=complex)
    conv = rand(BATCH, CHANNELS, width - 1, dtype=dtype).mT
    ssm = rand(n, BATCH, CHANNELS, complex=complex, dtype=dtype).permute(1, 2, 0)

    def scan(states: list[Tensor], out: list[Any]) -> tuple[Tensor, ...]:
        return selective_scan_step(
            u, u, x["A"], B, C, state=states[0], out_state=out[0], backend=backend
        )

    def convolve(states: list[Tensor], out: list[Any]) -> tuple[Tensor, ...]:
        return causal_conv1d_step(u, states[0], weight, out_state=out[0], backend=backend)

    def lti(states: list[Tensor], out: list[Any]) -> tuple[Tensor, ...]:
        conv, ssm = states
        return lti_mamba_step(
            u, z, conv, ssm, weight, None, *maps.unbind(),
            out_conv_state=out[0], out_ssm_state=out[1], backend=backend,
        )  # fmt: skip

    steps: dict[str, tuple[Step, list[Tensor]]] = {
        "scan": (scan, [ssm]),
        "conv": (convolve, [conv]),
        "lti": (lti, [conv, ssm]),
    }
    return steps[name]


EVERY_STEP = pytest.mark.parametrize("name", ["scan", "conv", "lti"])


@EVERY_STEP
@DTYPES
@KINDS
@pytest.mark.parametrize("backend", [TRITON, "reference"])
def test_states_are_written_where_they_are_wanted(
    backend: str, complex: bool, dtype: torch.dtype, name: str
) -> None:
    step, states = a_step(name, complex, dtype, backend)
    before = [state.clone() for state in states]
    y, *new = step(states, [None, None])
    for state, old in zip(states, before, strict=True):
        assert torch.equal(state, old), "a state was written unasked"
    other = [torch.full_like(state, torch.nan) for state in states]
    for out in (other, states):
        y_out, *got = step(states, out)
        assert torch.equal(y_out, y)
        for state, written, wanted in zip(got, new, out, strict=True):
            assert state is wanted
            assert error(state, written) < tolerance(dtype)


@EVERY_STEP
@pytest.mark.parametrize("backend", [TRITON, "reference"])
def test_a_step_refuses_to_be_differentiated(backend: str, name: str) -> None:
    step, states = a_step(name, False, torch.float32, backend)
    states[0].requires_grad_()
    with pytest.raises(ValueError, match="a step has no gradient"):
        step(states, [None, None])
    with torch.no_grad():
        step(states, [None, None])


@EVERY_STEP
@KINDS
def test_a_step_compiles_into_one_graph(complex: bool, name: str) -> None:
    step, states = a_step(name, complex, torch.float32, "reference")
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for got, wanted in zip(compiled(states, [None, None]), step(states, [None, None]), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@EVERY_STEP
@KINDS
def test_a_step_on_a_gpu_compiles_into_one_graph(complex: bool, name: str) -> None:
    step, states = a_step(name, complex, torch.float32, "triton")
    compiled = torch.compile(step, fullgraph=True)
    for got, wanted in zip(compiled(states, [None, None]), step(states, [None, None]), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.gpu
@EVERY_STEP
@KINDS
def test_a_cuda_graph_holds_a_step_that_overwrites_its_state(complex: bool, name: str) -> None:
    step, states = a_step(name, complex, torch.float32, "triton")
    # In the same layout, for which the same kernel is compiled: another sums in another order.
    expected = [state.clone() for state in states]
    for _ in range(3):
        y, *_ = step(expected, expected)
    first = [state.clone() for state in states]
    step(states, states)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_graph, *_ = step(states, states)
    for state, start in zip(states, first, strict=True):
        state.copy_(start)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y_graph, y)
    for state, wanted in zip(states, expected, strict=True):
        assert torch.equal(state, wanted)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from audiomamba_kernels.step import triton_kernels as t

def build(kernel, capability, dtype, absent, **constants):
    pointers = {name: dtype if name in ("x_ptr", "u_ptr", "y_ptr", "z_ptr") else "*fp32"
                for name in kernel.arg_names if name.endswith("_ptr")}
    signature = {name: pointers.get(name, "i64" if "_" in name else "i32")
                 for name in kernel.arg_names}
    constants |= dict.fromkeys(absent)
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
    assert built.asm["cubin"]

for capability, dtype, complex, absent in (
    (80, "*fp32", False, ()),
    (80, "*fp16", True, ()),
    (90, "*bf16", True, ("bias_ptr",)),
):
    width = {"WIDTH": 4, "BLOCK_W": 4}
    tile = {"COMPLEX": complex, "BLOCK_N": 16, "BLOCK_C": 8}
    skip = (*absent, "D_ptr", "z_ptr") if absent else ()
    build(t.selective_scan_step_kernel, capability, dtype, skip, SOFTPLUS=complex, **tile)
    build(t.causal_conv1d_step_kernel, capability, dtype, absent, SILU=complex, BLOCK_C=64, **width)
    build(t.lti_mamba_step_kernel, capability, dtype, skip, **width, **tile)
"""


def test_the_kernels_compile_for_gpus_that_are_not_here() -> None:
    pytest.importorskip("triton")
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path},
        check=True,
    )


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
