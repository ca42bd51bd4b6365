"""The training objective as one function of tensors, so that a GPU can replay it as one graph."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiomamba.layers.block import Block
from audiomamba.models.waveform import WaveformModel
from audiomamba.state import leaves, map_state

UNKNOWN = -100  # a target that is not counted


class Objective(nn.Module):
    """Negative log-likelihood of a chunk, in nats per sample, and the state after it.

    Args:
        network: The model.
        autocast: Dtype of matrix products (bfloat16), or None for float32.
    """

    def __init__(self, network: WaveformModel, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network, self.autocast = network, autocast
        self.loss = nats_per_sample

    def forward(self, previous: Tensor, target: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Map int64 tokens (batch, time) and a state's leaves to (loss, next state's leaves).

        Targets that are `UNKNOWN` are left out of the mean.
        """
        batch = len(previous)
        fresh = self.network.initial_state(batch)
        given = iter(state)
        start = map_state(lambda _: next(given), fresh) if state else fresh
        # No cache of cast weights: a captured graph must cast them anew at each replay.
        with torch.autocast(
            previous.device.type,
            self.autocast,
            enabled=self.autocast is not None,
            cache_enabled=False,
        ):
            y, end = self.network.unet(self.network.embedding(previous), start)
            loss = self.loss(self.network.head, self.network.norm(y), target)
        return loss, *(leaf.detach() for leaf in leaves(end))


def nats_per_sample(head: nn.Module, y: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy, in float32, of head(y (batch, time, d_model))."""
    return F.cross_entropy(head(y).float().flatten(0, 1), target.flatten(), ignore_index=UNKNOWN)


def weight_of_rank(counted: Tensor) -> Tensor:
    """Return what to multiply a process's loss by, so that every sample weighs the same in all.

    Processes take the mean of their gradients, each of a mean over its own samples. Weighed by
    count / (mean of the counts), it is the gradient of the mean over all samples together. All
    processes must call this; on a GPU the host waits for nothing.

    Args:
        counted: How many samples the loss is a mean of, a scalar on the device.
    """
    everywhere = counted.clone()
    torch.distributed.all_reduce(everywhere)
    return counted * torch.distributed.get_world_size() / everywhere


def recompute_blocks(objective: Objective) -> None:
    """Keep each block's input only, and run it again in the backward pass; before compiling.

    The gradients and the carried state are those of the same operations on the same numbers.

    Source: Chen et al. 2016 (arXiv 1604.06174).
    """
    for module in objective.modules():
        if isinstance(module, Block):
            # Blocks draw no random numbers, whose state a graph could not record.
            again = partial(
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )
            module.forward = again  # type: ignore[method-assign]


def compile_blocks(objective: Objective) -> None:
    """Compile each block and the loss with torch.compile; blocks of one shape share their code."""
    for module in objective.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)
    objective.loss = torch.compile(nats_per_sample, dynamic=False)


def capture(objective: Objective, batch: int, length: int, carry_state: bool) -> Any:
    """Record forward and backward as CUDA graphs.

    A step launches thousands of small kernels; a replay costs the host one launch.

    The inputs must keep their shapes; the outputs are overwritten by the next call.
    """
    device = objective.network.head.weight.device
    tokens = torch.zeros(batch, length, dtype=torch.long, device=device)
    state = leaves(objective.network.initial_state(batch)) if carry_state else []
    inputs = (tokens, tokens.clone(), *(leaf.detach() for leaf in state))
    with warnings.catch_warnings():
        # Recording runs on a stream of its own, which autograd remarks and which is meant.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
        return torch.cuda.make_graphed_callables(objective, inputs, allow_unused_input=True)
