"""A model laid out for Triton: matrices in the order in which threads read them, and constants.

Vectors, scans and states are those of `layout.py`. A matrix (inputs, outputs) is stored as (inputs
/ VECTOR, outputs, VECTOR), padded with zeros to powers of two: a thread loads 16 bytes, the weights
of neighbouring inputs for one output, and neighbouring threads have neighbouring outputs. So a
product needs no sum across the threads of a warp.

Blocks of a path have equal shapes and lie at equal distances. A tier is described by its first
block, and a kernel holds the code of one block for each tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiomamba.engine.layout import S4_MLP, S6, Floats, Layout

LEAST = 8  # numbers in a padded vector
LOAD = 16  # bytes that a thread loads at once


@dataclass(frozen=True)
class Record:
    """Whole numbers by name, fit to be a constant of a kernel."""

    names: tuple[str, ...]
    values: tuple[int, ...]

    def __getattr__(self, name: str) -> int:
        if name.startswith("__") or name not in self.names:
            raise AttributeError(name)
        return self.values[self.names.index(name)]


@dataclass(frozen=True)
class TierPlan:
    """A tier and those inside it.

    Attributes:
        block: The first block of the path inwards: `layout.BLOCK`, and m_ places in the matrices.
        blocks: Blocks of a path.
        w_step: From a block's weights to the next one's; m_step in the matrices, s_step in states.
        m_step: See w_step.
        s_step: See w_step.
        w_back: From the first block of the path inwards to that of the path outwards; m_back,
            s_back.
        m_back: See w_back.
        s_back: See w_back.
        joint: The joint with the inner tier: `layout.TIER`, and m_ places in the matrices.
        inner: The next tier, or None.
    """

    block: Record
    blocks: int
    w_step: int
    m_step: int
    s_step: int
    w_back: int
    m_back: int
    s_back: int
    joint: Record
    inner: TierPlan | None


@dataclass(frozen=True)
class NetPlan:
    """All that is constant in a kernel.

    Attributes:
        outer: The outermost tier.
        levels: Of the tokenizer.
        w_embedding: Place of the embedding in the weights, (levels, d_model).
        w_head_bias: Place of (levels,) in the weights.
        m_head: Place in the matrices.
        state_size: Count of float32 numbers in a stream's state.
        vector: Neighbouring inputs of a matrix that a thread loads at once.
    """

    outer: TierPlan
    levels: int
    w_embedding: int
    w_head_bias: int
    m_head: int
    state_size: int
    vector: int


def padded(size: int) -> int:
    """Return the length of a vector in registers."""
    return max(LEAST, 1 << (size - 1).bit_length())


class Packer:
    """Matrices one after another.

    Attributes:
        vector: Neighbouring inputs that a thread loads at once.
        size: Count of numbers so far.
    """

    def __init__(self, vector: int) -> None:
        self.size = 0
        self.vector = vector
        self._parts: list[Floats] = []

    def put(self, matrix: Floats, segments: int = 1) -> int:
        """Add a matrix (inputs, outputs) and return its place.

        Args:
            matrix: Its columns may be `segments` matrices side by side, which then alternate
                column by column.
            segments: See matrix.
        """
        rows, columns = matrix.shape
        width = columns // segments
        out = np.zeros((padded(rows), padded(width), segments), np.float32)
        out[:rows, :width] = matrix.reshape(rows, segments, width).transpose(0, 2, 1)
        out = out.reshape(-1, self.vector, out.shape[1] * segments).transpose(0, 2, 1)
        at = self.size
        self._parts.append(out.reshape(-1))
        self.size += out.size
        return at

    def joined(self) -> Tensor:
        """Return all as one tensor, float32 on the CPU."""
        return torch.from_numpy(np.concatenate(self._parts))


def plan_net(layout: Layout, itemsize: int) -> tuple[NetPlan, Tensor, Tensor]:
    """Return constants, weights and matrices, float32 on the CPU.

    Args:
        layout: Of the model.
        itemsize: Bytes of a number of the matrices that will be used.
    """
    plan, packer = layout.plan, Packer(LOAD // itemsize)
    blocks = [_pack_block(plan.weights, block, packer) for block in plan.blocks]
    outer = _plan_tier(layout, 0, packer, blocks)
    levels = len(plan.embedding)
    m_head = packer.put(plan.head.reshape(-1, levels))
    parts = [plan.weights, plan.embedding.reshape(-1), plan.head_bias]
    w_embedding, w_head_bias = np.cumsum([len(part) for part in parts[:2]]).tolist()
    net = NetPlan(
        outer, levels, w_embedding, w_head_bias, m_head, layout.state_size, LOAD // itemsize
    )
    return net, torch.from_numpy(np.concatenate(parts)), packer.joined()


def _pack_block(weights: Floats, block: Any, packer: Packer) -> dict[str, int]:
    """Add a block's matrices and return their places."""

    def matrix(name: str, rows: str, columns: int) -> Floats:
        at, n = block[name], block[rows]
        return weights[at : at + n * columns].reshape(n, columns)

    d_model, d_inner, d_mlp = (int(block[name]) for name in ("d_model", "d_inner", "d_mlp"))
    if block["kind"] == S4_MLP:
        return {
            "m_out": packer.put(matrix("w_out", "d_model", 2 * d_model), segments=2),
            "m_up": packer.put(matrix("w_up", "d_model", d_mlp)),
            "m_down": packer.put(matrix("w_down", "d_mlp", d_model)),
        }
    places = {
        "m_in": packer.put(matrix("w_in", "d_model", 2 * d_inner), segments=2),
        "m_out": packer.put(matrix("w_out", "d_inner", d_model)),
    }
    if block["kind"] == S6:
        rank, n, rows = int(block["dt_rank"]), int(block["d_state"]), 1 + int(block["is_complex"])
        selected = matrix("w_x", "d_inner", rank + 2 * rows * n)
        dt, maps = selected[:, :rank], selected[:, rank:].reshape(d_inner, 2, rows, n)
        places["m_x"] = packer.put(dt)
        for row, name in enumerate(("m_maps", "m_maps_im")[:rows]):  # of B and C
            places[name] = packer.put(maps[:, :, row].reshape(d_inner, 2 * n), segments=2)
        places["m_dt"] = packer.put(matrix("w_dt", "dt_rank", d_inner))
    return places


