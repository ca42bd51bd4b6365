"""Inputs and options of the causal convolution, to be tried on every backend and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiomamba_kernels import causal_conv1d
from tests.contract import check_kernel

BOTH = (False, True)
OPTIONS: dict[str, tuple[Any, ...]] = {
    "bias": BOTH,
    "initial_state": BOTH,
    "activation": (None, "silu"),
    "reverse": BOTH,
    "ragged": (None, "lengths", "packed"),
    "loss": ("both", "y", "final_state"),
}
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def inputs(
    steps: int, *, batch: int = 3, channels: int = 5, width: int = 4, sequences: int | None = None
) -> dict[str, Any]:
    return {
        "x": rand(batch, steps, channels),
        "weight": rand(channels, width),
        "bias": rand(channels),
        "initial_state": rand(sequences or batch, width - 1, channels),
    }


def check(backend: str, case: dict[str, Any], **how: Any) -> None:
    """Check a case of the axes above, of sequences of three lengths."""
    case = dict(case)
    steps = case.pop("steps")
    sizes = {name: case.pop(name) for name in ("channels", "width")}
    present = {name: case.pop(name) for name in ("bias", "initial_state")}
    ragged, cut = case.pop("ragged"), case.pop("cut", False)
    lengths = torch.tensor([steps, 0, (steps + 1) // 2])
    tensors = inputs(steps, **sizes)
    if ragged == "lengths":
        how["lengths"] = lengths
    elif ragged == "packed":
        tensors = inputs(int(lengths.sum()), batch=1, sequences=3, **sizes)
        how["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0)])
    if cut and ragged != "packed" and steps > 2:
        how["cuts"] = (1, steps // 2 + 1)
    chosen = {name: x if present.get(name, True) else None for name, x in tensors.items()}
    # A state is samples that were read: in their dtype.
    state = {"initial_state": case["dtype"]}
    check_kernel(causal_conv1d, backend, chosen, dtypes=state, **case, **how)
