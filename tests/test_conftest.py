"""Tests run as conftest.py says: a file in one process, on one thread."""

from __future__ import annotations

import os

import pytest
import torch


def test_xdist_reads_the_group_of_a_test(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", False):
        pytest.skip("there are no groups: one process, or another --dist")
    assert request.node.nodeid.endswith("@test_conftest.py")


def test_tests_and_what_they_start_use_one_thread() -> None:
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
