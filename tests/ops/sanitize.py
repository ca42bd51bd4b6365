"""Every Triton kernel once, for a tool that watches a GPU's memory.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m tests.ops.sanitize

Without PyTorch's cache every tensor is an allocation of its own, so that an address past its end is
seen. What the kernels compute is for the tests.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiomamba_kernels import causal_conv1d, lti_scan, selective_scan
from audiomamba_kernels.lti_scan import TRITON_MAX_STATE
from tests.contract import IN_TIME, results
from tests.ops import conv_cases, lti_cases, selective_cases
from tests.ops.step_cases import a_step

CHANNELS = 37
STEPS = (1, 65, 1024)  # 1024 are whole tiles of the time-invariant scan; their half is not


class Case(NamedTuple):
    """Inputs, by which kernels are compiled."""

    dtype: torch.dtype
    complex: bool
    n: int
    constant: str = ""  # B, C or both, for the selective scan
    initial_state: bool = True
    lengths: bool = True
    lti_n: int = 8


CASES = (
    Case(torch.bfloat16, False, 16, initial_state=False),
    Case(torch.float32, True, 8, "BC", lengths=False),
    Case(torch.bfloat16, False, 16, lengths=False, lti_n=64),
    Case(torch.float16, False, 64, "B", lti_n=TRITON_MAX_STATE),
)


def on_gpu(tensors: dict[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Return inputs as a model has them: parameters and complex numbers of single precision."""

    def move(name: str, x: Tensor) -> Tensor:
        narrow = dtype if name in IN_TIME and x.dim() == 3 else torch.float32
        return x.to("cuda", torch.complex64 if x.is_complex() else narrow)

    return {name: x if x is None else move(name, x) for name, x in tensors.items()}


def run(case: Case, steps: int) -> None:
    """Run forward and backward of every kernel on one kind of inputs."""
    how: dict[str, Any] = {"reverse": case.complex}
    if case.lengths:
        how["lengths"] = torch.tensor([steps, 0, (steps + 1) // 2], device="cuda")
    scan = selective_cases.inputs(steps, channels=CHANNELS, n=case.n, complex=case.complex)
    for name in case.constant:
        scan[name] = selective_cases.rand(CHANNELS, case.n, complex=case.complex)
    lti = lti_cases.inputs(steps, channels=CHANNELS, n=case.lti_n, complex=case.complex)
    conv: dict[str, Any] = conv_cases.inputs(steps, channels=CHANNELS)
    scan, lti, conv = (on_gpu(x, case.dtype) for x in (scan, lti, conv))
    if not case.initial_state:
        for tensors in (scan, lti, conv):
            tensors["initial_state"] = None
    results(selective_scan, "triton", scan, delta_softplus=True, **how)
    results(lti_scan, "triton", lti, **how)
    for layout in ("contiguous", "transposed"):
        results(causal_conv1d, "triton", conv, layout=layout, activation="silu", **how)


def main() -> None:
    """Run every kernel."""
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for case, steps in itertools.product(CASES, STEPS):
        run(case, steps)
        torch.cuda.synchronize()
        logging.info("%d steps of %s", steps, case)
    for name in ("scan", "conv", "lti"):
        for complex in (False, True):
            step, states = a_step(name, complex, torch.float32, "triton")
            step(states, [None, None])
    torch.cuda.synchronize()
    logging.info("one step of each")


if __name__ == "__main__":
    main()
