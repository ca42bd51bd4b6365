"""Streams of an engine on a GPU: a block of samples a launch, the next one under way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.engine.place import Blocks, Draw, Place, Tokens, joined, parted
from audiomamba.engine.streams import StreamEngine

BLOCK = 1024  # samples of a launch
LEAST = 64  # of one of many streams
AT_ONCE = 128  # streams that a GPU takes on at once, about: more take their turns

# Tokens, the event after which they are there, and where its streams begin.
_Block = tuple[Tensor, torch.cuda.Event | None, list[int]]


class LaunchedStreams:
    """See `Running`; on the engine's CUDA stream, whichever is the caller's.

    All that blocks need of a GPU's memory is taken at the start, where too many are turned away.
    """

    def __init__(self, engine: StreamEngine, places: Sequence[Place], draw: Draw) -> None:
        self._draw = draw
        shared = all(place is places[0] for place in places)
        keys = [draw.key(i) for i in range(len(places))]
        self._keys = [seed for seed, _ in keys], [number for _, number in keys]
        self._own = partial(torch.cuda.stream, engine.cuda_stream)
        with self._own():
            self._streams = engine.start(
                joined(places[:1] if shared else places),
                streams=len(places),
                position=[place.position for place in places],
                previous=[place.previous for place in places],
            )
            self._size = max(LEAST, BLOCK * AT_ONCE // max(AT_ONCE, len(places)))
            logits = self._streams.logits
            self._tokens = logits.new_empty(len(places) * self._size, dtype=torch.int32)
            self._launch(self._tokens[:0].view(len(places), 0))

    def read(self, tokens: Tokens) -> None:
        """Take all streams through given tokens."""
        with self._own():
            given = torch.from_numpy(tokens.astype(np.int32)).to(self._streams.logits.device)
            self._launch(given.repeat(len(self._streams.logits), 1))

    @torch.inference_mode()
    def blocks(self, samples: int) -> Blocks:
        """Draw samples."""
        waiting: list[_Block] = []
        for at in range(0, samples, self._size):
            with self._own():
                waiting.append(self._begin(min(self._size, samples - at)))
            if len(waiting) > 1:
                yield _landed(*waiting.pop(0))
        yield _landed(*waiting.pop(0))

    def _begin(self, samples: int) -> _Block:
        """Launch a block, and its way to the host."""
        streams, positions = len(self._streams.logits), self._streams.positions
        tokens = self._tokens[: streams * samples].view(streams, samples).fill_(-1)
        self._launch(tokens)
        host = torch.empty(tokens.shape, dtype=torch.int32, pin_memory=tokens.is_cuda)
        host.copy_(tokens, non_blocking=True)
        if not tokens.is_cuda:
            return host, None, positions
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(tokens.device))
        return host, copied, positions

    def _launch(self, tokens: Tensor) -> None:
        self._streams.run(tokens, self._draw.sampling, *self._keys)

    def nats(self) -> NDArray[np.float64]:
        """Return minus the log-likelihoods."""
        with self._own():
            nats: NDArray[np.float64] = self._streams.nats.cpu().numpy()
        return nats

    def places(self) -> list[Place]:
        """Return where each stream stands."""
        with self._own():
            streams = self._streams
            return parted(streams.state(), streams.positions, streams.previous())


def _landed(tokens: Tensor, copied: torch.cuda.Event | None, positions: list[int]) -> Tokens:
    """Wait for a block whose streams begin at positions, and look at it."""
    if copied is not None:
        copied.synchronize()
    block: Tokens = tokens.numpy()
    if (block < 0).any():
        at = min(
            position + int(row.argmax())
            for position, row in zip(positions, block < 0, strict=True)
            if row.any()
        )
        raise ValueError(
            f"a logit is not finite at sample {at}; the weights are damaged or training diverged"
        )
    return block
