"""Every Triton kernel compiles for the GPUs that are supported, on a machine that has none.

A file that defines kernels, functions under @triton.jit named `..._kernel`, has a function
`compile_cases()` that returns [(kernel, {argument: type}, {constant: value}, num_warps)].
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
DEFINED = {
    ".".join(path.relative_to(KERNELS).with_suffix("").parts): names
    for path in sorted(KERNELS.rglob("*.py"))
    if (names := re.findall(r"@triton\.jit[^\n]*\ndef (\w+_kernel)\(", path.read_text("utf-8")))
}

# A process of its own: in this one, on a machine without a GPU, kernels are interpreted.
COMPILE = """
import importlib, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

module = importlib.import_module(sys.argv[1])
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
        print(kernel.__name__, f"sm_{capability}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with PyTorch on Linux")
@pytest.mark.parametrize("module", DEFINED)
def test_kernels_compile_for_ampere_and_hopper(module: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(KERNELS)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, module],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in DEFINED[module]:
        assert {f"{name} sm_80", f"{name} sm_90"} <= set(done.stdout.splitlines())