def _plan_tier(
    layout: Layout, depth: int, packer: Packer, places: list[dict[str, int]]
) -> TierPlan:
    """Return the tier at a depth and those inside it; add their joints' matrices."""
    plan, tier = layout.plan, layout.plan.tiers[depth]
    down, up = int(tier["down_first"]), int(tier["up_first"])
    blocks = int(tier["down_end"]) - down
    m = {}
    inner = None
    if tier["pool"]:
        wide, size = plan.tiers[depth + 1]["d_model"], tier["pool"] * tier["d_model"]
        for name, rows, columns in (("pooling", size, wide), ("unpooling", wide, size)):
            at = tier[f"w_{name}"]
            matrix = plan.weights[at : at + rows * columns].reshape(rows, columns)
            m[f"m_{name}"] = packer.put(matrix)
        inner = _plan_tier(layout, depth + 1, packer, places)

    def distance(prefix: str, other: int) -> int:
        a, b = _numbers(plan.blocks[down]) | places[down], _numbers(plan.blocks[other])
        b |= places[other]
        # absent parts are at 0 in both
        return max((b[name] - a[name] for name in a if name.startswith(prefix)), key=abs)

    after = down + 1 if blocks > 1 else down
    back = up if tier["pool"] else down
    return TierPlan(
        _record(_numbers(plan.blocks[down]) | places[down]),
        blocks,
        distance("w_", after),
        distance("m_", after),
        distance("s_", after),
        distance("w_", back),
        distance("m_", back),
        distance("s_", back),
        _record(_numbers(tier) | m),
        inner,
    )


def _numbers(record: Any) -> dict[str, int]:
    return {name: int(record[name]) for name in record.dtype.names}


def _record(values: dict[str, int]) -> Record:
    return Record(tuple(values), tuple(values.values()))
