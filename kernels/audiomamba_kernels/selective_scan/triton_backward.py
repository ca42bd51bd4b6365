"""The selective scan on a GPU, backward.

The states are computed again, and of every `BLOCK`-th step kept in scratch memory. Then each thread
goes through its chunk backwards, block by block: it recomputes the states of a block into registers
and meets them, last to first, with the gradient of the state that comes from the future.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiomamba_kernels.selective_scan.compile_cases import Case, cases
from audiomamba_kernels.selective_scan.triton_chunks import chunk_ends_backward_kernel
from audiomamba_kernels.selective_scan.triton_forward import (
    BLOCK,
    REGISTERS,
    carry,
    chunking,
    constants,
    from_planes,
    maps,
    output_kernel,
    rows,
    state_planes,
    tile,
    vector,
)
from audiomamba_kernels.selective_scan.triton_math import (
    LN2,
    column,
    decay,
    first_map,
    load_bias,
    load_map,
    load_rates,
    load_rows,
    load_tile,
    multiply_add,
    prefetch_map,
    prefetch_tile,
    read,
    sigmoid,
    step_size,
    store_tile,
    tile_channels,
    walk,
)
from audiomamba_kernels.sizes import cdiv
from audiomamba_kernels.triton_lengths import length_of

# Steps whose states the gradient kernel holds in registers; divides BLOCK. More of them would cost
# less recomputation, but their code does not fit the instruction cache.
STEPS = 2


@triton.jit
def _add_channels(sums, re, im, column, COMPLEX: tl.constexpr, DOT: tl.constexpr):
    """Add sum_channels (re, im) to one column of `sums` (values, columns).

    A product with a matrix that is one in this column and else zero lets tensor cores sum over the
    lanes of a warp, which shuffles would take five steps a value for; it cuts what is summed to the
    eleven bits of tf32 (DOT, see `cut_to_tf32`).
    """
    if COMPLEX:
        values = tl.reshape(tl.permute(tl.join(re, im), (2, 0, 1)), (2 * re.shape[0], re.shape[1]))
    else:
        values = re
    here = tl.arange(0, sums.shape[1]) == column
    if DOT:
        ones = tl.broadcast_to(here[None, :], (values.shape[1], sums.shape[1]))
        return tl.dot(values, ones.to(tl.float32), sums, input_precision="tf32")
    else:
        return tl.where(here[None, :], tl.sum(values, axis=1)[:, None], sums)


@triton.jit
def _store_sums(
    p, sums, origin, direction, first, count, N: tl.constexpr, BN: tl.constexpr, S: tl.constexpr
):
    """Write `sums` (values, columns) to rows of time of p (steps, planes, N)."""
    planes: tl.constexpr = sums.shape[0] // BN
    o_v = tl.arange(0, sums.shape[0])
    o_s = tl.arange(0, sums.shape[1])
    o_n = o_v % BN
    mask = (o_n < N)[:, None] & ((o_s < S) & (first + o_s < count))[None, :]
    rows_of = origin + direction * (first + o_s)
    at = rows_of[None, :] * (planes * N) + ((o_v // BN) * N + o_n)[:, None]
    tl.store(p + at, sums, mask)


@triton.jit(do_not_specialize=["steps", "channels", "chunks", "unaligned"])
def gradient_kernel(
    u, delta, A, B, C, D, z, bias, dy, checkpoints, arriving, lengths,
    du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial,
    steps, channels, chunks,
    stride_ub, stride_ut, stride_db, stride_dt, stride_zb, stride_zt, stride_gb, stride_gt,
    unaligned,
    L: tl.constexpr, S: tl.constexpr, K: tl.constexpr, N: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, B_PER_STEP: tl.constexpr, C_PER_STEP: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, COMPLEX: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Write all gradients of a chunk; sums over time or channels as one part a program."""
    planes: tl.constexpr = 2 if COMPLEX else 1
    columns: tl.constexpr = 16 if DOT else S
    state: tl.constexpr = planes * N
    i_c = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    o_d = tile_channels(BD, unaligned)
    o_n = tl.arange(0, BN)
    m_d = o_d < channels
    length = length_of(lengths, i_b, steps)
    count = tl.maximum(tl.minimum(length - i_c * L, L), 0).to(tl.int32)
    blocks = (count + S - 1) // S
    origin, direction = walk(i_c * L, length, REVERSE)
    row = i_b * steps + origin
    at = i_b * chunks + i_c
    part = (tl.program_id(0).to(tl.int64) * tl.num_programs(2) + i_b) * steps + origin
    p_u = u + i_b * stride_ub + origin * stride_ut + o_d
    p_delta = delta + i_b * stride_db + origin * stride_dt + o_d
    p_dy = dy + i_b * stride_gb + origin * stride_gt + o_d
    kept = tl.full((), state, tl.int64) * channels
    p_checkpoint = checkpoints + at * (L // K) * (state * channels)
    b_bias = load_bias(bias, o_d, channels)
    a_re, a_im = load_rates(A, o_n, o_d, channels, N, COMPLEX)
    e_re, e_im = load_tile(arriving + at * (state * channels), o_n, o_d, channels, N, COMPLEX)
    dA_re = tl.zeros([BN, BD], tl.float32)
    dA_im = dA_re
    dB_re, dB_im, dC_re, dC_im = dA_re, dA_re, dA_re, dA_re
    sum_bias = tl.zeros([BD], tl.float32)
    sum_skip = sum_bias
    if D is not None:
        skip = tl.load(D + o_d, m_d, other=0.0).to(tl.float32)

    last = (blocks - 1) * S
    next_u = load_rows(p_u, direction * stride_ut, last, count, m_d, S)
    next_delta = load_rows(p_delta, direction * stride_dt, last, count, m_d, S)
    next_dy = load_rows(p_dy, direction * stride_gt, last, count, m_d, S)
    if z is not None:
        p_z = z + i_b * stride_zb + origin * stride_zt + o_d
        next_z = load_rows(p_z, direction * stride_zt, last, count, m_d, S)
    b_re, b_im = first_map(B, row, o_n, o_d, channels, N, B_PER_STEP, COMPLEX)
    c_re, c_im = first_map(C, row, o_n, o_d, channels, N, C_PER_STEP, COMPLEX)
    for back in tl.range(0, blocks):
        first = (blocks - 1 - back) * S
        us, raw_deltas, dys = next_u, next_delta, next_dy
        h_re, h_im = load_tile(
            p_checkpoint + first // K * kept, o_n, o_d, channels, N, COMPLEX
        )  # fmt: skip
        next_u = load_rows(p_u, direction * stride_ut, first - S, count, m_d, S)
        next_delta = load_rows(p_delta, direction * stride_dt, first - S, count, m_d, S)
        next_dy = load_rows(p_dy, direction * stride_gt, first - S, count, m_d, S)
        if z is not None:
            zs = next_z
            next_z = load_rows(p_z, direction * stride_zt, first - S, count, m_d, S)
        p_next = p_checkpoint + tl.maximum(first - S, 0) // K * kept
        prefetch_tile(p_next, channels, N, BD, COMPLEX)
        if B_PER_STEP:
            prefetch_map(B, row, direction, first - K, count, K, N, COMPLEX)
        if C_PER_STEP:
            prefetch_map(C, row, direction, first - S, count, S, N, COMPLEX)

        for i in tl.range(first // K * K, first):  # from the kept state to this block
            b_delta = step_size(
                tl.load(p_delta + i * (direction * stride_dt), m_d, other=0.0),
                b_bias, True, SOFTPLUS,
            )  # fmt: skip
            b_u = tl.load(p_u + i * (direction * stride_ut), m_d, other=0.0)
            x = (b_delta * b_u.to(tl.float32))[None, :]
            b_re, b_im = load_map(B, row + direction * i, b_re, b_im, o_n, N, B_PER_STEP, COMPLEX)
            d_re, d_im = decay(a_re, a_im, b_delta[None, :], COMPLEX)
            h_re, h_im = multiply_add(
                d_re, d_im, h_re, h_im,
                x * column(b_re, B_PER_STEP), x * column(b_im, B_PER_STEP), COMPLEX,
            )  # fmt: skip

        # The state before each step of the block.
        hs_re, hs_im, deltas = (h_re,), (h_im,), ()
        for j in tl.static_range(S):
            i = first + j
            b_delta = step_size(raw_deltas[j], b_bias, i < count, SOFTPLUS)
            deltas = deltas + (b_delta,)
            if j < S - 1:
                map_row = row + direction * tl.minimum(i, count - 1)
                b_re, b_im = load_map(B, map_row, b_re, b_im, o_n, N, B_PER_STEP, COMPLEX)
                x = (b_delta * us[j].to(tl.float32))[None, :]
                d_re, d_im = decay(a_re, a_im, b_delta[None, :], COMPLEX)
                h_re, h_im = multiply_add(
                    d_re, d_im, h_re, h_im,
                    x * column(b_re, B_PER_STEP), x * column(b_im, B_PER_STEP), COMPLEX,
                )  # fmt: skip
                hs_re, hs_im = hs_re + (h_re,), hs_im + (h_im,)

        sums_b = tl.zeros([planes * BN, columns], tl.float32)
        sums_c = tl.zeros([planes * BN, columns], tl.float32)
        for j in tl.static_range(S - 1, -1, -1):
            i = first + j
            inside = m_d & (i < count)
            map_row = row + direction * tl.minimum(i, count - 1)
            b_re, b_im = load_map(B, map_row, b_re, b_im, o_n, N, B_PER_STEP, COMPLEX)
            c_re, c_im = load_map(C, map_row, c_re, c_im, o_n, N, C_PER_STEP, COMPLEX)
            bb_re, bb_im = column(b_re, B_PER_STEP), column(b_im, B_PER_STEP)
            cc_re, cc_im = column(c_re, C_PER_STEP), column(c_im, C_PER_STEP)
            b_delta, b_u, g = deltas[j], us[j].to(tl.float32), dys[j].to(tl.float32)
            x = (b_delta * b_u)[None, :]
            d_re, d_im = decay(a_re, a_im, b_delta[None, :], COMPLEX)
            before_re, before_im = multiply_add(d_re, d_im, hs_re[j], hs_im[j], 0.0, 0.0, COMPLEX)
            h_re = before_re + x * bb_re
            h_im = before_im + x * bb_im
            p_row = (row + direction * i) * channels + o_d
            if z is not None:
                b_z = zs[j].to(tl.float32)
                s = sigmoid(b_z)
                b_y = read(h_re, h_im, cc_re, cc_im, COMPLEX)
                if D is not None:
                    b_y += skip * b_u
                b_dz = g * b_y * s * (1 + b_z * (1 - s))
                tl.store(dz + p_row, b_dz.to(dz.dtype.element_ty), inside)
                g = g * b_z * s
            g2 = (2 * g if COMPLEX else g)[None, :]
            dh_re = e_re + g2 * cc_re
            dh_im = e_im - g2 * cc_im
            if C_PER_STEP:
                sums_c = _add_channels(sums_c, g2 * h_re, -g2 * h_im, j, COMPLEX, DOT)
            else:
                dC_re += g2 * h_re
                dC_im -= g2 * h_im
            if B_PER_STEP:
                sums_b = _add_channels(sums_b, x * dh_re, x * dh_im, j, COMPLEX, DOT)
            else:
                dB_re += x * dh_re
                dB_im += x * dh_im
            # conj(a) dh goes on to the past; q = dh conj(a h_before) is the gradient of delta A.
            if COMPLEX:
                dx = tl.sum(bb_re * dh_re + bb_im * dh_im, axis=0)
                q_re = dh_re * before_re + dh_im * before_im
                q_im = dh_im * before_re - dh_re * before_im
                dA_im += b_delta[None, :] * q_im
                rate = tl.sum(a_re * q_re * LN2 + a_im * q_im, axis=0)
            else:
                dx = tl.sum(bb_re * dh_re, axis=0)
                q_re = dh_re * before_re
                rate = LN2 * tl.sum(a_re * q_re, axis=0)
            dA_re += b_delta[None, :] * q_re
            e_re, e_im = multiply_add(d_re, -d_im, dh_re, dh_im, 0.0, 0.0, COMPLEX)
            b_ddelta = rate + b_u * dx
            if SOFTPLUS:
                b_ddelta *= sigmoid(raw_deltas[j].to(tl.float32) + b_bias)
            b_du = b_delta * dx
            if D is not None:
                b_du += skip * g
                sum_skip += g * b_u
            sum_bias += tl.where(inside, b_ddelta, 0.0)
            tl.store(du + p_row, b_du.to(du.dtype.element_ty), inside)
            tl.store(ddelta + p_row, b_ddelta.to(ddelta.dtype.element_ty), inside)
        if B_PER_STEP:
            _store_sums(dB, sums_b, part, direction, first, count, N, BN, S)
        if C_PER_STEP:
            _store_sums(dC, sums_c, part, direction, first, count, N, BN, S)

    p_part = at * (state * channels)
    store_tile(dA + p_part, dA_re, dA_im, o_n, o_d, channels, N, COMPLEX)
    if not B_PER_STEP:
        store_tile(dB + p_part, dB_re, dB_im, o_n, o_d, channels, N, COMPLEX)
    if not C_PER_STEP:
        store_tile(dC + p_part, dC_re, dC_im, o_n, o_d, channels, N, COMPLEX)
    if D is not None:
        tl.store(dD + at * channels + o_d, sum_skip, m_d)
    if bias is not None:
        tl.store(dbias + at * channels + o_d, sum_bias, m_d)
    if i_c == 0:
        p_initial = dinitial + i_b * (state * channels)
        store_tile(p_initial, e_re, e_im, o_n, o_d, channels, N, COMPLEX)


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    starts: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the nine tensors of `selective_scan`, None for those absent."""
    batch, steps, channels = u.shape
    state, complex = A.shape[-1], A.is_complex()
    planes = 2 if complex else 1
    like = (u, delta, z)
    D, delta_bias = vector(D), vector(delta_bias)
    u, delta, dy, z = rows(u), rows(delta), rows(dy), None if z is None else rows(z)
    rates, B_maps, C_maps = constants(A), maps(B), maps(C)
    chunk, chunks = chunking(batch, steps, channels)
    BN, BD = tile(state * planes, 32)
    parts = cdiv(channels, BD)
    grid = (parts, chunks, batch)
    kwargs = {
        "L": chunk, "S": BLOCK, "N": state, "BN": BN // planes, "BD": BD, "num_warps": 1,
        "SOFTPLUS": delta_softplus, "REVERSE": reverse, "COMPLEX": complex,
    }  # fmt: skip
    z_strides = z.stride()[:2] if z is not None else (0, 0)

    empty = torch.zeros if lengths is not None else torch.empty
    new = u.new_empty
    arriving = (
        new(batch, planes, state, channels, dtype=torch.float32).zero_()
        if dfinal is None
        else state_planes(dfinal)
    )
    if chunks > 1:
        ends = torch.empty_like(starts)
        totals = new(batch, chunks, planes, channels, dtype=torch.float32)
        chunk_ends_backward_kernel[grid](
            delta, rates, C_maps, z, delta_bias, dy, ends, totals, lengths,
            steps, channels, chunks, *delta.stride()[:2], *z_strides, *dy.stride()[:2], 0,
            C_PER_STEP=C.dim() == 3, **kwargs,
        )  # fmt: skip
        arriving = carry(rates, totals, ends, arriving, backward=True)

    du, ddelta, dz = (
        None if x is None else empty(x.shape, dtype=x.dtype, device=x.device) for x in like
    )

    def map_parts(x: Tensor) -> Tensor:
        if x.dim() == 3:
            shape = (parts, batch, steps, planes, state)
            return empty(shape, dtype=torch.float32, device=x.device)
        return new(batch * chunks, planes, state, channels, dtype=torch.float32)

    dA = new(batch * chunks, planes, state, channels, dtype=torch.float32)
    dB, dC = map_parts(B), map_parts(C)
    dD, dbias = (
        None if x is None else new(batch * chunks, channels, dtype=torch.float32)
        for x in (D, delta_bias)
    )
    dinitial = new(batch, planes, state, channels, dtype=torch.float32)
    checkpoints = new(batch, chunks, chunk // BLOCK, planes, state, channels, dtype=torch.float32)
    kwargs |= {"B_PER_STEP": B.dim() == 3, "C_PER_STEP": C.dim() == 3}
    output_kernel[grid](
        u, delta, rates, B_maps, C_maps, D, z, delta_bias, starts, None, None, checkpoints,
        lengths, steps, channels, chunks, *u.stride()[:2], *delta.stride()[:2], *z_strides, 0,
        maxnreg=REGISTERS, **kwargs,
    )  # fmt: skip
    gradient_kernel[grid](
        u, delta, rates, B_maps, C_maps, D, z, delta_bias, dy, checkpoints, arriving,
        lengths, du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial,
        steps, channels, chunks,
        *u.stride()[:2], *delta.stride()[:2], *z_strides, *dy.stride()[:2], 0,
        K=BLOCK, DOT=cut_to_tf32(u, B, C) and BN >= 16 and BD >= 16, **kwargs | {"S": STEPS},
    )  # fmt: skip

    def of_map(x: Tensor, parts: Tensor) -> Tensor:
        if x.dim() == 2:
            return _of_channels(parts.sum(0), x)
        total = parts.sum(0)
        return (
            torch.complex(total[..., 0, :], total[..., 1, :])
            if complex
            else total[:, :, 0].to(x.dtype)
        )

    return (
        du,
        ddelta,
        _of_channels(dA.sum(0), A),
        of_map(B, dB),
        of_map(C, dC),
        None if D is None or dD is None else dD.sum(0).to(D.dtype),
        dz,
        None if delta_bias is None or dbias is None else dbias.sum(0).to(delta_bias.dtype),
        None if initial_state is None else from_planes(dinitial).to(initial_state.dtype),
    )


def cut_to_tf32(u: Tensor, B: Tensor, C: Tensor) -> bool:
    """Say whether the gradients of B and C may be sums of eleven bits, which are fastest.

    They may if they come back in a half precision. There is no complex half precision, so complex
    maps count as what u is.
    """
    dtypes = {(u if x.is_complex() else x).dtype for x in (B, C) if x.dim() == 3}
    return dtypes <= {torch.bfloat16, torch.float16}


def _of_channels(x: Tensor, like: Tensor) -> Tensor:
    """(planes, state, channels) -> (channels, state), real or complex."""
    if x.shape[0] == 2:
        return torch.complex(x[0], x[1]).T.contiguous()
    return x[0].T.contiguous().to(like.dtype)


def compile_cases() -> list[Case]:
    """Return what `tests/ops/test_compile_targets.py` compiles."""
    return list(cases(gradient_kernel, L=64, S=STEPS, K=BLOCK, N=16, BN=16, BD=32))
