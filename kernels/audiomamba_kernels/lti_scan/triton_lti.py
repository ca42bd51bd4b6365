"""The time-invariant scan by Triton: memory, tiles, and the order of the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiomamba_kernels.backend import INTERPRETED
from audiomamba_kernels.lti_scan.layout import as_rows, from_real, to_real
from audiomamba_kernels.lti_scan.triton_gradients import gradients_kernel
from audiomamba_kernels.lti_scan.triton_maps import maps_kernel, parameters_kernel
from audiomamba_kernels.lti_scan.triton_outputs import outputs_kernel
from audiomamba_kernels.lti_scan.triton_states import ends_kernel, states_kernel
from audiomamba_kernels.rows import empty_rows, row_strides
from audiomamba_kernels.sizes import cdiv, next_power_of_2


class Tiling(NamedTuple):
    """How the work is cut: for each kernel, warps of a program, and what it does in turn."""

    chunk: int = 64  # steps done as one matrix product
    rows: int = 64  # chunks in a tile, at most
    ends_warps: int = 4
    ends_tiles: int = 4  # that a program does in turn
    ends_stages: int = 2  # how far it reads ahead
    adjoint_warps: int = 4
    adjoint_tiles: int = 8
    adjoint_stages: int = 2
    outputs_warps: int = 4
    outputs_registers: int | None = 128  # of a thread, at most
    gradients_warps: int = 4
    gradients_registers: int | None = 168


NARROW = Tiling()

# Products of 64 rows become Hopper's asynchronous ones, and of kernels as large as these become
# with three products in the place of each, or many states, CUDA 12.8's assembler makes code that
# reads outside of memory. Smaller tiles avoid that, and spill few registers.
EXACT = NARROW._replace(chunk=32, rows=32, outputs_registers=None, gradients_registers=None)
WIDE = EXACT._replace(rows=16, gradients_warps=8)
# For 33 to 64 states of bfloat16, 64 in S4: two warps have no product of 64 rows, and wait for each
# other less than four.
S4 = Tiling(
    rows=16,
    ends_warps=2,
    adjoint_warps=2,
    outputs_warps=2,
    outputs_registers=None,
    gradients_warps=2,
    gradients_registers=None,
)
MAPS_ROWS = 16  # that a program writes of each map

# Of the input's dtype, the operands of matrix products and how they are multiplied. float16 would
# overflow in states, and tf32, cut rather than rounded, is not as exact.
OPERANDS = {
    torch.bfloat16: (torch.float32 if INTERPRETED else torch.bfloat16, "tf32"),
    torch.float16: (torch.float32, "tf32x3"),
    torch.float32: (torch.float32, "tf32x3"),
}


def tiling_of(dtype: torch.dtype, S: int) -> Tiling:
    """Return how the work on inputs of a dtype is cut, S being `padded_state`."""
    if dtype != torch.bfloat16:
        return WIDE if S > 32 else EXACT
    return NARROW if S <= 32 else S4 if S <= 64 else WIDE


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and the state before each tile; arguments as in `lti_scan`."""
    call = _Call(u, delta, A, B, C, D, lengths, reverse)
    u, z = as_rows(u), None if z is None else as_rows(z)
    tiling = call.tiling
    states, final_state = call.states(
        initial_state,
        num_warps=tiling.ends_warps,
        x=u, gate=None, u=None, side=call.maps.read, factor=call.maps.gain, dkernel=None,
        ADJOINT=False, BACKWARDS=reverse, K=tiling.ends_tiles, STAGES=tiling.ends_stages,
    )  # fmt: skip
    y = empty_rows(u)
    call.launch(
        outputs_kernel, call.tiles, u=u, z=z, y=y, states=states,
        num_warps=tiling.outputs_warps, maxnreg=tiling.outputs_registers,
    )  # fmt: skip
    return y, from_real(final_state, A), states


def backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of u, delta, A, B, C, D, z and initial_state, None where there is none.

    states is what `forward` returned.
    """
    call = _Call(u, delta, A, B, C, D, lengths, reverse)
    dy, u, z = as_rows(dy), as_rows(u), None if z is None else as_rows(z)
    tiling = call.tiling
    dkernel = call.new(*call.rows, -(-call.tiles // tiling.adjoint_tiles), call.Q)
    adjoints, dinitial_state = call.states(
        dfinal_state,
        num_warps=tiling.adjoint_warps,
        x=dy, gate=z, u=u, side=call.maps.write, factor=call.maps.C, dkernel=dkernel,
        ADJOINT=True, BACKWARDS=not reverse, K=tiling.adjoint_tiles, STAGES=tiling.adjoint_stages,
    )  # fmt: skip
    du, dz = empty_rows(u), None if z is None else empty_rows(z)
    partial = call.new(*call.rows, call.tiles, 3 * call.S)
    call.launch(
        gradients_kernel, call.tiles, dy=dy, u=u, z=z, du=du, dz=dz, states=states,
        adjoints=adjoints, partial=partial,
        num_warps=tiling.gradients_warps, maxnreg=tiling.gradients_registers,
    )  # fmt: skip
    ddelta, dA, dB, dC, dD = (torch.empty_like(x) for x in (*call.parameters, call.parameters[0]))
    parameters_kernel[(u.shape[2],)](
        *call.parameters, partial, dkernel, ddelta, dA, dB, dC, dD,
        *call.rows, call.tiles, dkernel.shape[2], dA.shape[1],
        K=32, Q=call.Q, S=call.S, COMPLEX=A.is_complex(),
    )  # fmt: skip
    dA, dB, dC = (from_real(x, A) for x in (dA, dB, dC))
    dinitial = None if initial_state is None else from_real(dinitial_state, A)
    return du, ddelta, dA, dB, dC, None if D is None else dD, dz, dinitial


def fake(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors like those that `forward` returns, but with nothing in them."""
    batch, steps, channels = u.shape
    kind = torch.complex64 if A.is_complex() else torch.float32
    S = padded_state(A)
    shape = batch, channels, tiles_of(steps, tiling_of(u.dtype, S))[1], S
    return (
        empty_rows(u),
        A.new_empty(batch, *A.shape, dtype=kind),
        u.new_empty(shape, dtype=torch.float32),
    )


