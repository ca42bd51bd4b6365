"""A model made ready for the Triton kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba.engine.streams import StreamEngine
from audiomamba.engine.triton_loop import run_kernel
from audiomamba.engine.triton_plan import plan_net
from audiomamba.models.waveform import WaveformModel

NUMBERS_A_THREAD = 64  # of a matrix, in registers at once


class TritonEngine(StreamEngine):
    """A copy of a model's weights as the kernel wants them, for any number of streams.

    Args:
        network: Its device is where streams run.
        dtype: Of the matrices, torch.float32 or torch.bfloat16. Everything else is float32.
        num_warps: Of a stream, 1 to 16. Fewer let more streams share a multiprocessor; more share
            the work of a product, and wait longer for each other.

    Raises:
        ValueError: If the model has an attention mixer or more than LEVELS levels, or dtype is
            another.
    """

    def __init__(
        self, network: WaveformModel, *, dtype: torch.dtype = torch.float32, num_warps: int = 4
    ) -> None:
        super().__init__(network, dtype)
        self.num_warps = num_warps
        self.tile = NUMBERS_A_THREAD * 32 * num_warps
        self.net, weights, matrices = plan_net(self.layout, dtype.itemsize)
        self.weights = weights.to(self.device)
        self.matrices = matrices.to(self.device, dtype)

    def launch(
        self,
        tokens: Tensor,
        rows: Tensor,
        nats: Tensor,
        logits: Tensor,
        state: Tensor,
        options: Tensor,
    ) -> None:
        """See `StreamEngine.launch`."""
        run_kernel[(len(tokens),)](
            tokens,
            rows,
            nats,
            logits,
            state,
            self.weights,
            self.matrices,
            options,
            tokens.shape[1],
            NET=self.net,
            TILE=self.tile,
            num_warps=self.num_warps,
        )
