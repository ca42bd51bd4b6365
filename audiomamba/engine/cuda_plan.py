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
from torch import Tensor

from audiomamba.engine.cuda_channels import Channels
from audiomamba.engine.cuda_parts import Constants, Planner
from audiomamba.engine.cuda_products import Product, chunks_of
from audiomamba.engine.layout import LTI, S4_MLP, S6, Layout

UNDER_WAY = 1 << 16  # bytes asked for and not yet there, of a program


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


def plan_cuda(layout: Layout, *, narrow: bool, threads: int) -> CudaPlan:
    """Lay out a model.

    Args:
        layout: Of the model.
        narrow: Whether matrices are bfloat16.
        threads: Of a program; a power of two from 64 to 1024.
    """
    planner = Planner(layout, narrow, threads)
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


def _put_tier(planner: Planner, depth: int) -> Constants:
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


def _put_joint(planner: Planner, depth: int, block: Constants) -> Constants:
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


def _put_mamba(planner: Planner, block: Any) -> Constants:
    d_model, channels, conv = (int(block[name]) for name in ("d_model", "d_inner", "d_conv"))
    n, parts, rank = int(block["d_state"]), 1 + int(block["is_complex"]), int(block["dt_rank"])
    selective = block["kind"] == S6
    deal = Channels(channels, planner.threads)
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


def _put_s4(planner: Planner, block: Any) -> Constants:
    d_model, d_mlp, n = (int(block[name]) for name in ("d_model", "d_mlp", "d_state"))
    deal = Channels(d_model, planner.threads)
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