def fake_gradient(x: Tensor) -> Tensor:
    """Return a tensor like the gradient that `backward` returns of u or z, with nothing in it."""
    return empty_rows(x)


class Maps(NamedTuple):
    """What `maps_kernel` writes."""

    gain: Tensor
    C: Tensor
    inside: Tensor
    read: Tensor
    write: Tensor
    late_read: Tensor
    late_write: Tensor
    powers: Tensor
    chunk_powers: Tensor


class _Call:
    """What forward and backward passes have in common."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        lengths: Tensor | None,
        reverse: bool,
    ) -> None:
        batch, steps, channels = u.shape
        self.rows, self.like = (batch, channels), u
        self.S = S = padded_state(A)
        self.tiling = tiling_of(u.dtype, S)
        self.Q = Q = self.tiling.chunk
        R, self.tiles = tiles_of(steps, self.tiling)
        operand, precision = OPERANDS[u.dtype]
        # Beside A, a complex number counts as two.
        self.parameters = [
            delta.float().contiguous(),
            *(to_real(x, x.shape[1] * (2 if x.is_complex() else 1)) for x in (A, B, C)),
        ]
        self.maps = Maps(
            gain=self.new(channels, S),
            C=self.new(channels, S),
            inside=self.new(channels, Q, Q, dtype=operand),
            read=self.new(channels, Q, S, dtype=operand),
            write=self.new(channels, S, Q, dtype=operand),
            late_read=self.new(channels, Q, S, dtype=operand),
            late_write=self.new(channels, S, Q, dtype=operand),
            powers=self.new(channels, Q + 1, S),
            chunk_powers=self.new(channels, R + 1, S),
        )
        maps_kernel[(channels * (max(Q, R) // MAPS_ROWS),)](
            *self.parameters, *self.maps, self.parameters[1].shape[1],
            K=MAPS_ROWS, R=R, Q=Q, S=S, COMPLEX=A.is_complex(), REVERSE=reverse,
        )  # fmt: skip
        self.common = {
            **self.maps._asdict(),
            "skip": None if D is None else D.contiguous(),
            "lengths": None if lengths is None else lengths.contiguous(),
            "steps": steps, "channels": channels, "tiles": self.tiles,
            "R": R, "Q": Q, "S": S,
            "COMPLEX": A.is_complex(), "REVERSE": reverse, "PRECISION": precision,
        }  # fmt: skip

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uninitialised memory."""
        return self.like.new_empty(shape, dtype=dtype)

    def states(self, entering: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the state before each tile and the last one, of a run or its adjoint.

        The options are arguments of `ends_kernel`.
        """
        ends = self.new(*self.rows, self.tiles, self.S)
        segments = -(-self.tiles // options["K"])
        self.launch(ends_kernel, segments, ends=ends, segments=segments, **options)
        states, leaving = torch.empty_like(ends), self.new(*self.rows, self.S)
        block = min(next_power_of_2(self.tiles + 1), max(4096 // self.S, 1))
        self.launch(
            states_kernel, 1, ends=ends, states=states, leaving=leaving, K=block,
            entering=None if entering is None else to_real(entering, self.S),
            ADJOINT=options["ADJOINT"], BACKWARDS=options["BACKWARDS"],
        )  # fmt: skip
        return states, leaving

    def launch(
        self,
        kernel: Any,
        programs: int,
        num_warps: int = 4,
        maxnreg: int | None = None,
        **arguments: Any,
    ) -> None:
        """Run a kernel, `programs` programs a row, on arguments and what it wants of the common."""
        strides: dict[str, int] = {}
        for name, x in arguments.items():
            if f"{name}_batch" in kernel.arg_names:
                batch, channel = (0, 0) if x is None else row_strides(x)
                strides |= {f"{name}_batch": batch, f"{name}_channel": channel}
        known = self.common | strides | arguments
        batch, channels = self.rows
        kernel[(batch * channels * programs,)](
            **{name: known[name] for name in kernel.arg_names},
            num_warps=num_warps,
            maxnreg=maxnreg,
        )


def tiles_of(steps: int, tiling: Tiling) -> tuple[int, int]:
    """Return the chunks in a tile, and the tiles."""
    chunks = cdiv(steps, tiling.chunk)
    rows = min(16, tiling.rows)
    while rows < tiling.rows and rows < chunks:
        rows *= 2
    return rows, cdiv(chunks, rows)


def padded_state(A: Tensor) -> int:
    """Return S: a power of two, and at least the 16 that a matrix product needs."""
    state: int = A.shape[1] * (2 if A.is_complex() else 1)
    return max(16, 1 << (state - 1).bit_length())
