"""A model laid out for the CUDA kernel: the stream of weights, vectors, the state, and constants.

Weights that a thread reads once a block are a stream, as `cuda/ring.cuh` says: (chunks, threads, 16
bytes). Vectors, which threads share, and states are float32, four at a time. The constants are a
header that the kernel includes; its code of a block is one for each tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.engine.cuda_products import (
    Indices,
    Product,
    choose_product,
    chunks_of,
    fours,
    lanes_of,
)
from audiomamba.engine.layout import LTI, S4_MLP, S6, Floats, Layout

UNDER_WAY = 1 << 16  # bytes asked for and not yet there, of a program
LOG2E = np.float32(1.4426950408889634)
Bytes = NDArray[np.uint8]
Constants = dict[str, int | str]


@dataclass(frozen=True)
class CudaPlan:
    """A model as the kernel reads it.

    Attributes:
        header: The source of plan.cuh.
        stream: Weights, uint8 (bytes,).
        vectors: Shared by threads, float32 (numbers,).
        order: Which number of a flat state of `Layout` each one of the kernel's is, int64
            (numbers,); -1 is none.
        shared_bytes: Of shared memory, of a program.
        threads: Of a program.
    """

    header: str
    stream: Tensor
    vectors: Tensor
    order: Tensor
    shared_bytes: int
    threads: int


class _Parts:
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


class _Planner:
    """What is collected while a model is walked through."""

    def __init__(self, layout: Layout, narrow: bool, threads: int) -> None:
        self.layout, self.narrow, self.threads = layout, narrow, threads
        self.weights = layout.plan.weights
        self.stream = _Parts()  # (chunks, threads, 16) bytes
        self.vectors = _Parts()  # (places, 4) float32
        self.state = _Parts()  # (places, 4) int64
        self.widths = dict.fromkeys(("X", "U", "Y", "SELECTED", "HIDDEN"), 0)

    def matrix(self, at: int, inputs: int, outputs: int) -> Floats:
        return self.weights[at : at + inputs * outputs].reshape(inputs, outputs)

    def vector(self, at: int, size: int) -> Floats:
        return self.weights[at : at + size]

    def chunks(self, items: Floats) -> Bytes:
        """Items (items, threads, 4) of a matrix as chunks (chunks, threads, 16 bytes)."""
        if not self.narrow:
            return _bytes(items)
        even = np.zeros((chunks_of(len(items), 2) * 2, *items.shape[1:]), np.float32)
        even[: len(items)] = items
        paired = even.reshape(-1, 2, self.threads, 4).transpose(0, 2, 1, 3)
        words = torch.from_numpy(np.ascontiguousarray(paired)).bfloat16().view(torch.int16)
        return _bytes(words.numpy().reshape(-1, self.threads, 8))

    def product(self, matrix: Floats) -> tuple[Product, Bytes]:
        """Choose how a matrix is dealt; return that and its chunks."""
        inputs, outputs = matrix.shape
        product = choose_product(inputs, outputs, self.threads)
        return product, self.chunks(product.deal(matrix, product.outputs_of()))

    def widen(self, **widths: int) -> None:
        for name, width in widths.items():
            self.widths[name] = max(self.widths[name], width)

    def put_vector(self, *parts: Floats) -> int:
        """Add numbers, and return their place in fours."""
        return self.vectors.put(_padded(np.concatenate(parts), 0.0))

    def put_state(self, at: int, size: int) -> int:
        return self.state.put(_padded(np.arange(at, at + size), -1))


def plan_cuda(layout: Layout, *, narrow: bool, threads: int) -> CudaPlan:
    """Lay out a model.

    Args:
        layout: Of the model.
        narrow: Whether matrices are bfloat16.
        threads: Of a program; a power of two from 64 to 1024.
    """
    planner = _Planner(layout, narrow, threads)
    plan = layout.plan
    levels = len(plan.embedding)
    blocks = [_put_tier(planner, depth) for depth in range(len(plan.tiers))]
    tiers = [_put_joint(planner, depth, block) for depth, block in enumerate(blocks)]
    head, chunks = planner.product(plan.head.reshape(-1, levels))
    period = prod(int(tier["pool"]) for tier in plan.tiers if tier["pool"])
    constants: Constants = {
        "LTI": LTI,
        "S6": S6,
        "S4": S4_MLP,
        "THREADS": threads,
        "DEPTH": _choose_depth(tiers, threads),
        "NARROW": int(narrow),
        "LEVELS": levels,
        "PERIOD": period,
        "HEAD": planner.stream.put(chunks),
        "EMBEDDING": planner.put_vector(plan.embedding.reshape(-1)),
        "HEAD_BIAS": planner.put_vector(plan.head_bias),
        "STATE": planner.state.size,
    }
    planner.stream.put(
        np.zeros((int(constants["DEPTH"]), threads, 16), np.uint8)
    )  # looked ahead at
    shared = 0
    for name, width in (
        *planner.widths.items(),
        *dict.fromkeys(("LOGITS", "GAP", "WEIGHT"), levels).items(),
        ("TOKEN", 1),
    ):
        constants[name] = shared
        shared += chunks_of(width, 4) * 4
    return CudaPlan(
        _header(constants, tiers, head),
        torch.from_numpy(np.concatenate(planner.stream.arrays).reshape(-1)),
        torch.from_numpy(np.concatenate(planner.vectors.arrays).reshape(-1)),
        torch.from_numpy(np.concatenate(planner.state.arrays).reshape(-1)),
        4 * shared,
        threads,
    )


def _put_tier(planner: _Planner, depth: int) -> Constants:
    """Add the blocks of a tier, in the order in which they run."""
    tier, records = planner.layout.plan.tiers[depth], planner.layout.plan.blocks
    indices = list(range(tier["down_first"], tier["down_end"]))
    if tier["pool"]:
        indices += range(tier["up_first"], tier["up_end"])
    first = {"CHUNK_AT": planner.stream.size, "VECTORS_AT": planner.vectors.size}
    first["STATE_AT"] = planner.state.size
    block: Constants = {}
    for index in indices:
        sizes = [part.size for part in (planner.stream, planner.vectors, planner.state)]
        put = _put_s4 if records[index]["kind"] == S4_MLP else _put_mamba
        block = put(planner, records[index])
        for name, part, before in zip(
            ("CHUNKS", "VECTORS_SIZE", "STATE_SIZE"),
            (planner.stream, planner.vectors, planner.state),
            sizes,
            strict=True,
        ):
            block[name] = part.size - before
    return block | first


def _put_joint(planner: _Planner, depth: int, block: Constants) -> Constants:
    """Add what joins a tier with the one inside it."""
    plan, tier = planner.layout.plan, planner.layout.plan.tiers[depth]
    tier_constants = block | {"POOL": int(tier["pool"])}
    tier_constants["BLOCKS"] = int(tier["down_end"] - tier["down_first"])
    tier_constants |= dict.fromkeys(("FRAME", "LATE", "POOLING"), 0)
    if tier["pool"]:
        wide, size = int(plan.tiers[depth + 1]["d_model"]), int(tier["pool"] * tier["d_model"])
        pooling, down = planner.product(planner.matrix(tier["w_pooling"], size, wide))
        unpooling, up = planner.product(planner.matrix(tier["w_unpooling"], wide, size))
        tier_constants |= {
            "FRAME": planner.put_state(tier["s_frame"], size),
            "LATE": planner.put_state(tier["s_late"], size),
            "POOLING": planner.stream.put(down),
            "UNPOOLING": planner.stream.put(up),
            "BIASES_AT": planner.put_vector(
                planner.vector(tier["w_pooling_bias"], wide),
                planner.vector(tier["w_unpooling_bias"], size),
            ),
            "Pooling": pooling.source,
            "Unpooling": unpooling.source,
        }
    return tier_constants


def _put_mamba(planner: _Planner, block: Any) -> Constants:
    d_model, channels, conv = (int(block[name]) for name in ("d_model", "d_inner", "d_conv"))
    n, parts, rank = int(block["d_state"]), 1 + int(block["is_complex"]), int(block["dt_rank"])
    selective = block["kind"] == S6
    deal = _Channels(channels, planner.threads)
    w_in = planner.matrix(block["w_in"], d_model, 2 * channels)
    product, pairs = deal.pairs(planner, w_in)
    each, scans = deal.scans(planner, block, 1 if selective else 3)
    conv_weights = planner.matrix(block["w_conv"], conv, channels)
    rows = [*conv_weights, *(planner.vector(block[w], channels) for w in ("w_conv_bias", "w_skip"))]
    constants: Constants = {"RANK": rank}
    width = rank + 2 * parts * n
    if selective:
        rows.append(planner.vector(block["w_dt_bias"], channels))
        rows += list(planner.matrix(block["w_dt"], rank, channels))
        select, chosen = planner.product(planner.matrix(block["w_x"], channels, width))
        constants["Select"] = select.source
        planner.widen(SELECTED=width)
        for chunks in (*pairs, chosen, *scans):
            planner.stream.put(chunks)
    else:
        for both in zip(pairs, scans, strict=True):
            for chunks in both:
                planner.stream.put(chunks)
    out, chunks = planner.product(planner.matrix(block["w_out"], channels, d_model))
    planner.stream.put(chunks)
    planner.vectors.put(deal.vectors(np.stack(rows)))
    planner.state.put(deal.past(block["s_conv"], conv - 1))
    planner.state.put(deal.states(block["s_scan"], n, parts))
    planner.widen(X=d_model, U=channels, Y=channels)
    return constants | {
        **deal.constants(block, each, parts),
        "CONV": conv,
        "PAST": chunks_of(conv - 1, 4),
        "VECTORS": chunks_of(len(rows), 4),
        "SCAN_CHUNKS": len(scans[0]),
        "In": product.source,
        "Out": out.source,
    }


def _put_s4(planner: _Planner, block: Any) -> Constants:
    d_model, d_mlp, n = (int(block[name]) for name in ("d_model", "d_mlp", "d_state"))
    deal = _Channels(d_model, planner.threads)
    each, scans = deal.scans(planner, block, 3)
    product, pairs = deal.pairs(planner, planner.matrix(block["w_out"], d_model, 2 * d_model))
    up, rising = planner.product(planner.matrix(block["w_up"], d_model, d_mlp))
    down, falling = planner.product(planner.matrix(block["w_down"], d_mlp, d_model))
    for chunks in (*scans, *pairs, rising, falling):
        planner.stream.put(chunks)
    rows = [planner.vector(block["w_skip"], d_model)]
    rows += list(planner.matrix(block["w_out_bias"], 2, d_model))
    biases = 4 * planner.vectors.put(deal.vectors(np.stack(rows)))
    biases = (
        4
        * planner.put_vector(
            planner.vector(block["w_up_bias"], d_mlp), planner.vector(block["w_down_bias"], d_model)
        )
        - biases
    )
    planner.state.put(deal.states(block["s_scan"], n, 2))
    planner.widen(X=d_model, Y=d_model, HIDDEN=d_mlp)
    return {
        **deal.constants(block, each, 2),
        "PAST": 0,
        "VECTORS": chunks_of(len(rows), 4),
        "SCAN_CHUNKS": len(scans[0]),
        "BIASES": biases,
        "In": product.source,
        "Up": up.source,
        "Out": down.source,
    }


class _Channels:
    """Channels dealt to threads: `lanes` neighbouring ones have one, in each of some passes."""

    def __init__(self, channels: int, threads: int) -> None:
        self.channels, self.threads = channels, threads
        self.lanes = lanes_of(channels, threads)
        self.slots = threads // self.lanes
        self.passes = chunks_of(channels, self.slots)

    def constants(self, block: Any, each: int, parts: int) -> Constants:
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

    def pairs(self, planner: _Planner, matrix: Floats) -> tuple[Product, list[Bytes]]:
        """Deal columns c and channels + c of a matrix to channel c; return chunks of each pass."""
        product = Product(len(matrix), 2 * self.channels, self.lanes, 2, self.threads)
        passes = []
        for channel in self._channel_of():
            outputs = np.stack([channel, np.where(channel < 0, -1, channel + self.channels)])
            passes.append(planner.chunks(product.deal(matrix, outputs)))
        return product, passes

    def scans(self, planner: _Planner, block: Any, count: int) -> tuple[int, list[Bytes]]:
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
            passes.append(_bytes(fours(dealt.reshape(-1, self.threads))))
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


def _choose_depth(tiers: list[Constants], threads: int) -> int:
    """Return how many chunks are under way: near UNDER_WAY, and a fit for the blocks' counts."""
    usual = min(16, UNDER_WAY // (16 * threads))

    def waste(depth: int) -> tuple[float, int]:
        total, rate = 0.0, 1.0
        for tier in tiers:
            total += rate * (-int(tier["CHUNKS"]) % depth)
            rate /= max(1, int(tier["POOL"]))
        return total, -depth

    return min(range(max(2, usual - 2), usual + 3), key=waste)


def _header(constants: Constants, tiers: list[Constants], head: Product) -> str:
    """Return plan.cuh."""
    lines = ["#pragma once", "template <int, int, int, int> struct Matrix;"]
    lines += [f"constexpr int {name} = {value};" for name, value in constants.items()]
    lines.append(f"using Head = {head.source};")
    for depth in reversed(range(len(tiers))):
        lines.append(f"struct Tier{depth} {{")
        if tiers[depth]["POOL"]:
            lines.append(f"  using Inner = Tier{depth + 1};")
        for name, value in tiers[depth].items():
            kind = "using {} = {};" if isinstance(value, str) else "static constexpr int {} = {};"
            lines.append("  " + kind.format(name, value))
        lines.append("};")
    return "\n".join(lines) + "\n"


def _padded(numbers: NDArray[Any], fill: float) -> NDArray[Any]:
    """(numbers,) -> (fours, 4)."""
    out = np.full(chunks_of(len(numbers), 4) * 4, fill, numbers.dtype)
    out[: len(numbers)] = numbers
    return out.reshape(-1, 4)


def _bytes(array: NDArray[Any]) -> Bytes:
    """(chunks, threads, 16 bytes of numbers) -> uint8 (chunks, threads, 16)."""
    bytes_: Bytes = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape[:2], 16)
    return bytes_
