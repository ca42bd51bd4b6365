"""A model's weights and states as flat float32 arrays, and records that say where everything lies.

Records and arrays have the same types for every model, so the loop is compiled once for all.
Matrices are stored transposed, (inputs, outputs), and what has a state dimension as (state, rows,
channels): the last axis is contiguous, and vector registers run along it. Complex numbers are
separate rows of real and imaginary parts.

What does not change in time is computed here: decays and gains of time-invariant scans, the weights
of norms (folded into the matrix behind the norm), and the factor 2 of conjugate pairs (in C).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.layers.block import Block
from audiomamba.layers.mamba import Mamba
from audiomamba.layers.s4 import S4
from audiomamba.models.unet import Stack, UNet
from audiomamba.models.waveform import WaveformModel

Floats = NDArray[np.float32]

LTI, S6, S4_MLP = 0, 1, 2
ALIGNED = 16  # float32 numbers in 64 bytes: a line of cache, and a register of AVX-512


def _record(*names: str) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in names])


# Sizes, then places: w_ in the weights, s_ in the state.
BLOCK = _record(
    *("kind", "is_complex", "d_model", "d_inner", "d_conv", "dt_rank", "d_mlp"),
    "d_state",  # real states, or conjugate pairs
    *("w_in", "w_conv", "w_conv_bias", "w_x", "w_dt", "w_dt_bias"),
    "w_scan",  # time-invariant: decay, gain, C; selective: A; each (state, rows, d_inner)
    *("w_skip", "w_out", "w_out_bias", "w_up", "w_up_bias", "w_down", "w_down_bias"),
    *("s_conv", "s_scan"),
)
TIER = _record(
    "d_model",
    "pool",  # 0 in the centre
    *("down_first", "down_end", "up_first", "up_end"),  # blocks
    *("w_pooling", "w_pooling_bias", "w_unpooling", "w_unpooling_bias"),
    *("s_frame", "s_late"),
)


class Plan(NamedTuple):
    """All that stays constant while a model generates."""

    tiers: Any  # TIER records, outermost first
    blocks: Any  # BLOCK records
    weights: Floats
    embedding: Floats  # (levels, d_model)
    head: Floats  # (d_model * levels,)
    head_bias: Floats  # (levels,)


class Leaf(NamedTuple):
    """Where one tensor of a model's state lies in the flat state."""

    at: int
    shape: tuple[int, ...]  # in PyTorch, without the batch
    is_scan: bool  # (channels, state) in PyTorch, (state, rows, channels) here
    is_complex: bool

    @property
    def size(self) -> int:
        """Count of float32 numbers."""
        return int(np.prod(self.shape)) * (2 if self.is_complex else 1)


