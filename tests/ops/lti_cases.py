"""Inputs and options of the time-invariant scan, to be tried on every backend and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiomamba_kernels import lti_scan
from tests.contract import WIDER, check_kernel, hold, results

OPTIONAL = ("D", "z", "initial_state")
BOTH = (False, True)
OPTIONS: dict[str, tuple[Any, ...]] = {
    "complex": BOTH,
    **dict.fromkeys(OPTIONAL, BOTH),
    "reverse": BOTH,
    "ragged": (None, "lengths", "packed"),
    "loss": ("both", "y", "final_state"),
}
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")


def rand(*shape: int, complex: bool = False) -> Tensor:
    real = torch.randn(*shape, dtype=torch.float64)
    return torch.complex(real, torch.randn(*shape, dtype=torch.float64)) if complex else real


def inputs(
    steps: int, *, batch: int = 3, channels: int = 5, n: int = 3, complex: bool = False
) -> dict[str, Tensor | None]:
    A = -torch.rand(channels, n, dtype=torch.float64) - 0.01
    return {
        "u": rand(batch, steps, channels),
        "delta": 0.1 * torch.rand(channels, dtype=torch.float64) + 0.001,
        "A": torch.complex(A, 3 * rand(channels, n)) if complex else A,
        "B": rand(channels, n, complex=complex),
        "C": rand(channels, n, complex=complex),
        "D": rand(channels),
        "z": rand(batch, steps, channels),
        "initial_state": rand(batch, channels, n, complex=complex),
    }


def single(**sizes: Any) -> dict[str, Tensor | None]:
    return {
        k: v if v is None else v.to(torch.complex64 if v.is_complex() else torch.float32)
        for k, v in inputs(**sizes).items()
    }


def check(backend: str, case: dict[str, Any], **how: Any) -> None:
    """Check a case of the axes above, of sequences of three lengths."""
    case = dict(case)
    steps, complex, dtype = case.pop("steps"), case.pop("complex"), case.pop("dtype")
    sizes = {name: case.pop(name) for name in ("channels", "n")}
    present = {name: case.pop(name) for name in OPTIONAL}
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
    if cut and ragged != "packed" and steps > 2:
        how["cuts"] = (1, steps // 2 + 1)
    if dtype == torch.bfloat16 and (backend == "torch" or how.get("device") == "cuda"):
        check_bfloat16(backend, tensors, **case, **how)
    else:
        if dtype == torch.float16 and (steps > 65 or "cuts" in how):
            # A gradient that is a sum over as many steps passes float16's range, and autograd would
            # round the sum over pieces at each of them.
            how["dtypes"] = dict.fromkeys(("delta", "B", "C"), torch.float32)
        check_kernel(lti_scan, backend, tensors, dtype, **case, **how)


def check_bfloat16(backend: str, tensors: dict[str, Tensor | None], **how: Any) -> None:
    """As `check_kernel`, where operands of matrix products are rounded too.

    Those are the input, the maps of a chunk, states and gradients. What is carried is not rounded.
    Of a gradient that is one number, and may nearly cancel, half of the digits of a bfloat16 are
    asked for.
    """
    device, cuts = how.pop("device", "cpu"), how.pop("cuts", ())
    against = how.pop("against", "reference")
    how = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in how.items()}
    how["dy_dtype"] = torch.bfloat16
    narrow = {
        name: x
        if x is None
        else x.to(device, torch.bfloat16)
        if name in ("u", "z")
        else x.to(device, torch.complex64 if x.is_complex() else torch.float32)
        for name, x in tensors.items()
    }
    wide = {
        k: x if x is None else x.to(torch.complex128 if x.is_complex() else torch.float64)
        for k, x in narrow.items()
    }
    exact = results(lti_scan, against, wide, **how)
    plain = results(lti_scan, "cpu" if device == "cpu" else against, narrow, **how)
    got = results(lti_scan, backend, narrow, cuts=cuts, **how)
    wider = dict(WIDER["lti_scan, bfloat16"])
    for name, value in got.items():
        if value.numel() == 1 and name.startswith("d"):
            wider[name] = torch.finfo(torch.bfloat16).eps ** 0.5
    hold(got, plain, exact, wider)
