"""Blocks of many streams: how long they are, and that work on them stops."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba.engine import launches, threads
from audiomamba.engine.launches import LaunchedStreams
from audiomamba.engine.place import Draw, Place
from audiomamba.engine.threads import ThreadedStreams

PLACE = Place(state=[], position=0, previous=0)


class Threaded:
    """An engine, and a stream of it, that is slow once it was asked for `fast` blocks."""

    def __init__(self, fast: int = 1 << 62) -> None:
        self.fast, self.made = fast, 0

    def start(self, *arguments: Any, **options: Any) -> Threaded:
        return self

    def run(self, tokens: np.ndarray, *options: Any) -> None:
        tokens[:] = 1
        self.made += 1
        if self.made > self.fast:
            time.sleep(0.01)


class Launched:
    """An engine whose streams are drawn as soon as they are launched."""

    def __init__(self) -> None:
        self.positions = [0]

    def start(self, state: Any, *, streams: int, **options: Any) -> Launched:
        self.logits = torch.zeros(streams, 1)
        self.positions = [0] * streams
        return self

    def run(self, tokens: torch.Tensor, *options: Any) -> None:
        tokens.fill_(1)


def test_streams_stop_between_two_of_them() -> None:
    engine = Threaded(fast=300)
    streams = ThreadedStreams(engine, [PLACE] * 300, Draw())  # type: ignore[arg-type]
    blocks = streams.blocks(10 * threads.LEAST)
    next(blocks)
    blocks.close()
    assert engine.made < 500  # not to the end of the second block


@pytest.mark.parametrize(
    ("streams", "size"), [(1, threads.BLOCK), (4, threads.BLOCK // 4), (50, threads.LEAST)]
)
def test_a_core_that_has_many_streams_makes_shorter_blocks(streams: int, size: int) -> None:
    running = ThreadedStreams(Threaded(), [PLACE] * streams, Draw())  # type: ignore[arg-type]
    blocks = list(running.blocks(threads.BLOCK + 1))
    assert blocks[0].shape == (streams, size)
    assert sum(block.shape[1] for block in blocks) == threads.BLOCK + 1


@pytest.mark.parametrize(
    ("streams", "size"),
    [(1, launches.BLOCK), (128, launches.BLOCK), (512, launches.BLOCK // 4), (4096, 64)],
)
def test_launches_of_many_streams_are_shorter(streams: int, size: int) -> None:
    running = LaunchedStreams(Launched(), [PLACE] * streams, Draw())  # type: ignore[arg-type]
    blocks = list(running.blocks(launches.BLOCK + 1))
    assert blocks[0].shape == (streams, size)
    assert sum(block.shape[1] for block in blocks) == launches.BLOCK + 1
