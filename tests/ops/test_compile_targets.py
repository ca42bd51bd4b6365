"""Every Triton kernel compiles for the GPUs that are supported, on a machine that has none.

A file that defines kernels, functions under @triton.jit named `..._kernel`, has a function
`compile_cases()` that returns [(kernel, {argument: type}, {constant: value}, num_warps)].
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
DEFINED = {
    ".".join(path.relative_to(KERNELS).with_suffix("").parts): names
    for path in sorted(KERNELS.rglob("*.py"))
    if (names := re.findall(r"@triton\.jit[^\n]*\ndef (\w+_kernel)\(", path.read_text("utf-8")))
}

# One process for all, and not this one: here, on a machine without a GPU, kernels are interpreted.
COMPILE = """
import importlib, json, sys, traceback
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

def built(module):
    seen = []
    for kernel, signature, constexprs, num_warps in module.compile_cases():
        first = kernel not in seen
        seen.append(kernel)
        signature = {**signature, **dict.fromkeys(constexprs, "constexpr")}
        signature = {name: signature[name] for name in kernel.arg_names}
        for capability in (80, 90) if first else (90,):
            source = ASTSource(kernel, signature, constexprs)
            target = GPUTarget("cuda", capability, 32)
            assert compile(source, target=target, options={"num_warps": num_warps}).asm["cubin"]
            yield f"{kernel.__name__} sm_{capability}"

said = {}
for name in sys.argv[1:]:
    try:
        said[name] = list(built(importlib.import_module(name)))
    except Exception:
        said[name] = traceback.format_exc()
print(json.dumps(said))
"""

# The kernels of the time-invariant scan whose tiles hold the state twice, at its largest.
WIDEST = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from audiomamba_kernels.lti_scan import TRITON_MAX_STATE
from audiomamba_kernels.lti_scan.compile_cases import case
from audiomamba_kernels.lti_scan.triton_lti import ends_kernel, gradients_kernel, tiling_of

tiling = tiling_of(torch.float32, TRITON_MAX_STATE)
sizes = {"R": tiling.rows, "Q": tiling.chunk, "S": TRITON_MAX_STATE, "K": tiling.adjoint_tiles}
for kernel, num_warps in (
    (ends_kernel, tiling.adjoint_warps), (gradients_kernel, tiling.gradients_warps)
):
    _, signature, constexprs, _ = case(kernel, True, narrow=False, **sizes)
    signature = {**signature, **dict.fromkeys(constexprs, "constexpr")}
    signature = {name: signature[name] for name in kernel.arg_names}
    for capability in (80, 90):
        source, target = ASTSource(kernel, signature, constexprs), GPUTarget("cuda", capability, 32)
        compiled = compile(source, target=target, options={"num_warps": num_warps})
        print(kernel.__name__, capability, compiled.metadata.shared)
"""
SHARED_MEMORY = {"80": 163 * 1024, "90": 227 * 1024}

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with PyTorch on Linux")


def run(script: str, *arguments: str) -> list[str]:
    """Run a script where kernels are compiled and return the lines it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(KERNELS)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """Return by module what was compiled, or why it was not."""
    said: dict[str, Any] = json.loads(run(COMPILE, *DEFINED)[-1])
    return said


@LINUX
@pytest.mark.parametrize("module", DEFINED)
def test_kernels_compile_for_ampere_and_hopper(module: str, compiled: dict[str, Any]) -> None:
    assert isinstance(compiled[module], list), compiled[module]
    for name in DEFINED[module]:
        assert {f"{name} sm_80", f"{name} sm_90"} <= set(compiled[module])


@LINUX
@pytest.mark.slow
def test_the_largest_state_of_the_time_invariant_scan_fits_a_multiprocessor() -> None:
    lines = [line.split() for line in run(WIDEST)]
    assert len(lines) == 4
    for name, capability, shared in lines:
        assert int(shared) <= SHARED_MEMORY[capability], name
