"""Every backend of the selective scan against the float64 reference."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiomamba_kernels import selective_scan
from audiomamba_kernels.backend import why_not
from audiomamba_kernels.selective_scan.op import selective_scan_op
from tests.contract import check_kernel, error, results
from tests.covering import covering
from tests.ops.selective_cases import BOTH, LAYOUTS, OPTIONS, check, inputs, rand

CPU_CASES = covering(
    {
        "steps": (1, 2, 63, 64, 65, 1000),
        "channels": (1, 5, 17),
        "n": (1, 3, 16),
        "dtype": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
        **OPTIONS,
        "layout": LAYOUTS,
        "cut": BOTH,
    }
)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("case", CPU_CASES, ids=range(len(CPU_CASES)))
def test_a_backend_errs_no_more_than_the_reference(case: dict[str, Any], backend: str) -> None:
    check(backend, case)


# Triton's interpreter needs a second for what a GPU does in microseconds.
INTERPRETER_CASES = covering(
    {
        "steps": (1, 17),
        "channels": (1, 3),
        "n": (1, 3),
        "dtype": (torch.float32, torch.bfloat16),
        **OPTIONS,
        "layout": ("contiguous", "strided"),
    }
)


INTERPRETED = pytest.mark.skipif(
    why_not("triton", torch.empty(0)) is not None, reason="the kernels are compiled, if at all"
)


@INTERPRETED
@pytest.mark.parametrize("case", INTERPRETER_CASES, ids=range(len(INTERPRETER_CASES)))
def test_the_triton_kernels_interpreted_err_no_more_than_the_reference(
    case: dict[str, Any],
) -> None:
    check("triton", case)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@settings(max_examples=10, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 69), max_size=4),
    complex=st.booleans(),
    reverse=st.booleans(),
    lengths=st.none() | st.lists(st.integers(0, 70), min_size=3, max_size=3),
)
def test_cut_anywhere_and_carried_equals_whole(
    backend: str, cuts: set[int], complex: bool, reverse: bool, lengths: list[int] | None
) -> None:
    torch.manual_seed(0)
    check_kernel(
        selective_scan,
        backend,
        inputs(70, complex=complex),
        torch.float64,
        cuts=sorted(cuts),
        reverse=reverse,
        lengths=None if lengths is None else torch.tensor(lengths),
        delta_softplus=True,
    )


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_rows_do_not_meet(backend: Any) -> None:
    """Neither in another order, nor when one is NaN."""
    tensors: dict[str, Any] = inputs(65)
    lengths, order = torch.tensor([65, 64, 3]), torch.tensor([2, 0, 1])
    options: dict[str, Any] = {"output_final_state": True, "backend": backend}
    y, h = selective_scan(**tensors, lengths=lengths, **options)
    for name in ("u", "delta", "B", "C", "z", "initial_state"):
        tensors[name] = tensors[name][order]
        tensors[name][1] = torch.nan
    y_other, h_other = selective_scan(**tensors, lengths=lengths[order], **options)
    torch.testing.assert_close(y_other[::2], y[order][::2])
    torch.testing.assert_close(h_other[::2], h[order][::2])
    assert y_other[1].isnan().all()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inputs_may_differ_in_dtype(backend: str, dtype: torch.dtype) -> None:
    half = {"z": torch.bfloat16, "B": torch.float16, "D": torch.bfloat16, "A": torch.float32}
    floor_of = torch.bfloat16 if dtype == torch.float32 else torch.float64
    dtypes = {"u": dtype, "delta": torch.float32, "C": dtype, **half}
    check_kernel(selective_scan, backend, inputs(40), floor_of, dtypes=dtypes)


@INTERPRETED
def test_interpreted_tensor_cores_sum_over_channels_of_two_tiles() -> None:
    check_kernel(
        selective_scan, "triton", inputs(5, batch=1, channels=33, n=16), torch.bfloat16, cuts=(2,)
    )


@INTERPRETED
def test_gradients_of_maps_are_cut_to_tf32_only_if_they_are_narrower() -> None:
    module = importlib.import_module("audiomamba_kernels.selective_scan.triton_backward")
    half, wide, constant = torch.zeros(1, 2, 3).bfloat16(), torch.zeros(1, 2, 3), torch.zeros(5, 3)
    kind = torch.complex64
    assert module.cut_to_tf32(half, half, half)
    assert module.cut_to_tf32(half, half, constant)
    assert module.cut_to_tf32(half, wide.to(kind), wide.to(kind))
    assert not module.cut_to_tf32(half, wide, half)
    assert not module.cut_to_tf32(half, half, wide)
    assert not module.cut_to_tf32(wide, wide.to(kind), constant.to(kind))


@INTERPRETED
@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_interpreted_chunks_are_carried_in_blocks(
    complex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("audiomamba_kernels.selective_scan.triton_forward")
    monkeypatch.setattr(module, "CHUNKS_AT_ONCE", 2)
    x = inputs(40, batch=1, channels=1, n=1, complex=complex)
    check_kernel(selective_scan, "triton", x, torch.float32)


def test_chunks_of_the_torch_backend_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["audiomamba_kernels.selective_scan.chunked"]
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * 5 * 3 * 10)
    lengths = torch.tensor([64, 35, 0])
    for options in ({}, {"reverse": True, "lengths": lengths}):
        check_kernel(selective_scan, "torch", inputs(64, complex=True), torch.float64, **options)


# What the reference means.


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_the_reference_passes_gradcheck(complex: bool, reverse: bool) -> None:
    def fn(*x: Tensor) -> Any:
        return selective_scan(
            *x[:8],
            initial_state=x[8],
            delta_softplus=True,
            output_final_state=True,
            reverse=reverse,
            lengths=torch.tensor([4, 2]),
            backend="reference",
        )

    tensors = inputs(4, batch=2, channels=2, n=2, complex=complex)
    assert torch.autograd.gradcheck(fn, [x.requires_grad_() for x in tensors.values()])  # type: ignore[union-attr]
    tensors["B"], tensors["C"] = (rand(2, 2, complex=complex) for _ in range(2))
    assert torch.autograd.gradcheck(fn, [x.requires_grad_() for x in tensors.values()])  # type: ignore[union-attr]


def test_the_reference_is_the_formula_in_one_step() -> None:
    u, delta, b, c, h = 0.5, 0.3, 1.5 + 2j, 0.7 - 1j, 0.2 + 0.1j
    a, d, z, bias = -0.4 + 3j, 1.1, 0.6, -0.2
    step = torch.nn.functional.softplus(torch.tensor(delta + bias, dtype=torch.float64)).item()
    gate = z * torch.sigmoid(torch.tensor(z, dtype=torch.float64)).item()
    new = torch.exp(torch.tensor(step * a, dtype=torch.complex128)).item() * h + step * b * u
    y, final_state = selective_scan(
        *(torch.tensor(v).view(1, 1, 1).double() for v in (u, delta)),
        torch.tensor([[a]], dtype=torch.complex128),
        *(torch.tensor([[[v]]], dtype=torch.complex128) for v in (b, c)),
        D=torch.tensor([d]).double(),
        z=torch.tensor([[[z]]]).double(),
        delta_bias=torch.tensor([bias]).double(),
        initial_state=torch.tensor([[[h]]], dtype=torch.complex128),
        delta_softplus=True,
        output_final_state=True,
        backend="reference",
    )
    assert final_state is not None
    assert final_state.item() == pytest.approx(new, rel=1e-6)
    assert y.item() == pytest.approx((2 * (c * new).real + d * u) * gate, rel=1e-6)


@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_ragged_batches_are_their_sequences(reverse: bool) -> None:
    lengths = [7, 0, 3]
    tensors: dict[str, Any] = inputs(7, complex=True)
    options: dict[str, Any] = {
        "reverse": reverse,
        "output_final_state": True,
        "backend": "reference",
    }
    y, h = selective_scan(**tensors, lengths=torch.tensor(lengths), **options)
    packed = {
        name: torch.cat([x[i, :l] for i, l in enumerate(lengths)])[None]
        if x.dim() == 3 and x.shape[1] == 7
        else x
        for name, x in tensors.items()
    }
    cu_seqlens = torch.tensor([0, 7, 7, 10])
    y_packed, h_packed = selective_scan(**packed, cu_seqlens=cu_seqlens, **options)
    assert torch.equal(h_packed, h)
    assert y_packed.shape == (1, 10, 5)
    for i, length in enumerate(lengths):
        row = {
            name: x if name in ("A", "D", "delta_bias") else x[i : i + 1]
            for name, x in tensors.items()
        }
        row |= {name: row[name][:, :length] for name in ("u", "delta", "B", "C", "z")}
        assert not y[i, length:].any()
        assert torch.equal(y_packed[0, cu_seqlens[i] : cu_seqlens[i + 1]], y[i, :length])
        if length == 0:
            assert torch.equal(h[i], tensors["initial_state"][i])
            continue
        y_row, h_row = selective_scan(**row, **options)
        torch.testing.assert_close(y[i, :length], y_row[0])
        torch.testing.assert_close(h[i], h_row[0])
        if reverse:
            row |= {name: row[name].flip(1) for name in ("u", "delta", "B", "C", "z")}
            y_flipped, h_flipped = selective_scan(**row, **{**options, "reverse": False})
            torch.testing.assert_close(y_row, y_flipped.flip(1))
            torch.testing.assert_close(h_row, h_flipped)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_decays_whose_product_underflows_are_exact(backend: Any) -> None:
    """A product of decays is zero in float32 after 129 such steps; nothing may divide by it."""
    steps = 2048
    A = torch.full((1, 1), -16.0)
    ones = torch.ones(1, steps, 1)
    y, _ = selective_scan(ones, 0.05 * ones, A, ones, ones, backend=backend)
    expected = 0.05 / (1 - torch.exp(torch.tensor(-0.8)))
    torch.testing.assert_close(y[0, -1, 0], expected)


class Scan(torch.nn.Module):
    """The scan with options, for those who take modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, **tensors: Any) -> Any:
        return selective_scan(**tensors, **self.options, delta_softplus=True)


