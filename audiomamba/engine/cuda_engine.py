"""A model made ready for the CUDA kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audiomamba.engine import cuda_limits
from audiomamba.engine.cuda_compile import architecture_of, compile_kernel
from audiomamba.engine.cuda_driver import load_kernel
from audiomamba.engine.cuda_plan import plan_cuda
from audiomamba.engine.streams import StreamEngine
from audiomamba.models.waveform import WaveformModel

THREADS = (64, 128, 256, 512, 1024)


class CudaEngine(StreamEngine):
    """A copy of a model's weights as the kernel wants them, for any number of streams.

    Args:
        network: Its device, an NVIDIA GPU, is where streams run.
        dtype: Of the matrices, torch.float32 or torch.bfloat16. Everything else is float32.
        threads: Of a stream, one of THREADS. Fewer let more streams share a multiprocessor.
        notify: Called before the kernel is compiled, if it is not on disk.

    Raises:
        ValueError: As `StreamEngine`, or if threads is another.
        OSError: If NVRTC or the driver cannot be loaded.
        RuntimeError: If the kernel cannot be compiled or loaded.
        torch.OutOfMemoryError: If the device has no memory left for it.
    """

    def __init__(
        self,
        network: WaveformModel,
        *,
        dtype: torch.dtype = torch.float32,
        threads: int = cuda_limits.THREADS,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(network, dtype)
        if threads not in THREADS:
            raise ValueError(f"threads is {threads}; choose one of {THREADS}")
        narrow = dtype == torch.bfloat16
        self.plan = plan_cuda(self.layout, narrow=narrow, threads=threads)
        self.stream = self.plan.stream.to(self.device)
        self.vectors = self.plan.vectors.to(self.device)
        self.order = self.plan.order.to(self.device)
        code = compile_kernel(self.plan.header, architecture_of(self.device), notify)
        self.kernel = load_kernel(self.vectors.get_device(), code, self.plan.shared_bytes)

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
        arguments = (
            *(tokens, rows, nats, logits, state, self.stream, self.vectors, options),
            tokens.shape[1],
        )
        self.kernel.launch(len(tokens), self.plan.threads, arguments)

    def from_layout(self, flat: Tensor) -> Tensor:
        """Return flat states of `Layout` (streams, numbers) as the kernel has them."""
        return to_kernel(self.order, flat)

    def to_layout(self, state: Tensor) -> Tensor:
        """Undo `from_layout`, on any device."""
        return to_layout(self.order.to(state.device), state, self.layout.state_size)


def to_kernel(order: Tensor, flat: Tensor) -> Tensor:
    """Return flat states (streams, numbers) in the order of `CudaPlan`, with zeros for none."""
    # A state may be most of a GPU's memory: there is no copy of it on the way.
    return flat.index_select(1, order.clamp(min=0)).masked_fill_(order < 0, 0)


def to_layout(order: Tensor, state: Tensor, size: int) -> Tensor:
    """Undo `to_kernel`; size is the count of numbers of a flat state."""
    back = order.new_full((size,), -1)
    used = (order >= 0).nonzero()[:, 0]
    back[order[used]] = used
    return to_kernel(back, state)
