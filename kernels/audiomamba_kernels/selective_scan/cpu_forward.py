"""The selective scan, compiled for the CPU: WIDTH channels of a row at once, chunk by chunk.

What is real or complex has an axis `parts`, of one or of (real, imaginary).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from audiomamba_kernels.jit import fingerprint, jit, jit_cached, jit_disjoint
from audiomamba_kernels.selective_scan.cpu_chunk import scan_complex, scan_real
from audiomamba_kernels.tiles import WIDTH, Array, Sequences, clear, fill, load, store, tiles
from audiomamba_kernels.vector_math import sigmoid, softplus

CHUNK = 64  # steps; no more than WIDTH, for tiles hold B and C with time across
LOG2_E = 1 / math.log(2)


class Inputs(NamedTuple):
    """What `selective_scan` takes, for compiled code; parameters are padded to whole blocks."""

    u: Sequences
    delta: Sequences  # before bias and softplus
    A: Array  # (channels, state, parts)
    B: Array  # (batch, time, state, parts), or if constant (1, channels, state, parts)
    C: Array  # as B
    D: Array  # (blocks * WIDTH,), zeros if absent
    z: Sequences
    delta_bias: Array  # as D
    initial_state: Array  # (batch, channels, state, parts), zeros if absent
    lengths: Array  # (batch,)
    steps: int  # time
    B_per_step: bool
    C_per_step: bool
    delta_softplus: bool
    reverse: bool


@jit
def chunk_start(k: int, length: int, reverse: bool) -> tuple[int, int, int]:
    """Return the first step of chunk k in processing order, the direction, the number of steps."""
    done = k * CHUNK
    return (
        (length - 1 - done if reverse else done),
        (-1 if reverse else 1),
        min(CHUNK, length - done),
    )


@jit
def load_channels(tile: Array, x: Array, first: int, width: int) -> None:
    """Copy x (channels, state, parts) to a tile (parts, state, WIDTH), and zeros beside it."""
    for p in range(tile.shape[0]):
        for n in range(tile.shape[1]):
            for j in range(width):
                tile[p, n, j] = x[first + j, n, p]
            for j in range(width, WIDTH):
                tile[p, n, j] = 0


@jit
def store_channels(tile: Array, x: Array, first: int, width: int) -> None:
    """Copy back what `load_channels` copies."""
    for p in range(tile.shape[0]):
        for n in range(tile.shape[1]):
            for j in range(width):
                x[first + j, n, p] = tile[p, n, j]


@jit
def load_constant_maps(
    tile: Array, B: Array, C: Array, B_per_step: bool, C_per_step: bool, first: int, width: int
) -> None:
    """Copy what is constant of B and C (1, channels, state, parts) to (2, parts, state, WIDTH)."""
    maps, per_step = (B, C), (B_per_step, C_per_step)
    for m in range(2):
        if not per_step[m]:
            load_channels(tile[m], maps[m][0], first, width)
    scale_output_map(tile[1])


@jit
def load_maps(
    tile: Array,
    B: Array,
    C: Array,
    B_per_step: bool,
    C_per_step: bool,
    row: int,
    t: int,
    direction: int,
    steps: int,
) -> None:
    """Copy what is not, (batch, time, state, parts), to (2, parts, state, CHUNK)."""
    maps, per_step = (B, C), (B_per_step, C_per_step)
    for m in range(2):
        if per_step[m]:
            x = maps[m]
            for p in range(tile.shape[1]):
                for n in range(tile.shape[2]):
                    for i in range(steps):
                        tile[m, p, n, i] = x[row, t + direction * i, n, p]
    scale_output_map(tile[1])


@jit
def scale_output_map(tile: Array) -> None:
    """Make y = 2 Re(C h) the sum over parts of tile * h, if C is complex."""
    if tile.shape[0] == 2:
        for n in range(tile.shape[1]):
            for j in range(WIDTH):
                tile[0, n, j] *= 2
                tile[1, n, j] *= -2


@jit
def log2_decay(rate: Array, A: Array) -> None:
    """Write log2(e) Re(A), with which 2^(delta A) is the size of the decay."""
    factor = A.dtype.type(LOG2_E)
    for n in range(A.shape[1]):
        for j in range(WIDTH):
            rate[n, j] = factor * A[0, n, j]


@jit_disjoint
def step_sizes(delta: Array, bias: Array, positive: bool, steps: int) -> None:
    """Turn what the caller calls delta into the size of each step.

    From 20 on, softplus is the identity, as in PyTorch.
    """
    limit = delta.dtype.type(20)
    for i in range(steps):
        for j in range(WIDTH):
            delta[i, j] += bias[j]
        if positive:
            for j in range(WIDTH):
                x = delta[i, j]
                delta[i, j] = x if x > limit else softplus(x)


@jit_disjoint
def multiply(x: Array, delta: Array, u: Array, steps: int) -> None:
    """Compute x = delta u."""
    for i in range(steps):
        for j in range(WIDTH):
            x[i, j] = delta[i, j] * u[i, j]


@jit_disjoint
def add_skip(y: Array, D: Array, u: Array, steps: int) -> None:
    """Compute y += D u."""
    for i in range(steps):
        for j in range(WIDTH):
            y[i, j] += D[j] * u[i, j]


@jit_disjoint
def gate(y: Array, z: Array, steps: int) -> None:
    """Compute y *= silu(z)."""
    for i in range(steps):
        for j in range(WIDTH):
            y[i, j] *= z[i, j] * sigmoid(z[i, j])


def _compile(version: int) -> Callable[..., None]:
    @jit_cached
    def run(
        first_task: int,
        end_task: int,
        x: Inputs,
        is_complex: Any,
        y: Sequences,
        final_state: Array,
        states: Array,
    ) -> None:
        """Run some tasks: WIDTH channels of a row each, channels first.

        Args:
            first_task: The first of them.
            end_task: One more than the last.
            x: Inputs.
            is_complex: None compiles the real scan, True the complex one.
            y: Output.
            final_state: Output, (batch, channels, state, parts).
            states: Output, those before each chunk, (batch, chunks, channels, state, parts).
        """
        _ = version
        channels, state, parts = x.A.shape
        blocks = (channels + WIDTH - 1) // WIDTH
        tile = tiles(1, 6, max(CHUNK, state), x.A)[0]
        delta, u, z, drive, out, rate = tile[0], tile[1], tile[2], tile[3], tile[4], tile[5]
        of_states = tiles(6, parts, state, x.A)
        a, h, maps, constant_maps = of_states[0], of_states[1], of_states[2:4], of_states[4:6]
        b, c, b_constant, c_constant = maps[0], maps[1], constant_maps[0], constant_maps[1]
        loaded = (x.delta, x.u, x.z)
        gated = x.z.values.size > 0
        for task in range(first_task, end_task):
            row, first = task // blocks, task % blocks * WIDTH
            width, length = min(WIDTH, channels - first), x.lengths[row]
            skip, bias = x.D[first : first + WIDTH], x.delta_bias[first : first + WIDTH]
            load_channels(a, x.A, first, width)
            log2_decay(rate, a)
            load_constant_maps(constant_maps, x.B, x.C, x.B_per_step, x.C_per_step, first, width)
            load_channels(h, x.initial_state[row], first, width)
            for k in range((length + CHUNK - 1) // CHUNK):
                t, direction, count = chunk_start(k, length, x.reverse)
                store_channels(h, states[row, k], first, width)
                for i in range(2 + gated):
                    load(tile[i], loaded[i], row, t, direction, count, first, width)
                load_maps(maps, x.B, x.C, x.B_per_step, x.C_per_step, row, t, direction, count)
                step_sizes(delta, bias, x.delta_softplus, count)
                multiply(drive, delta, u, count)
                fill(out, 0)
                if is_complex is None:
                    scan_real(
                        delta, drive, rate, b[0], b_constant[0], c[0], c_constant[0], h[0], out,
                        count,
                    )  # fmt: skip
                else:
                    scan_complex(
                        delta, drive, rate, a[1], b[0], b[1], b_constant[0], b_constant[1],
                        c[0], c[1], c_constant[0], c_constant[1], h[0], h[1], out, count,
                    )  # fmt: skip
                add_skip(out, skip, u, count)
                if gated:
                    gate(out, z, count)
                store(out, y, row, t, direction, count, first, width)
            store_channels(h, final_state[row], first, width)
            clear(y, row, length, x.steps, first, width)

    return run


run = _compile(fingerprint(Path(__file__).parent, "cpu*.py"))