class Layout:
    """A model laid out for the engine.

    Attributes:
        plan: Weights and records.
        leaves: Places of the state's tensors, in the order of `audiomamba.state.leaves`.
        state_size: Count of float32 numbers in a stream's state.
        width: Of the widest buffer that a step needs.

    Raises:
        ValueError: If the model has an attention mixer.
    """

    def __init__(self, network: WaveformModel) -> None:
        self.leaves: list[Leaf] = []
        self.state_size = 0
        self.width = 0
        self._weights: list[Floats] = []
        self._weights_size = 0
        self._blocks: list[dict[str, int]] = []
        self._tiers: list[dict[str, int]] = []
        with torch.no_grad():
            self._net(network.unet)
            head = network.head.weight * network.norm.weight
            self.plan = Plan(
                _records(self._tiers, TIER),
                _records(self._blocks, BLOCK),
                _joined(self._weights),
                _joined([_floats(network.embedding.weight)]).reshape(-1, network.config.d_model),
                _joined([_floats(head.T)]),
                _joined([_floats(network.head.bias)]),
            )

    def _net(self, net: UNet | Stack) -> None:
        """Add a tier and those inside it; the state in the order of `UNetState`."""
        tier: dict[str, int] = {}
        self._tiers.append(tier)
        if isinstance(net, Stack):
            tier["down_first"], tier["down_end"], tier["d_model"] = self._stack(net)
            return
        tier["pool"] = net.pool
        tier["down_first"], tier["down_end"], d_model = self._stack(net.down)
        tier["d_model"] = d_model
        tier["s_frame"] = self._leaf((net.pool, d_model))
        self._net(net.inner)
        tier["s_late"] = self._leaf((net.pool, d_model))
        tier["up_first"], tier["up_end"], _ = self._stack(net.up)
        tier["w_pooling"] = self._put(net.pooling.weight.T)
        tier["w_pooling_bias"] = self._put(net.pooling.bias)
        tier["w_unpooling"] = self._put(net.unpooling.weight.T)
        tier["w_unpooling_bias"] = self._put(net.unpooling.bias)

    def _stack(self, stack: Stack) -> tuple[int, int, int]:
        """Add blocks; return the first, the end, and their width."""
        first = len(self._blocks)
        for block in stack.blocks:
            assert isinstance(block, Block)
            self._block(block)
        return first, len(self._blocks), self._blocks[-1]["d_model"]

    def _block(self, block: Block) -> None:
        record = {"d_model": block.norm.weight.numel()}
        if isinstance(block.mixer, Mamba):
            self._mamba(record, block.mixer, block.norm.weight)
        elif isinstance(block.mixer, S4):
            self._s4(record, block.mixer, block.norm.weight)
        else:
            raise ValueError("the compiled engine has no attention; use the PyTorch engine")
        if block.mlp_norm is not None:
            record["d_mlp"] = block.mlp.up.out_features
            record["w_up"] = self._put((block.mlp.up.weight * block.mlp_norm.weight).T)
            record["w_up_bias"] = self._put(block.mlp.up.bias)
            record["w_down"] = self._put(block.mlp.down.weight.T)
            record["w_down_bias"] = self._put(block.mlp.down.bias)
        self._blocks.append(record)
        selected = record.get("dt_rank", 0) + 4 * record["d_state"]
        widest = (2 * record["d_model"], 2 * record["d_inner"], record.get("d_mlp", 0), selected)
        self.width = max(self.width, *widest)

    def _mamba(self, record: dict[str, int], mixer: Mamba, norm: Tensor) -> None:
        n = mixer.A_log.shape[1]
        record["d_inner"], record["d_state"] = mixer.d_inner, n
        record["is_complex"] = int(mixer.complex)
        record["w_in"] = self._put((mixer.in_proj.weight * norm).T)
        record["d_conv"] = mixer.conv1d.kernel_size[0]
        record["w_conv"] = self._put(mixer.conv1d.weight[:, 0].T)
        assert mixer.conv1d.bias is not None
        record["w_conv_bias"] = self._put(mixer.conv1d.bias)
        record["w_skip"] = self._put(mixer.D)
        record["w_out"] = self._put(mixer.out_proj.weight.T)
        record["s_conv"] = self._leaf((record["d_conv"] - 1, mixer.d_inner))
        record["s_scan"] = self._leaf((mixer.d_inner, n), is_scan=True, is_complex=mixer.complex)
        if mixer.selective:
            record["kind"] = S6
            self._selective(record, mixer)
        else:
            record["kind"] = LTI
            B, C = (torch.view_as_complex(x) if mixer.complex else x for x in (mixer.B, mixer.C))
            record["w_scan"] = self._time_invariant(torch.exp(mixer.log_dt), mixer.A(), B, C)

    def _selective(self, record: dict[str, int], mixer: Mamba) -> None:
        sizes = [mixer.dt_rank, mixer.d_state, mixer.d_state]
        dt, B, C = torch.split(mixer.x_proj.weight, sizes)
        if mixer.complex:  # from (re, im) pairs to all real and then all imaginary parts
            B, C = torch.cat([B[::2], B[1::2]]), 2 * torch.cat([C[::2], C[1::2]])
        record["dt_rank"] = mixer.dt_rank
        record["w_x"] = self._put(torch.cat([dt, B, C]).T)
        record["w_dt"] = self._put(mixer.dt_proj.weight.T)
        record["w_dt_bias"] = self._put(mixer.dt_proj.bias)
        record["w_scan"] = self._put(_rows(mixer.A()))

    def _s4(self, record: dict[str, int], mixer: S4, norm: Tensor) -> None:
        delta, A, B, C = mixer.parameters_of_scan()
        record["kind"], record["is_complex"] = S4_MLP, 1
        record["d_inner"], record["d_state"] = A.shape
        # The scan and the skip read the normed input, each channel times its norm's weight.
        record["w_scan"] = self._time_invariant(delta, A, B * norm[:, None], C)
        record["w_skip"] = self._put(mixer.D * norm)
        record["w_out"] = self._put(mixer.out_proj.weight.T)
        record["w_out_bias"] = self._put(mixer.out_proj.bias)
        record["s_scan"] = self._leaf(tuple(A.shape), is_scan=True, is_complex=True)

    def _time_invariant(self, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> int:
        """Put decay, gain and C of `lti_scan`."""
        decay, gain = torch.exp(delta[:, None] * A), delta[:, None] * B
        C = 2 * C if A.is_complex() else C
        return self._put(torch.cat([_rows(decay), _rows(gain), _rows(C)], dim=1))

    def _put(self, x: Tensor) -> int:
        at = self._weights_size
        self._weights.append(_floats(x))
        self._weights_size += -(-x.numel() // ALIGNED) * ALIGNED
        return at

    def _leaf(
        self, shape: tuple[int, ...], *, is_scan: bool = False, is_complex: bool = False
    ) -> int:
        leaf = Leaf(self.state_size, shape, is_scan, is_complex)
        self.leaves.append(leaf)
        self.state_size += -(-leaf.size // ALIGNED) * ALIGNED
        return leaf.at


def pack_state(layout: Layout, tensors: Iterable[Tensor], flat: Tensor) -> None:
    """Write the leaves (streams or 1, ...) of a model's state into flat states (streams, state).

    Raises:
        ValueError: If the leaves are those of another model or of another count of streams.
    """
    for leaf, x in zip(layout.leaves, tensors, strict=True):
        if x.shape[1:] != leaf.shape or x.shape[0] not in (1, len(flat)):
            raise ValueError(
                f"a state of {tuple(x.shape)} came where {(len(flat), *leaf.shape)} belongs"
            )
        rows = _rows(x) if leaf.is_scan else x
        flat[:, leaf.at : leaf.at + leaf.size] = rows.reshape(len(x), -1)


def unpack_state(layout: Layout, flat: Tensor) -> list[Tensor]:
    """Return the leaves (streams, ...) of flat states (streams, state), as copies."""
    tensors = []
    for leaf in layout.leaves:
        x = flat[:, leaf.at : leaf.at + leaf.size].clone()
        if leaf.is_scan:
            channels, n = leaf.shape
            rows = x.view(len(x), n, -1, channels).movedim(-1, 1)  # (.., channels, state, rows)
            x = torch.complex(rows[..., 0], rows[..., 1]) if leaf.is_complex else rows[..., 0]
        tensors.append(x.reshape(len(x), *leaf.shape))
    return tensors


def flatten_state(layout: Layout, tensors: Iterable[Tensor]) -> Floats:
    """Return the flat state of the leaves (1, ...) of a model's state."""
    flat = aligned(layout.state_size)
    pack_state(layout, tensors, torch.from_numpy(flat)[None])
    return flat


def unflatten_state(layout: Layout, flat: Floats) -> list[Tensor]:
    """Return the leaves (1, ...) of a model's state, on the CPU."""
    return unpack_state(layout, torch.from_numpy(flat)[None])


def aligned(size: int) -> Floats:
    """Return zeros (size,) that start on a line of cache."""
    raw = np.zeros(size + ALIGNED, np.float32)
    start = -(raw.ctypes.data // raw.itemsize) % ALIGNED
    return raw[start : start + size]


def _rows(x: Tensor) -> Tensor:
    """(..., channels, state) -> (..., state, rows, channels): one row, or real and imaginary."""
    parts = torch.view_as_real(x) if x.is_complex() else x[..., None]
    return parts.movedim(-3, -1)


def _floats(x: Tensor) -> Floats:
    array: Floats = x.detach().to("cpu", torch.float32).contiguous().view(-1).numpy()
    return array


def _joined(parts: list[Floats]) -> Floats:
    """Copy into one array, each part on its own lines of cache."""
    sizes = [-(-len(part) // ALIGNED) * ALIGNED for part in parts]
    flat = aligned(sum(sizes)) if len(parts) > 1 else aligned(len(parts[0]))
    at = 0
    for part, size in zip(parts, sizes, strict=True):
        flat[at : at + len(part)] = part
        at += size
    return flat


def _records(values: list[dict[str, int]], dtype: np.dtype[Any]) -> Any:
    names = dtype.names or ()
    return np.array([tuple(value.get(name, 0) for name in names) for value in values], dtype)
