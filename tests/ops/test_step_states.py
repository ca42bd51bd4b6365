"""Where a step writes its states; steps in graphs, and compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.contract import error
from tests.ops.step_cases import DTYPES, KINDS, TRITON, a_step, tolerance

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
