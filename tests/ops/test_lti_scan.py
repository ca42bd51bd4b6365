"""Every backend of the time-invariant scan against the float64 reference."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiomamba_kernels import lti_scan, selective_scan
from audiomamba_kernels.lti_scan import chunk_maps, lti_chunks, lti_scan_chunked, triton_lti
from audiomamba_kernels.lti_scan.layout import as_rows, to_rows
from audiomamba_kernels.lti_scan.op import lti_scan_op
from tests.contract import check_kernel, error, results
from tests.covering import covering
from tests.ops.lti_cases import BOTH, LAYOUTS, OPTIONS, check, inputs, rand, single

CASES = covering(
    {
        "steps": (1, 2, 63, 64, 65, 128, 129, 300),
        "channels": (1, 5, 65),
        "n": (1, 3, 16),
        "dtype": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
        **OPTIONS,
        "layout": LAYOUTS,
        "cut": BOTH,
    }
)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_backend_errs_no_more_than_the_reference(case: dict[str, Any], backend: str) -> None:
    if backend == "torch" and case["dtype"] == torch.float16:
        case = {**case, "dtype": torch.bfloat16}
    check(backend, case)


# Triton's interpreter needs a second for what a GPU does in microseconds.
INTERPRETER_CASES = covering(
    {
        "steps": (1, 31, 70),
        "channels": (1, 2),
        "n": (1, 3),
        "dtype": (torch.float32, torch.bfloat16, torch.float16),
        **OPTIONS,
        "layout": ("contiguous", "transposed", "strided"),
    }
)


@pytest.mark.parametrize("steps", [2, 31, 64])
def test_rows_are_copied_once(steps: int) -> None:
    """What `to_rows` has copied the kernels can read, where it was cut too."""
    x = torch.randn(2, steps, 3)
    rows = to_rows(x)
    assert torch.equal(rows, x)
    assert as_rows(rows).data_ptr() == rows.data_ptr()
    assert to_rows(rows).data_ptr() == rows.data_ptr()


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 70 steps be three tiles of two chunks, in two segments."""
    tiling = triton_lti.Tiling(chunk=16, rows=2, ends_tiles=2, adjoint_tiles=2)
    assert triton_lti.tiles_of(70, tiling) == (2, 3)
    monkeypatch.setattr(triton_lti, "tiling_of", lambda dtype, S: tiling)
    monkeypatch.setattr(triton_lti, "MAPS_ROWS", 8)  # two programs write the maps of a channel


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled, not interpreted")
@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("case", INTERPRETER_CASES, ids=range(len(INTERPRETER_CASES)))
def test_the_triton_kernels_interpreted_err_no_more_than_the_reference(
    case: dict[str, Any],
) -> None:
    check("triton", case)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@settings(max_examples=10, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 139), max_size=4),
    complex=st.booleans(),
    reverse=st.booleans(),
    lengths=st.none() | st.lists(st.integers(0, 140), min_size=3, max_size=3),
)
def test_cut_anywhere_and_carried_equals_whole(
    backend: str, cuts: set[int], complex: bool, reverse: bool, lengths: list[int] | None
) -> None:
    torch.manual_seed(0)
    check_kernel(
        lti_scan,
        backend,
        inputs(140, complex=complex),
        torch.float64,
        cuts=sorted(cuts),
        reverse=reverse,
        lengths=None if lengths is None else torch.tensor(lengths),
    )


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_rows_do_not_meet(backend: Any) -> None:
    """Neither in another order, nor when one is NaN."""
    tensors: dict[str, Any] = inputs(130)
    lengths, order = torch.tensor([130, 64, 3]), torch.tensor([2, 0, 1])
    options: dict[str, Any] = {"output_final_state": True, "backend": backend}
    y, h = lti_scan(**tensors, lengths=lengths, **options)
    for name in ("u", "z", "initial_state"):
        tensors[name] = tensors[name][order]
        tensors[name][1] = torch.nan
    y_other, h_other = lti_scan(**tensors, lengths=lengths[order], **options)
    torch.testing.assert_close(y_other[::2], y[order][::2])
    assert h is not None
    assert h_other is not None
    torch.testing.assert_close(h_other[::2], h[order][::2])


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_inputs_may_differ_in_dtype(backend: str) -> None:
    half = {"z": torch.bfloat16, "D": torch.bfloat16, "A": torch.float32}
    dtypes = {"u": torch.float32, "delta": torch.float32, "B": torch.float32, "C": torch.float32}
    check_kernel(lti_scan, backend, inputs(40), torch.bfloat16, dtypes={**dtypes, **half})


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_the_torch_backend_does_as_it_is_told_under_autocast(complex: bool) -> None:
    tensors, lengths = single(steps=300, complex=complex), torch.tensor([300, 0, 170])
    plain = results(lti_scan, "torch", tensors, lengths=lengths)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(lti_scan, "torch", tensors, lengths=lengths)
    for name, value in got.items():
        assert torch.equal(value, plain[name]), name


