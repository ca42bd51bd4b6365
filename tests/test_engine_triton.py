"""The Triton kernel alone; what it shares with the CUDA kernel is in test_engine_streams.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from audiomamba import checkpoint
from audiomamba.sampling import Sampling

pytest.importorskip("triton")

from audiomamba.engine.triton_engine import TritonEngine

# A process of its own: in this one, on a machine without a GPU, kernels are interpreted.
COMPILE = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.engine.layout import Layout
from audiomamba.engine.triton_loop import run_kernel
from audiomamba.engine.triton_plan import plan_net
from audiomamba.models.waveform import WaveformModel

REAL = Tier(mixer="s6")
MODELS = {"piano": ModelConfig(), "sc09": unet(64, 8, (4, 4), REAL, REAL)}
POINTERS = {"tokens_ptr": "*i32", "stream_ptr": "*i64", "nats_ptr": "*fp64", "options_ptr": "*fp64"}
for name, capability, dtype, size in (("piano", 80, "*fp32", 4), ("sc09", 90, "*bf16", 2)):
    constants = {"NET": plan_net(Layout(WaveformModel(MODELS[name])), size)[0], "TILE": 8192}
    signature = {n: POINTERS.get(n, "*fp32") for n in run_kernel.arg_names}
    signature |= {"matrices_ptr": dtype, "samples": "i32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(8)}
    built = compile(
        ASTSource(run_kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4},
    )
    assert built.asm["cubin"]
    assert built.metadata.shared <= 48 * 1024
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_gpus_that_are_not_here() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("num_warps", [8, 16])
def test_any_count_of_warps_makes_the_same(num_warps: int) -> None:
    piano = checkpoint.load(checkpoint.find("piano")).eval().cuda()
    tokens = torch.full((2, 3, 600), -1, dtype=torch.int32, device="cuda")
    for out, warps in zip(tokens, (4, num_warps), strict=True):
        TritonEngine(piano, num_warps=warps).start(streams=3).run(out, Sampling(0))
    assert torch.equal(tokens[0, :, :100], tokens[1, :, :100])
