"""Which thread of a CUDA program has which channels: their weights, vectors and states."""

from __future__ import annotations

from typing import Any

import numpy as np

from audiomamba.engine.cuda_parts import Bytes, Constants, Planner, bytes_of
from audiomamba.engine.cuda_products import Indices, Product, chunks_of, fours, lanes_of
from audiomamba.engine.layout import Floats

LOG2E = np.float32(1.4426950408889634)


class Channels:
    """Channels dealt to threads: `lanes` neighbouring ones have one, in each of some passes."""

    def __init__(self, channels: int, threads: int) -> None:
        self.channels, self.threads = channels, threads
        self.lanes = lanes_of(channels, threads)
        self.slots = threads // self.lanes
        self.passes = chunks_of(channels, self.slots)

    def constants(self, block: Any, each: int, parts: int) -> Constants:
        """Return what the kernel knows of a block's channels.

        Args:
            block: `layout.BLOCK`.
            each: States of a lane.
            parts: 2 if they are complex, else 1.
        """
        return {
            "KIND": int(block["kind"]),
            "COMPLEX": parts - 1,
            "MODEL": int(block["d_model"]),
            "CHANNELS": self.channels,
            "LANES": self.lanes,
            "PASSES": self.passes,
            "D_STATE": int(block["d_state"]),
            "STATES_A_LANE": each,
            "STATES": chunks_of(each * parts, 4),
        }

    def pairs(self, planner: Planner, matrix: Floats) -> tuple[Product, list[Bytes]]:
        """Deal columns c and channels + c of a matrix to channel c; return chunks of each pass."""
        product = Product(len(matrix), 2 * self.channels, self.lanes, 2, self.threads)
        passes = []
        for channel in self._channel_of():
            outputs = np.stack([channel, np.where(channel < 0, -1, channel + self.channels)])
            passes.append(planner.chunks(product.deal(matrix, outputs)))
        return product, passes

    def scans(self, planner: Planner, block: Any, count: int) -> tuple[int, list[Bytes]]:
        """Deal what a scan reads; return states of a lane, and chunks of each pass.

        Args:
            planner: Has the weights.
            block: `layout.BLOCK`.
            count: 3 for decay, gain, C; 1 for A, whose real part is then times log2(e).
        """
        n, parts = int(block["d_state"]), 1 + int(block["is_complex"])
        size = n * count * parts * self.channels
        scan = planner.vector(block["w_scan"], size).reshape(n, count * parts, self.channels)
        if count == 1:
            scan = scan.copy()
            scan[:, 0] *= LOG2E
        each = chunks_of(n, self.lanes)
        whole = np.zeros((each * self.lanes + 1, count * parts, self.channels + 1), np.float32)
        whole[:n, :, :-1] = scan
        passes = []
        for channel in self._channel_of():
            dealt = whole[
                self._states_of(each)[:, None], np.arange(count * parts)[:, None], channel
            ]
            passes.append(bytes_of(fours(dealt.reshape(-1, self.threads))))
        return each, passes

    def vectors(self, rows: Floats) -> Floats:
        """(rows, channels) -> (passes, fours of rows, slots) fours, as one axis and four."""
        whole = np.zeros((len(rows), self.passes * self.slots), np.float32)
        whole[:, : self.channels] = rows
        dealt = [fours(part) for part in np.split(whole, self.passes, axis=1)]
        return np.concatenate(dealt).reshape(-1, 4)

    def past(self, at: int, count: int) -> Indices:
        """Places of the convolution's inputs (count, channels), as `vectors`."""
        whole = np.full((count, self.passes * self.slots), -1, np.int64)
        whole[:, : self.channels] = at + np.arange(count * self.channels).reshape(-1, self.channels)
        dealt = [fours(part) for part in np.split(whole, self.passes, axis=1)]
        return np.concatenate(dealt).reshape(-1, 4)

    def states(self, at: int, n: int, parts: int) -> Indices:
        """Places of states (n, parts, channels), as fours of (passes, fours, threads)."""
        each = chunks_of(n, self.lanes)
        whole = np.full((each * self.lanes, parts, self.channels + 1), -1, np.int64)
        whole[:n, :, :-1] = at + np.arange(n * parts * self.channels).reshape(n, parts, -1)
        dealt = [
            fours(
                whole[self._states_of(each)[:, None], np.arange(parts)[:, None], channel].reshape(
                    -1, self.threads
                )
            )
            for channel in self._channel_of()
        ]
        return np.concatenate(dealt).reshape(-1, 4)

    def _channel_of(self) -> Indices:
        """Channel of each (pass, thread), -1 for none."""
        slot = np.arange(self.threads) // self.lanes
        channel = np.arange(self.passes)[:, None] * self.slots + slot
        return np.where(channel < self.channels, channel, -1)

    def _states_of(self, each: int) -> Indices:
        """State of each (number of a lane, thread)."""
        lane = np.arange(self.threads) % self.lanes
        return lane * each + np.arange(each)[:, None]