def test_any_number_of_threads_gives_the_same_bits() -> None:
    tensors = single(steps=200, channels=150, complex=True)
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(results(lti_scan, "cpu", tensors))
    for other in runs[1:]:
        for name, value in other.items():
            assert torch.equal(value, runs[0][name]), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled, not interpreted")
def test_more_states_than_triton_takes_are_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["audiomamba_kernels.lti_scan"], "choose", lambda *_: "triton")
    tensors: dict[str, Any] = single(steps=4, n=257)
    y, _ = lti_scan(**tensors)
    assert torch.equal(y, lti_scan_chunked(*tensors.values())[0])


# What the reference means.


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_the_reference_passes_gradcheck(complex: bool, reverse: bool) -> None:
    def fn(*x: Tensor) -> Any:
        return lti_scan(
            *x[:7],
            initial_state=x[7],
            output_final_state=True,
            reverse=reverse,
            lengths=torch.tensor([4, 2]),
            backend="reference",
        )

    tensors = inputs(4, batch=2, channels=2, n=2, complex=complex)
    assert torch.autograd.gradcheck(fn, [x.requires_grad_() for x in tensors.values()])  # type: ignore[union-attr]


@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_it_is_the_selective_scan_with_constant_parameters(complex: bool, reverse: bool) -> None:
    x: dict[str, Any] = inputs(150, complex=complex)
    options: dict[str, Any] = {
        "output_final_state": True,
        "reverse": reverse,
        "lengths": torch.tensor([150, 0, 77]),
        "backend": "reference",
    }
    y, h = lti_scan(**x, **options)
    constant = {"delta": x["delta"].expand_as(x["u"])}
    y_selective, h_selective = selective_scan(**{**x, **constant}, **options)
    torch.testing.assert_close(y, y_selective)
    torch.testing.assert_close(h, h_selective)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_decays_whose_product_underflows_are_exact(backend: Any) -> None:
    """A product of decays is zero in float32 after 129 such steps; nothing may divide by it."""
    A, one = torch.full((1, 1), -16.0), torch.ones(1, 1)
    y, _ = lti_scan(torch.ones(1, 2048, 1), torch.full((1,), 0.05), A, one, one, backend=backend)
    expected = 0.05 / (1 - torch.exp(torch.tensor(-0.8)))
    torch.testing.assert_close(y[0, -1, 0], expected)


