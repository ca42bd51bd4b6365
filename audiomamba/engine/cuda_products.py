"""Which thread of a CUDA program multiplies which weights of a matrix.

LANES neighbouring threads share the inputs of ROWS outputs, four inputs at a time, and add their
sums by shuffles: more lanes fill more threads where outputs are few, more rows make a shuffle serve
more outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiomamba.engine.layout import Floats

WARP = 32
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Product:
    """A matrix (inputs, outputs) dealt to threads.

    Attributes:
        inputs: Columns of W.
        outputs: Rows of W.
        lanes: Threads that share the inputs of an output; a power of two up to WARP.
        rows: Outputs of these lanes.
        threads: Of the program.
    """

    inputs: int
    outputs: int
    lanes: int
    rows: int
    threads: int

    @property
    def steps(self) -> int:
        """Groups of four inputs of a lane."""
        return -(-self.inputs // (4 * self.lanes))

    @property
    def source(self) -> str:
        """The type in the kernel."""
        return f"Matrix<{self.inputs}, {self.outputs}, {self.lanes}, {self.rows}>"

    def outputs_of(self) -> Indices:
        """Return which output each (row, thread) has; those from `outputs` on are none."""
        group = np.arange(self.threads) // self.lanes
        return group * self.rows + np.arange(self.rows)[:, None]

    def deal(self, matrix: Floats, outputs: Indices) -> Floats:
        """Return the weights of each thread, (items, threads, 4).

        Args:
            matrix: (inputs, columns).
            outputs: Column of each (row, thread), the same for threads that share it; others than
                columns are zeros.
        """
        inputs, columns = matrix.shape
        size = 4 * self.lanes  # inputs of a step
        padded = np.zeros((self.steps * size, columns + 1), np.float32)
        padded[:inputs, :-1] = matrix
        steps = np.ascontiguousarray(padded.reshape(self.steps, size, -1).transpose(0, 2, 1))
        own = outputs[:, :: self.lanes].reshape(-1)
        items = steps.take(np.where((own >= 0) & (own < columns), own, columns), axis=1)
        dealt: Floats = items.reshape(-1, self.threads, 4)
        return dealt


def choose_product(inputs: int, outputs: int, threads: int) -> Product:
    """Return the cheapest way to deal a matrix: few weights, then few inputs and shuffles."""

    def cost(product: Product) -> tuple[int, int]:
        rows, lanes = 1 << (product.rows - 1).bit_length(), product.lanes
        shuffles = 0 if lanes == 1 else rows - 1 + (lanes // rows).bit_length() - 1
        return 8 * product.steps * product.rows + 2 * product.steps + shuffles, lanes

    ways = []
    for lanes in (1, 2, 4, 8, 16, 32):
        rows = -(-outputs * lanes // threads)
        wide = 1 << (rows - 1).bit_length()
        if lanes == 1 or rows > 3:
            rows = wide
        if lanes == 1 or wide <= lanes:
            ways.append(Product(inputs, outputs, lanes, rows, threads))
    return min(ways, key=cost)


def lanes_of(channels: int, threads: int) -> int:
    """Return how many threads share a channel."""
    lanes = max(1, min(WARP, threads // channels))
    return 1 << (lanes.bit_length() - 1)


def chunks_of(count: int, size: int) -> int:
    """Return how many chunks of `size` numbers hold `count`."""
    return -(-count // size)


def fours(numbers: NDArray[Any]) -> NDArray[Any]:
    """(numbers, threads) -> (chunks of four, threads, 4), zeros or -1 at the end."""
    count, threads = numbers.shape
    fill = -1 if numbers.dtype.kind == "i" else 0
    out = np.full((chunks_of(count, 4) * 4, threads), fill, numbers.dtype)
    out[:count] = numbers
    dealt: NDArray[Any] = out.reshape(-1, 4, threads).transpose(0, 2, 1)
    return dealt
