"""A model's layout as constants that a Triton kernel is compiled for.

The arrays are those of `layout.py`. Blocks of a path have equal shapes and lie at equal distances,
so a tier is described by its first block, and a kernel holds the code of one block for each tier.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiomamba.engine.layout import BLOCK, Layout


@dataclass(frozen=True)
class BlockPlan:
    """Sizes and places of a tier's first block, by the names of `layout.BLOCK`."""

    kind: int
    is_complex: int
    d_model: int
    d_inner: int
    d_conv: int
    dt_rank: int
    d_mlp: int
    d_state: int
    w_in: int
    w_conv: int
    w_conv_bias: int
    w_x: int
    w_dt: int
    w_dt_bias: int
    w_scan: int
    w_skip: int
    w_out: int
    w_out_bias: int
    w_up: int
    w_up_bias: int
    w_down: int
    w_down_bias: int
    s_conv: int
    s_scan: int


@dataclass(frozen=True)
class TierPlan:
    """A tier and those inside it.

    Attributes:
        block: The first block of the path inwards.
        blocks: Blocks of a path.
        w_step: From a block's weights to the next one's; s_step in the state.
        s_step: See w_step.
        w_back: From the first block of the path inwards to that of the path outwards.
        s_back: See w_back.
        pool: Samples of a frame; 0 in the centre, and so are what follows.
        w_pooling: Places of the joint with the inner tier, by the names of `layout.TIER`.
        w_pooling_bias: See w_pooling.
        w_unpooling: See w_pooling.
        w_unpooling_bias: See w_pooling.
        s_frame: See w_pooling.
        s_late: See w_pooling.
        inner: The next tier, or None.
    """

    block: BlockPlan
    blocks: int
    w_step: int
    s_step: int
    w_back: int
    s_back: int
    pool: int
    w_pooling: int
    w_pooling_bias: int
    w_unpooling: int
    w_unpooling_bias: int
    s_frame: int
    s_late: int
    inner: TierPlan | None


@dataclass(frozen=True)
class NetPlan:
    """All that is constant in a kernel.

    Attributes:
        outer: The outermost tier.
        levels: Of the tokenizer.
        w_embedding: Place of the embedding, (levels, d_model); w_head is (d_model, levels).
        w_head: See w_embedding.
        w_head_bias: See w_embedding.
        state_size: Count of float32 numbers in a stream's state.
    """

    outer: TierPlan
    levels: int
    w_embedding: int
    w_head: int
    w_head_bias: int
    state_size: int


def plan_net(layout: Layout) -> tuple[NetPlan, Tensor]:
    """Return the constants, and all weights as one array, float32 on the CPU."""
    plan = layout.plan
    parts = [plan.weights, plan.embedding.reshape(-1), plan.head, plan.head_bias]
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    levels = len(plan.embedding)
    net = NetPlan(_plan_tier(layout, 0), levels, *starts[1:4], layout.state_size)
    return net, torch.from_numpy(np.concatenate(parts))


def _plan_tier(layout: Layout, depth: int) -> TierPlan:
    """Return the tier at a depth and those inside it."""
    tier, blocks = layout.plan.tiers[depth], layout.plan.blocks
    inwards = blocks[tier["down_first"] : tier["down_end"]]
    outwards = blocks[tier["up_first"] : tier["up_end"]]
    first = inwards[0]
    last = outwards[0] if len(outwards) else first
    joint = {f.name: int(tier[f.name]) for f in fields(TierPlan) if f.name in (tier.dtype.names)}
    return TierPlan(
        block=BlockPlan(**{name: int(first[name]) for name in BLOCK.names or ()}),
        blocks=len(inwards),
        w_step=_distance(first, inwards[1], "w_") if len(inwards) > 1 else 0,
        s_step=_distance(first, inwards[1], "s_") if len(inwards) > 1 else 0,
        w_back=_distance(first, last, "w_"),
        s_back=_distance(first, last, "s_"),
        inner=_plan_tier(layout, depth + 1) if tier["pool"] else None,
        **joint,
    )


def _distance(a: Any, b: Any, prefix: str) -> int:
    """Return how far the places of block b lie behind those of a; absent parts are at 0 in both."""
    names = [name for name in BLOCK.names or () if name.startswith(prefix)]
    return int(max((b[name] - a[name] for name in names), key=abs))
