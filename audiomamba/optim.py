"""What the optimiser is told: which weights decay, and the learning rate; and the average."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

NO_DECAY = ("A_log", "A_imag", "log_dt", "B", "C", "D")


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's two groups, decayed and not.

    No decay on what shapes the recurrence (A, the step size, B, C, D), biases and norms; weights of
    linear maps, convolutions and the embedding decay.

    Args:
        network: Whose parameters.
        weight_decay: Of the first group.

    Source: `_no_weight_decay` in mamba_ssm; Gu & Dao 2023 (arXiv 2312.00752), appendix E.2.1.
    """
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        keep = name.rsplit(".", 1)[-1] in NO_DECAY or parameter.ndim < 2
        (rest if keep else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, steps: int, warmup: float, floor: float) -> float:
    """Return a step's learning rate over the largest: a linear rise, then half a cosine.

    Args:
        step: From 0.
        steps: Of the whole run.
        warmup: Fraction of the steps that rise.
        floor: What the cosine ends at.
    """
    rise = max(1, round(warmup * steps)) if warmup else 0
    if step < rise:
        return (step + 1) / rise
    along = min(1.0, (step - rise) / max(1, steps - rise))
    return floor + (1 - floor) * (1 + math.cos(math.pi * along)) / 2


@torch.no_grad()
def average_weights(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an exponential moving average, in place, towards the weights after a step (from 1).

    average += (1 - d) (weights - average),  d = min(decay, (1 + step) / (10 + step)),

    so that the initial weights are soon forgotten.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