class Scan(torch.nn.Module):
    """The scan with options, for those who take modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, **tensors: Any) -> Any:
        return lti_scan(**tensors, **self.options)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled, not interpreted")
@pytest.mark.usefixtures("_small_tiles")
def test_what_the_kernels_would_copy_is_copied_where_the_compiler_sees_it() -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    scan, tensors = Scan(backend="triton", output_final_state=True), single(steps=20, channels=2)
    torch.compiler.reset()
    compiled = torch.compile(scan, fullgraph=True, backend=keep)
    for got, plain in zip(compiled(**tensors), scan(**tensors), strict=True):
        assert torch.equal(got, plain)
    (graph,) = graphs
    assert "contiguous" in {node.target for node in graph.graph.nodes}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_it_exports(backend: str) -> None:
    scan, tensors = Scan(backend=backend, output_final_state=True), single(steps=9, complex=True)
    exported = torch.export.export(scan, (), tensors).module()
    for got, plain in zip(exported(**tensors), scan(**tensors), strict=True):
        assert error(got, plain) < 1e-6


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_operator_is_registered_right(
    backend: str, complex: bool, request: pytest.FixtureRequest
) -> None:
    """Fake tensors, autograd and aliasing, as torch.compile and torch.export rely on them."""
    if backend == "triton":
        if torch.cuda.is_available():
            pytest.skip("the kernels are compiled, not interpreted")
        request.getfixturevalue("_small_tiles")
    tensors = single(steps=20, channels=1, n=2, complex=complex).values()
    leaves = tuple(x if x is None else x.requires_grad_() for x in tensors)
    torch.library.opcheck(lti_scan_op, (*leaves, torch.tensor([20, 13, 7]), True, backend))


@pytest.mark.parametrize("complex", BOTH, ids=["real", "complex"])
def test_the_operator_of_chunks_is_registered_right(complex: bool) -> None:
    x: dict[str, Any] = single(steps=12, complex=complex)
    maps = chunk_maps(x["delta"], x["A"], x["B"], x["C"], 4)
    tensors = (x["u"].permute(2, 0, 1), *maps, x["initial_state"])
    torch.library.opcheck(lti_chunks, tuple(v.detach().clone().requires_grad_() for v in tensors))


def test_memory_for_the_triton_kernels_is_copied_only_if_it_must_be() -> None:
    aligned = torch.zeros(2, 3, 48).mT
    assert as_rows(aligned) is aligned
    assert as_rows(aligned[:, :45]).data_ptr() == aligned.data_ptr()
    views = {
        "channels are contiguous": torch.zeros(2, 48, 3),
        "rows are not at multiples of 16": torch.zeros(2, 3, 45).mT,
        "the first row is not": torch.zeros(2, 3, 64).mT[:, 1:49],
        "the last row ends within 16": torch.zeros(2 * 3 * 48 - 3).as_strided(
            (2, 45, 3), (144, 1, 48)
        ),
    }
    for why, x in views.items():
        rows = as_rows(x)
        assert rows.data_ptr() != x.data_ptr(), why
        assert torch.equal(rows, x)
        assert as_rows(rows) is rows


def test_wrong_shapes_kinds_and_backends_are_refused() -> None:
    x: dict[str, Any] = inputs(4, complex=True)
    with pytest.raises(ValueError, match=r"delta has shape \(4,\); it must be \(5,\)"):
        lti_scan(**{**x, "delta": x["delta"][:4]})
    with pytest.raises(ValueError, match=r"initial_state has shape \(1, 5, 3\); it must be"):
        lti_scan(**{**x, "initial_state": x["initial_state"][:1]})
    with pytest.raises(ValueError, match=r"C is torch.float64; it must be complex as A"):
        lti_scan(**{**x, "C": x["C"].real})
    with pytest.raises(ValueError, match=r"D is torch.int64; it must be real"):
        lti_scan(**{**x, "D": torch.ones(5, dtype=torch.int64)})
    with pytest.raises(ValueError, match="backend is 'cuda'; choose None"):
        lti_scan(**x, backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="D is on meta; it must be on cpu"):
        lti_scan(**{**x, "D": x["D"].to("meta")})
    with pytest.raises(ValueError, match="needs at least one time step"):
        lti_scan(**{**x, "u": x["u"][:, :0]})
    with pytest.raises(ValueError, match="A has shape"):
        lti_scan(**{**x, "A": x["A"][0]})
    with pytest.raises(ValueError, match="lengths holds 5; each must be 0 to 4"):
        lti_scan(**x, lengths=torch.tensor([4, 5, 0]))
    with pytest.raises(ValueError, match="both given"):
        lti_scan(
            **{**x, "initial_state": None},
            lengths=torch.tensor([4, 4, 4]),
            cu_seqlens=torch.tensor([0, 4]),
        )
    if not torch.cuda.is_available():  # interpreted
        many: dict[str, Any] = single(steps=4, n=129, complex=True)
        with pytest.raises(ValueError, match=r"A has 129 complex states, 258 real numbers; .* 256"):
            lti_scan(**many, backend="triton")
    real: dict[str, Any] = inputs(4)
    with pytest.raises(ValueError, match=r"B is torch.complex128; it must be real"):
        lti_scan(**{**real, "B": rand(5, 3, complex=True)})
