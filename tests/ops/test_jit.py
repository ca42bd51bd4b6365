"""How functions are compiled for the CPU."""

from __future__ import annotations

import re

import numpy as np
from numba import njit

from audiomamba_kernels.lti_scan.cpu_loops import scan_complex
from audiomamba_kernels.tiles import WIDTH


def test_inner_loops_become_part_of_what_calls_them() -> None:
    """A process that compiles would else round otherwise than one that loads the code from disk."""

    @njit
    def twice(x: np.ndarray, y: np.ndarray) -> None:
        scan_complex(x, y, y, y, y, y, y, y, y, x, 1)
        scan_complex(y, x, x, x, x, x, x, x, x, y, 1)

    twice(*np.ones((2, 1, WIDTH), np.float32))
    (code,) = twice.inspect_llvm().values()
    assert "twice" in code
    assert not re.findall(r"call [^\n]*scan_complex", code)