def single(**sizes: Any) -> dict[str, Tensor | None]:
    return {
        k: v if v is None else v.to(torch.complex64 if v.is_complex() else torch.float32)
        for k, v in inputs(**sizes).items()
    }


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
@pytest.mark.parametrize("ragged", [None, "lengths"])
def test_it_compiles_into_one_graph(backend: str, ragged: str | None, complex: bool) -> None:
    lengths = torch.tensor([9, 0, 4]) if ragged else None
    scan = Scan(backend=backend, output_final_state=True, reverse=True, lengths=lengths)
    torch.compiler.reset()
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    for steps in (9, 12):
        tensors = single(steps=steps, complex=complex)
        plain, got = (
            results(lambda *, backend, output_final_state, f, **x: f(**x), backend, tensors, f=f)
            for f in (scan, compiled)
        )
        for name in plain:
            assert error(got[name], plain[name]) < 1e-6, name


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_it_exports(backend: str) -> None:
    scan, tensors = Scan(backend=backend, output_final_state=True), single(steps=9, complex=True)
    exported = torch.export.export(scan, (), tensors).module()
    for got, plain in zip(exported(**tensors), scan(**tensors), strict=True):
        assert error(got, plain) < 1e-6


@pytest.mark.parametrize(
    "backend",
    ["cpu", pytest.param("triton", marks=INTERPRETED)],
)
@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_the_operator_is_registered_right(complex: bool, backend: str) -> None:
    """Fake tensors, autograd and aliasing, as torch.compile and torch.export rely on them."""
    steps = 20 if backend == "cpu" else 3
    tensors = [x.requires_grad_() for x in single(steps=steps, complex=complex).values()]  # type: ignore[union-attr]
    lengths = torch.tensor([steps, steps - 1, 2])
    torch.library.opcheck(selective_scan_op, (*tensors, lengths, True, True, backend))


