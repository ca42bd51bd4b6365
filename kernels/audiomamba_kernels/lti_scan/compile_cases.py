"""What the Triton kernels of the time-invariant scan are compiled with in tests without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SEQUENCES = ("x", "gate", "u", "z", "y", "dy", "du", "dz")
OPERANDS = ("inside", "read", "write", "late_read", "late_write", "side")
OPTIONAL = ("gate", "z", "dz", "skip", "lengths", "entering")
SIZES = ("batch", "channels", "tiles", "segments", "steps", "width")
Case = tuple[Any, dict[str, str], dict[str, Any], int]


def cases(kernel: Any) -> Iterator[Case]:
    """Yield a kernel with all options on, bfloat16 and complex, and with none, float32 and real."""
    for every in (True, False):
        kind = "*bf16" if every else "*fp32"
        side = 64 if every else 32
        constants: dict[str, Any] = {"K": 4, "R": side, "Q": side, "S": 16, "STAGES": 2}
        constants |= dict.fromkeys(("COMPLEX", "REVERSE", "BACKWARDS", "ADJOINT"), every)
        constants["PRECISION"] = "tf32" if every else "tf32x3"
        if not every:
            constants |= dict.fromkeys(OPTIONAL)
        types = dict.fromkeys((*SEQUENCES, *OPERANDS), kind) | {"lengths": "*i64"}
        types |= dict.fromkeys(SIZES, "i32")
        types |= {n: "i32" for n in kernel.arg_names if n.endswith(("_batch", "_channel"))}
        yield (
            kernel,
            {name: types.get(name, "*fp32") for name in kernel.arg_names},
            {name: value for name, value in constants.items() if name in kernel.arg_names},
            4,
        )
