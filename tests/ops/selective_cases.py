"""Inputs and options of the selective scan, to be tried on every backend and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiomamba_kernels import selective_scan
from tests.contract import WIDER, check_kernel

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
BOTH = (False, True)
OPTIONS: dict[str, tuple[Any, ...]] = {
    "complex": BOTH,
    **dict.fromkeys(OPTIONAL, BOTH),
    "constant_B": BOTH,
    "constant_C": BOTH,
    "delta_softplus": BOTH,
    "reverse": BOTH,
    "ragged": (None, "lengths", "packed"),
    "loss": ("both", "y", "final_state"),
}
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
HALF = (torch.bfloat16, torch.float16)

TF32 = WIDER["selective_scan, 5 to 16 complex states, half precision"]


def rand(*shape: int, complex: bool = False) -> Tensor:
    real = torch.randn(*shape, dtype=torch.float64)
    return torch.complex(real, torch.randn(*shape, dtype=torch.float64)) if complex else real


def inputs(
    steps: int, *, batch: int = 3, channels: int = 5, n: int = 3, complex: bool = False
) -> dict[str, Tensor | None]:
    A = -torch.rand(channels, n, dtype=torch.float64) - 0.01
    return {
        "u": rand(batch, steps, channels),
        "delta": rand(batch, steps, channels).abs(),
        "A": torch.complex(A, rand(channels, n)) if complex else A,
        "B": rand(batch, steps, n, complex=complex),
        "C": rand(batch, steps, n, complex=complex),
        "D": rand(channels),
        "z": rand(batch, steps, channels),
        "delta_bias": rand(channels).abs(),
        "initial_state": rand(batch, channels, n, complex=complex),
    }


def check(backend: str, case: dict[str, Any], **how: Any) -> None:
    """Check a case of the axes above, of sequences of three lengths."""
    case = dict(case)
    steps, complex = case.pop("steps"), case.pop("complex")
    sizes = {name: case.pop(name) for name in ("channels", "n")}
    present = {name: case.pop(name) for name in OPTIONAL}
    constant = {name: case.pop(f"constant_{name}") for name in ("B", "C")}
    ragged, cut = case.pop("ragged"), case.pop("cut", False)
    lengths = torch.tensor([steps, 0, (steps + 1) // 2])
    tensors = inputs(steps, batch=3, complex=complex, **sizes)
    if ragged == "lengths":
        how["lengths"] = lengths
    elif ragged == "packed":
        first = inputs(int(lengths.sum()), batch=1, complex=complex, **sizes)
        tensors = {**first, "initial_state": tensors["initial_state"]}
        how["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0)])
    tensors = {name: x if present.get(name, True) else None for name, x in tensors.items()}
    for name in constant:
        if constant[name]:
            tensors[name] = rand(sizes["channels"], sizes["n"], complex=complex)
    half = case["dtype"] in HALF
    if cut and ragged != "packed" and steps > 2:
        how["cuts"] = (1, steps // 2 + 1)
        if half:
            # Autograd would round the sum of the pieces' gradients at each of them.
            how["dtypes"] = {name: torch.float32 for name in constant if constant[name]}
    if half and complex and 4 < sizes["n"] <= 16 and how.get("device") == "cuda":
        how["wider"] = {f"d{name}": TF32[f"d{name}"] for name in constant if not constant[name]}
    check_kernel(selective_scan, backend, tensors, **case, **how)
