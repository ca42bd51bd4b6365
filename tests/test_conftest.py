"""Tests run as conftest.py says: on one thread."""

from __future__ import annotations

import subprocess
import sys

import torch


def test_tests_and_what_they_start_use_one_thread() -> None:
    assert torch.get_num_threads() == 1
    code = "import torch; print(torch.get_num_threads())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
