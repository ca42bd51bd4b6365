"""Which tokens a training step sees: a pure function of (seed, step, rank), so nothing is resumed.

Every batch is a dictionary:

    tokens  (batch, length + 1), uint8 (uint16 above 8 bits): column 0 is the sample before the
            row's first, so that tokens[:, :-1] predict tokens[:, 1:]; before and after a clip is
            silence.
    samples (batch,) int64: how many samples of the row are of its clip; the rest is silence, which
            is learnt only if a run asks for it.
    first   (batch,) bool: the row does not go on from the same row of the step before, so its state
            starts from zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.data.tokens import Split, TokenFile, TokenStore

CROPS, STREAMS = 0, 1  # keep the random numbers of the two modes apart


class Batch(TypedDict):
    """What one step trains on; see the module's first lines."""

    tokens: Tensor
    samples: Tensor
    first: Tensor


class Sampler(Protocol):
    """A batch for each step."""

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        ...


class Crops:
    """Whole-clip training: each row is a random crop, and its state starts from zero.

    A clip is drawn by its length, or that of a row if it is shorter and has to be padded; then
    every crop of it is equally likely. A crop from the middle of a clip is given the true
    sample before it, where SaShiMi's loader gives silence: no step then learns a jump that never
    happens in audio.

    Args:
        store: Tokens.
        batch: Rows.
        length: Samples a row.
        seed: Of the random numbers.
        rank: Which of several processes this is; each draws its own crops.
        split: Which files.

    Raises:
        ValueError: If no clip has `length` samples.

    Attributes:
        padding: The share of all samples of rows that lies beyond clips.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        batch: int,
        length: int,
        seed: int,
        rank: int = 0,
        split: Split = "train",
    ) -> None:
        self.store, self.batch, self.length = store, batch, length
        self.seed, self.rank = seed, rank
        long_enough(store, split, length)
        self.files = store.files(split)
        samples = np.array([file.samples for file in self.files])
        self._ends = np.cumsum(np.maximum(samples, length))
        self.padding = float(np.maximum(length - samples, 0).sum() / self._ends[-1])

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        random = np.random.default_rng((self.seed, CROPS, self.rank, step))
        chosen = random.integers(self._ends[-1], size=self.batch)
        files = np.searchsorted(self._ends, chosen, side="right")
        tokens, rows = _empty(self.store, self.batch, self.length)
        samples = torch.empty(self.batch, dtype=torch.int64)
        for j, i in enumerate(files):
            file = self.files[i]
            start = int(random.integers(max(0, file.samples - self.length) + 1))
            samples[j] = _fill(rows[j], self.store, file, start)
        first = torch.ones(self.batch, dtype=torch.bool)
        return Batch(tokens=tokens, samples=samples, first=first)


class Streams:
    """Carried-state training (TBPTT): each row walks through clips, chunk after chunk.

    A row has its own order of the clips, a new one each time round, and its own place in it to
    start from. A clip is cut into as many whole chunks as fit, from a random sample on among those
    that leave room for them; so no part of a clip is never seen.

    Args:
        store: Tokens.
        batch: Rows.
        length: Samples a chunk; shorter clips are not used (`unused` counts their samples).
        seed: Of the random numbers.
        rank: Which of several processes this is; its rows are its own.
        split: Which files.

    Raises:
        ValueError: If no clip has `length` samples.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        batch: int,
        length: int,
        seed: int,
        rank: int = 0,
        split: Split = "train",
    ) -> None:
        self.store, self.batch, self.length, self.seed = store, batch, length, seed
        self.files, self.unused = long_enough(store, split, length)
        self._chunks = np.array([file.samples // length for file in self.files])
        self._spare = np.array([file.samples % length for file in self.files])
        self._rows = range(rank * batch, (rank + 1) * batch)
        around = int(self._chunks.sum())
        self._starts = [
            int(np.random.default_rng((seed, STREAMS, row)).integers(around)) for row in self._rows
        ]
        self._lap = lru_cache(maxsize=2 * batch)(self._draw_lap)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        tokens, rows = _empty(self.store, self.batch, self.length)
        first = torch.zeros(self.batch, dtype=torch.bool)
        around = int(self._chunks.sum())
        for i, row in enumerate(self._rows):
            lap, place = divmod(self._starts[i] + step, around)
            order, ends, offsets = self._lap(row, lap)
            at = int(np.searchsorted(ends, place, side="right"))
            chunk = int(place - (ends[at - 1] if at else 0))
            file = int(order[at])
            _fill(rows[i], self.store, self.files[file], int(offsets[at]) + chunk * self.length)
            first[i] = chunk == 0 or step == 0
        return Batch(tokens=tokens, samples=torch.full((self.batch,), self.length), first=first)

    def _draw_lap(self, row: int, lap: int) -> tuple[NDArray[np.int64], ...]:
        """Return the order of clips, the chunks up to each one's end, and where each is cut."""
        random = np.random.default_rng((self.seed, STREAMS, row, lap))
        order = random.permutation(len(self.files))
        offsets = random.integers(self._spare[order] + 1)
        return order, np.cumsum(self._chunks[order]), offsets


class Steps:
    """The batches of a run, from the step it has come to; the iterable that a trainer takes.

    No worker processes: a batch is a few copies out of a memory map. Batches are in pinned memory
    where there is a CUDA device, so that they travel while it computes.

    Args:
        sampler: What gives the batch of a step.
        steps: Of the whole run.
    """

    def __init__(self, sampler: Sampler, steps: int) -> None:
        self.sampler, self.steps, self.step = sampler, steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        while self.step < self.steps:
            batch = self.sampler(self.step)
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the step to go on from."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a step."""
        self.step = state["step"]


def long_enough(store: TokenStore, split: Split, length: int) -> tuple[tuple[TokenFile, ...], int]:
    """Return the files of a split with at least `length` samples, and the samples of the others.

    Raises:
        ValueError: If there is none.
    """
    files = store.files(split)
    kept = tuple(file for file in files if file.samples >= length)
    if not kept:
        longest = max((file.samples for file in files), default=0)
        raise ValueError(
            f"no {split} clip in {store.directory} has {length} samples (the longest has "
            f"{longest}); give a smaller length"
        )
    return kept, sum(file.samples for file in files if file.samples < length)


def check_length(length: int, period: int) -> None:
    """Check that a network with a period can train on a length.

    Raises:
        ValueError: If it cannot; names the lengths that it can.
    """
    if length < 1 or length % period:
        near = max(1, length // period) * period
        raise ValueError(
            f"length is {length}; it must be a multiple of the model's period {period}, "
            f"such as {near} or {near + period}"
        )


def _empty(store: TokenStore, batch: int, length: int) -> tuple[Tensor, NDArray[np.uint8]]:
    """Return memory for a batch, as a tensor and as an array."""
    dtype = torch.uint8 if store.tokenizer.dtype.itemsize == 1 else torch.uint16
    tokens = torch.empty(batch, length + 1, dtype=dtype, pin_memory=torch.cuda.is_available())
    return tokens, tokens.numpy()


def _fill(row: NDArray[np.uint8], store: TokenStore, file: TokenFile, start: int) -> int:
    """Write samples start - 1 on; before and after the clip is silence. Return the clip's share."""
    samples = min(len(row) - 1, file.samples - start)
    row[0] = row[1 + samples :] = store.tokenizer.silence
    row[int(start == 0) : 1 + samples] = store.clip(file)[max(0, start - 1) : start + samples]
    return samples
