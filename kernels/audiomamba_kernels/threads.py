"""Work spread over threads, in compiled functions that hold no lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def run_tasks(task: Callable[[int], None], count: int) -> None:
    """Call task(0), ..., task(count - 1), in any order, on as many threads as PyTorch uses.

    Threads last as long as the call: starting one takes a twentieth of a millisecond, and none is
    lost where a process forks.
    """
    threads = min(count, torch.get_num_threads())
    if threads <= 1:
        for i in range(count):
            task(i)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(task, i) for i in range(count)]:
            done.result()
