"""Streams of the compiled loop side by side, one a CPU core."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray

from audiomamba.engine.engine import Engine, Stream
from audiomamba.engine.place import Blocks, Draw, Place, Tokens

BLOCK = 2048  # samples that the compiled loop makes before it looks up, some 50 ms
LEAST = 256  # of a block of many streams: fewer cost time, as a stream's state is fetched anew
AHEAD = 4  # blocks under way, so that no core waits for another or for who takes the blocks


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
        count = len(self._streams)
        threads = min(count, torch.get_num_threads())
        size = max(LEAST, BLOCK * threads // count)
        # A thread has streams of its own, so that it need not wait for another.
        workers = [ThreadPoolExecutor(1, thread_name_prefix="generate") for _ in range(threads)]
        under_way: deque[tuple[Tokens, list[Future[None]]]] = deque()
        stop = Event()
        try:
            for at in range(0, samples, size):
                block = np.full((count, min(size, samples - at)), -1, np.int64)
                work = [
                    worker.submit(self._go_on, block, range(i, count, threads), stop)
                    for i, worker in enumerate(workers)
                ]
                under_way.append((block, work))
                if len(under_way) == AHEAD:
                    yield _finished(*under_way.popleft())
            while under_way:
                yield _finished(*under_way.popleft())
        finally:
            stop.set()
            for wait in (False, True):  # all are told to stop before one is waited for
                for worker in workers:
                    worker.shutdown(wait, cancel_futures=True)

    def _go_on(self, block: NDArray[np.int64], members: range, stop: Event) -> None:
        draw = self._draw
        for i in members:
            if stop.is_set():
                return
            self._streams[i].run(block[i], draw.sampling, *draw.key(i))

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