def test_wrong_shapes_kinds_and_backends_are_refused() -> None:
    x: dict[str, Any] = inputs(4, complex=True)
    with pytest.raises(ValueError, match=r"delta has shape \(3, 3, 5\); it must be \(3, 4, 5\)"):
        selective_scan(**{**x, "delta": x["delta"][:, :3]})
    with pytest.raises(ValueError, match="must be complex as A"):
        selective_scan(**{**x, "B": x["B"].real})
    with pytest.raises(ValueError, match=r"D is torch.int64; it must be real"):
        selective_scan(**{**x, "D": torch.ones(5, dtype=torch.int64)})
    with pytest.raises(ValueError, match="backend is 'cuda'; choose None"):
        selective_scan(**x, backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="D is on meta; it must be on cpu"):
        selective_scan(**{**x, "D": x["D"].to("meta")})
    with pytest.raises(ValueError, match="needs at least one time step"):
        selective_scan(**{**x, "u": x["u"][:, :0]})
    with pytest.raises(ValueError, match="A has shape"):
        selective_scan(**{**x, "A": x["A"][0]})
    with pytest.raises(ValueError, match="lengths holds 5; each must be 0 to 4"):
        selective_scan(**x, lengths=torch.tensor([4, 5, 0]))
    with pytest.raises(ValueError, match="both given"):
        selective_scan(
            **{**x, "initial_state": None},
            lengths=torch.tensor([4, 4, 4]),
            cu_seqlens=torch.tensor([0, 4]),
        )
