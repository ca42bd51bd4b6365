"""The CUDA kernel as C++ sees what is wrong with it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiomamba.config import ModelConfig, Tier
from audiomamba.engine import cuda_compile, cuda_engine
from audiomamba.engine.cuda_plan import CudaPlan
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling
from audiomamba.tokenizer import Tokenizer
from tests import cuda_on_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel runs on the GPU")
Run = Callable[..., torch.Tensor]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Draws, with a plan changed as asked for."""
    cuda_on_cpu.emulate(monkeypatch)
    monkeypatch.setattr(cuda_on_cpu, "compiled", cuda_on_cpu.compiled.__wrapped__)
    plan_cuda = cuda_engine.plan_cuda
    tiers = (Tier(mixer="s6", n_layers=1, d_state=2, d_conv=2),)
    network = WaveformModel(
        ModelConfig(tokenizer=Tokenizer(bits=7), d_model=4, tiers=tiers, pools=())
    )

    def run(change: Callable[[CudaPlan], CudaPlan] = lambda plan: plan) -> torch.Tensor:
        monkeypatch.setattr(
            cuda_engine, "plan_cuda", lambda *of, **how: change(plan_cuda(*of, **how))
        )
        tokens = torch.full((1, 3), -1, dtype=torch.int32)
        cuda_engine.CudaEngine(network).start().run(tokens, Sampling(1, 9))
        return tokens

    return run


def test_more_shared_memory_than_asked_for(run: Run) -> None:
    assert (run() >= 0).all()
    with pytest.raises(AssertionError, match="more shared memory was written than asked for"):
        run(lambda plan: dataclasses.replace(plan, shared_bytes=16))


def test_weights_beyond_the_last(run: Run) -> None:
    def cut(plan: CudaPlan) -> CudaPlan:
        (depth,) = re.findall(r"DEPTH = (\d+)", plan.header)
        chunk = 16 * plan.threads
        return dataclasses.replace(plan, stream=plan.stream[: -int(depth) * chunk].clone())

    with pytest.raises(AssertionError, match="a buffer was left at its end"):
        run(cut)


def test_a_barrier_that_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cuda_compile.FOLDER, tmp_path / "cuda")
    source = (tmp_path / "cuda/run.cu").read_text()
    barrier = "head.finish();\n    __syncthreads();"
    assert barrier in source
    (tmp_path / "cuda/run.cu").write_text(source.replace(barrier, "head.finish();"))
    monkeypatch.setattr(cuda_compile, "FOLDER", tmp_path / "cuda")
    with pytest.raises(AssertionError, match="the order of threads matters"):
        run()


def test_a_kernel_that_g_plus_plus_refuses_is_refused_again(run: Run) -> None:
    def torn(plan: CudaPlan) -> CudaPlan:
        return dataclasses.replace(plan, header="#error torn")

    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            run(torn)


def test_a_compiler_without_contexts_is_a_reason_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\necho no ucontext.h >&2; exit 1\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    reason: Any = cuda_on_cpu.why_not.__wrapped__()
    assert reason == "g++ here cannot run CUDA as C++: no ucontext.h\n"
    (tmp_path / "g++").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_on_cpu.why_not.__wrapped__() == "CUDA needs a GPU, or g++ to run as C++"
