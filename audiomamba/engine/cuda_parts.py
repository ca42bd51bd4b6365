"""What is collected while a model is laid out for the CUDA kernel: chunks, vectors and states."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from audiomamba.engine.cuda_products import Product, choose_product, chunks_of
from audiomamba.engine.layout import Floats, Layout

Bytes = NDArray[np.uint8]
Constants = dict[str, int | str]


class Parts:
    """Arrays one after another, counted in rows of 16 bytes a thread or of four numbers."""

    def __init__(self) -> None:
        self.size = 0
        self.arrays: list[NDArray[Any]] = []

    def put(self, array: NDArray[Any]) -> int:
        """Add an array whose first axis is counted; return its place."""
        at = self.size
        self.arrays.append(array)
        self.size += len(array)
        return at


class Planner:
    """What is collected while a model is walked through.

    Attributes:
        layout: Of the model.
        narrow: Whether matrices are bfloat16.
        threads: Of a program.
        stream: Chunks, uint8 (chunks, threads, 16).
        vectors: float32 (places, 4).
        state: Numbers of a flat state, int64 (places, 4).
        widths: Of the vectors in shared memory, by their names in the kernel.
    """

    def __init__(self, layout: Layout, narrow: bool, threads: int) -> None:
        self.layout, self.narrow, self.threads = layout, narrow, threads
        self.weights = layout.plan.weights
        self.stream, self.vectors, self.state = Parts(), Parts(), Parts()
        self.widths = dict.fromkeys(("X", "U", "Y", "SELECTED", "HIDDEN"), 0)

    def matrix(self, at: int, inputs: int, outputs: int) -> Floats:
        """Return a matrix (inputs, outputs) of the layout."""
        return self.weights[at : at + inputs * outputs].reshape(inputs, outputs)

    def vector(self, at: int, size: int) -> Floats:
        """Return a vector (size,) of the layout."""
        return self.weights[at : at + size]

    def chunks(self, items: Floats) -> Bytes:
        """Items (items, threads, 4) of a matrix as chunks (chunks, threads, 16 bytes)."""
        if not self.narrow:
            return bytes_of(items)
        even = np.zeros((chunks_of(len(items), 2) * 2, *items.shape[1:]), np.int16)
        even[: len(items)] = torch.from_numpy(items).bfloat16().view(torch.int16).numpy()
        paired = even.reshape(-1, 2, self.threads, 4).transpose(0, 2, 1, 3)
        return bytes_of(paired.reshape(-1, self.threads, 8))

    def product(self, matrix: Floats) -> tuple[Product, Bytes]:
        """Choose how a matrix is dealt; return that and its chunks."""
        inputs, outputs = matrix.shape
        product = choose_product(inputs, outputs, self.threads)
        return product, self.chunks(product.deal(matrix, product.outputs_of()))

    def widen(self, **widths: int) -> None:
        """Make room in shared memory for vectors of these widths."""
        for name, width in widths.items():
            self.widths[name] = max(self.widths[name], width)

    def put_vector(self, *parts: Floats) -> int:
        """Add numbers, and return their place in fours."""
        return self.vectors.put(padded(np.concatenate(parts), 0.0))

    def put_state(self, at: int, size: int) -> int:
        """Add numbers of a flat state, and return their place in fours."""
        return self.state.put(padded(np.arange(at, at + size), -1))


def padded(numbers: NDArray[Any], fill: float) -> NDArray[Any]:
    """(numbers,) -> (fours, 4)."""
    out = np.full(chunks_of(len(numbers), 4) * 4, fill, numbers.dtype)
    out[: len(numbers)] = numbers
    return out.reshape(-1, 4)


def bytes_of(array: NDArray[Any]) -> Bytes:
    """(chunks, threads, 16 bytes of numbers) -> uint8 (chunks, threads, 16)."""
    bytes_: Bytes = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape[:2], 16)
    return bytes_
