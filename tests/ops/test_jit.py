"""Code that a process compiles gives the bits of code that it loads from disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
from audiomamba_kernels import lti_scan

torch.manual_seed(0)
u, delta = torch.randn(1, 70, 16), torch.rand(16)
A = torch.complex(-torch.rand(16, 8), torch.randn(16, 8))
B, C = (torch.randn(16, 8, dtype=torch.complex64) for _ in range(2))
print(lti_scan(u, delta, A, B, C, backend="cpu")[0].flatten().view(torch.int32).tolist())
"""


@pytest.mark.slow
def test_compiled_code_is_that_which_is_kept(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    paths = [str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    places = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    compiled, loaded = (
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | places,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert compiled == loaded
    assert list(tmp_path.rglob("*.nbc"))
