"""What the Triton kernels of the time-invariant scan are compiled with in tests without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SEQUENCES = ("x", "gate", "u", "z", "y", "dy", "du", "dz")
OPERANDS = ("inside", "read", "write", "late_read", "late_write", "side")
OPTIONAL = ("gate", "z", "dz", "skip", "lengths", "entering")
SIZES = ("batch", "channels", "tiles", "segments", "steps", "width")
Case = tuple[Any, dict[str, str], dict[str, Any], int]


def cases(kernel: Any, **sizes: int) -> Iterator[Case]:
    """Yield a kernel with all options on, bfloat16 and complex, and with none, float32 and real.

    The first twice, with 16 state dimensions and with the 64 of S4.
    """
    yield case(kernel, True, narrow=True, R=64, Q=64, S=16, **sizes)
    yield case(kernel, True, narrow=True, R=16, Q=64, S=64, num_warps=2, **sizes)
    yield case(kernel, False, narrow=False, R=32, Q=32, S=16, **sizes)


def case(kernel: Any, every: bool, *, narrow: bool, num_warps: int = 4, **sizes: int) -> Case:
    """Return a kernel with all options or none, in bfloat16 (`narrow`) or float32."""
    constants: dict[str, Any] = {"K": 4, "STAGES": 2, **sizes}
    constants |= dict.fromkeys(("COMPLEX", "REVERSE", "BACKWARDS", "ADJOINT"), every)
    constants["PRECISION"] = "tf32" if narrow else "tf32x3"
    if not every:
        constants |= dict.fromkeys(OPTIONAL)
    kind = "*bf16" if narrow else "*fp32"
    types = dict.fromkeys((*SEQUENCES, *OPERANDS), kind) | {"lengths": "*i64"}
    types |= dict.fromkeys(SIZES, "i32")
    types |= {n: "i32" for n in kernel.arg_names if n.endswith(("_batch", "_channel"))}
    return (
        kernel,
        {name: types.get(name, "*fp32") for name in kernel.arg_names},
        {name: value for name, value in constants.items() if name in kernel.arg_names},
        num_warps,
    )
