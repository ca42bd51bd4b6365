"""Streams of the compiled loop side by side, one a CPU core."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from audiomamba.engine.engine import Engine, Stream
from audiomamba.engine.place import Blocks, Draw, Place, Tokens

BLOCK = 2048  # samples that the compiled loop makes before it looks up, some 50 ms
AHEAD = 2  # blocks under way, so that no core waits for another or for who takes the blocks


class ThreadedStreams:
    """See `Running`; the compiled loop holds no lock."""

    def __init__(self, engine: Engine, places: Sequence[Place], draw: Draw) -> None:
        self._draw = draw
        self._streams = [
            engine.start(place.state, position=place.position, previous=place.previous)
            for place in places
        ]

    def read(self, tokens: Tokens) -> None:
        """Take all streams through given tokens."""
        for stream in self._streams:
            stream.run(tokens.astype(np.int64))

    def blocks(self, samples: int) -> Blocks:
        """Draw samples."""
        threads = min(len(self._streams), torch.get_num_threads())
        pool = ThreadPoolExecutor(threads, thread_name_prefix="generate")
        under_way: deque[tuple[Tokens, list[Future[None]]]] = deque()
        before: list[Future[None] | None] = [None] * len(self._streams)
        try:
            for at in range(0, samples, BLOCK):
                shape = (len(self._streams), min(BLOCK, samples - at))
                block = np.full(shape, -1, np.int64)
                work = [pool.submit(self._go_on, i, row, before[i]) for i, row in enumerate(block)]
                before = [*work]
                under_way.append((block, work))
                if len(under_way) == AHEAD:
                    yield _finished(*under_way.popleft())
            while under_way:
                yield _finished(*under_way.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _go_on(self, i: int, row: NDArray[np.int64], before: Future[None] | None) -> None:
        if before is not None:
            before.result()  # begun earlier, so that this ends; its failure is this one's
        self._streams[i].run(row, self._draw.sampling, self._draw.seed, self._draw.first + i)

    def nats(self) -> NDArray[np.float64]:
        """Return minus the log-likelihoods."""
        return np.array([stream.nats for stream in self._streams])

    def places(self) -> list[Place]:
        """Return where each stream stands."""
        return [_place(stream) for stream in self._streams]


def _place(stream: Stream) -> Place:
    return Place(state=stream.state(), position=stream.position, previous=stream.previous)


def _finished(block: Tokens, work: list[Future[None]]) -> Tokens:
    for one in work:
        one.result()
    return block
