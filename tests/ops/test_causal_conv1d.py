"""Every backend of the causal convolution against the float64 reference."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from audiomamba_kernels import causal_conv1d
from audiomamba_kernels.causal_conv1d import cpu
from audiomamba_kernels.causal_conv1d.op import causal_conv1d_backward, causal_conv1d_op
from tests.contract import check_kernel, error, results
from tests.covering import covering
from tests.ops.conv_cases import BOTH, LAYOUTS, OPTIONS, check, inputs, rand

# In the interpreter NumPy computes, and warns of, what stands in steps that are then masked.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")

INTERPRETED = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels are compiled, not interpreted"
)
ON_THE_CPU = pytest.mark.parametrize(
    "backend", ["reference", "torch", "cpu", pytest.param("triton", marks=INTERPRETED)]
)

CASES = covering(
    {
        "steps": (1, 2, 3, 5, 63, 64, 65),
        "width": (1, 2, 3, 4, 6),
        "channels": (1, 5),
        "dtype": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
        **OPTIONS,
        "layout": LAYOUTS,
        "cut": BOTH,
    }
)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_backend_errs_no_more_than_the_reference(case: dict[str, Any], backend: str) -> None:
    check(backend, case)


# Triton's interpreter needs half a second for what a GPU does in microseconds. Its kernels are
# others where channels are contiguous. It cuts bfloat16 off, where a GPU rounds.
INTERPRETED_DTYPES = (torch.float32, torch.float16)
ROWS = {"steps": (1, 2, 3, 5, 65), "width": (1, 2, 3, 4), "channels": (1, 2)}
CHANNELS_LAST = {"steps": (1, 2, 5, 11), "width": (1, 2, 3, 5), "channels": (2, 3)}
INTERPRETER_CASES = [
    *covering({**ROWS, "dtype": INTERPRETED_DTYPES, **OPTIONS, "layout": LAYOUTS[1:3]}),
    *covering({**CHANNELS_LAST, "dtype": INTERPRETED_DTYPES, **OPTIONS, "layout": LAYOUTS[:1]}),
]


@INTERPRETED
@pytest.mark.parametrize("case", INTERPRETER_CASES, ids=range(len(INTERPRETER_CASES)))
def test_the_triton_kernels_interpreted_err_no_more_than_the_reference(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiomamba_kernels.causal_conv1d import triton_conv

    monkeypatch.setattr(triton_conv, "MIN_STEPS", 5)  # of a chunk, so that there are several
    check("triton", case)


@INTERPRETED
@pytest.mark.parametrize("ragged", BOTH, ids=["whole", "ragged"])
def test_results_lie_in_memory_as_the_input_does(ragged: bool) -> None:
    """And as those are told who see no values, torch.compile and torch.export."""
    lengths = torch.tensor([9, 0]) if ragged else None
    weight, bias = rand(4, 3).float(), rand(4).float()
    large = rand(2, 9, 12).float()
    rows, channels_last = (64, 1, 16), (36, 4, 1)
    for x, expected in (
        (large[..., 8:].contiguous(), channels_last),
        (large[..., 8:], channels_last),
        (large[..., 8:].mT.contiguous().mT, rows),
        (large[..., ::3], rows),
    ):
        leaf = x.detach().requires_grad_()
        y, _ = causal_conv1d(leaf, weight, bias, lengths=lengths, backend="triton")
        (dx,) = torch.autograd.grad(y.sum(), leaf)  # from a dy that has no layout
        assert y.stride() == dx.stride() == expected
        (exact,) = torch.autograd.grad(causal_conv1d(leaf, weight, lengths=lengths)[0].sum(), leaf)
        assert error(dx, exact) < 1e-6
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            options = (mode.from_tensor(x), weight, bias, None, lengths, True, False)
            fake_y, _ = causal_conv1d_op(*options, "triton")
            fake_dx, *_ = causal_conv1d_backward(fake_y, None, *options, False, "triton")
        assert fake_y.stride() == fake_dx.stride() == expected


@INTERPRETED
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_a_row_of_many_tiles_and_chunks(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiomamba_kernels.causal_conv1d import triton_conv

    monkeypatch.setattr(triton_conv, "FORWARD_ROWS", 32)
    monkeypatch.setattr(triton_conv, "BACKWARD_ROWS", 32)
    monkeypatch.setattr(triton_conv, "PROGRAMS", 1)
    monkeypatch.setattr(triton_conv, "MAX_TILES", 2)
    assert triton_conv._tiling(400 // 4, 1, 32) == (32, 2, 2)
    tensors = inputs(400, batch=1, channels=1)
    how: dict[str, Any] = {"activation": "silu", "reverse": reverse}
    check_kernel(causal_conv1d, "triton", tensors, torch.float32, **how)


@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
@pytest.mark.parametrize("steps", [cpu.BLOCK - 3, cpu.BLOCK - 1, 2 * cpu.BLOCK + 1])
def test_a_row_of_many_blocks(steps: int, reverse: bool) -> None:
    lengths = torch.tensor([steps, cpu.BLOCK - 3, 1])
    how: dict[str, Any] = {"activation": "silu", "reverse": reverse, "against": "torch"}
    check_kernel(causal_conv1d, "cpu", inputs(steps), torch.float64, **how)
    check_kernel(causal_conv1d, "cpu", inputs(steps), torch.float64, lengths=lengths, **how)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_of_many_tasks(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SLICE", 100)
    torch.set_num_threads(threads)
    check_kernel(causal_conv1d, "cpu", inputs(50, channels=7), torch.float64)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@settings(max_examples=10, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 19), max_size=4),
    reverse=st.booleans(),
    lengths=st.none() | st.lists(st.integers(0, 20), min_size=3, max_size=3),
)
def test_cut_anywhere_and_carried_equals_whole(
    backend: str, cuts: set[int], reverse: bool, lengths: list[int] | None
) -> None:
    torch.manual_seed(0)
    check_kernel(
        causal_conv1d,
        backend,
        inputs(20),
        torch.float64,
        cuts=sorted(cuts),
        reverse=reverse,
        lengths=None if lengths is None else torch.tensor(lengths),
        activation="silu",
    )


@INTERPRETED
@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_interpreted_cut_and_carried_equals_whole(reverse: bool) -> None:
    check_kernel(
        causal_conv1d,
        "triton",
        inputs(20, channels=1),
        torch.float32,
        cuts=(2, 11),
        reverse=reverse,
        lengths=torch.tensor([20, 0, 9]),
        activation="silu",
    )


@ON_THE_CPU
def test_slices_of_a_larger_tensor_are_read_where_they_stand(backend: str) -> None:
    """As the projection before the convolution leaves them: rows at odd places, a part of each."""
    for large in (rand(2, 4, 37).mT, rand(2, 4, 48).mT[:, :37], rand(2, 37, 4), rand(4, 2, 37)):
        large = large.permute(1, 2, 0) if large.shape[0] == 4 else large
        x = large.float()[..., 1:3]
        assert x.shape == (2, 37, 2)
        tensors = {**inputs(37, batch=2, channels=2), "x": x}
        tensors = {name: v.float() for name, v in tensors.items()}
        plain = {**tensors, "x": x.contiguous()}
        got = results(causal_conv1d, backend, tensors)
        for name, value in results(causal_conv1d, "torch", plain).items():
            assert error(got[name], value) < 1e-6, name


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inputs_may_differ_in_dtype(backend: str, dtype: torch.dtype) -> None:
    dtypes = {"x": dtype, "weight": torch.bfloat16, "bias": torch.float16}
    dtypes["initial_state"] = torch.bfloat16
    floor_of = torch.bfloat16 if dtype == torch.float32 else torch.float64
    check_kernel(causal_conv1d, backend, inputs(40), floor_of, dtypes=dtypes)


@pytest.mark.parametrize("backend", ["reference", "cpu", "torch"])
def test_rows_do_not_meet(backend: Any) -> None:
    """Neither in another order, nor when one is NaN."""
    tensors = inputs(65)
    lengths, order = torch.tensor([65, 64, 3]), torch.tensor([2, 0, 1])
    y, h = causal_conv1d(**tensors, lengths=lengths, output_final_state=True, backend=backend)
    for name in ("x", "initial_state"):
        tensors[name] = tensors[name][order]
        tensors[name][1] = torch.nan
    y_other, h_other = causal_conv1d(
        **tensors, lengths=lengths[order], output_final_state=True, backend=backend
    )
    assert h is not None
    assert h_other is not None
    assert torch.equal(y_other[::2], y[order][::2])
    assert torch.equal(h_other[::2], h[order][::2])
    assert y_other[1].isnan().all()


# What the reference means.


@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [None, [5, 2]], ids=["whole", "ragged"])
def test_the_reference_passes_gradcheck(lengths: list[int] | None, reverse: bool) -> None:
    def fn(*x: Tensor) -> Any:
        return causal_conv1d(
            *x[:3],
            activation="silu",
            initial_state=x[3],
            output_final_state=True,
            reverse=reverse,
            lengths=None if lengths is None else torch.tensor(lengths),
            backend="reference",
        )

    tensors = inputs(5, batch=2, channels=2).values()
    assert torch.autograd.gradcheck(fn, [x.requires_grad_() for x in tensors])


def test_the_reference_equals_torch_conv1d() -> None:
    x, weight, bias = rand(2, 33, 5), rand(5, 4), rand(5)
    exact = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=3, groups=5)
    y, _ = causal_conv1d(x, weight, bias, backend="reference")
    torch.testing.assert_close(y, exact[..., :33].mT)


@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_ragged_rows_are_rows_of_their_own(reverse: bool) -> None:
    lengths, tensors = [7, 0, 2], inputs(7)
    options: dict[str, Any] = {"reverse": reverse, "backend": "reference", "activation": "silu"}
    options["output_final_state"] = True
    y, h = causal_conv1d(**tensors, lengths=torch.tensor(lengths), **options)
    packed = {
        **tensors,
        "x": torch.cat([tensors["x"][i, :l] for i, l in enumerate(lengths)])[None],
    }
    cu_seqlens = torch.tensor([0, 7, 7, 9])
    y_packed, h_packed = causal_conv1d(**packed, cu_seqlens=cu_seqlens, **options)
    assert y_packed.shape == (1, 9, 5)
    assert h is not None
    assert h_packed is not None
    assert torch.equal(h_packed, h)
    for i, length in enumerate(lengths):
        assert not y[i, length:].any()
        assert torch.equal(y_packed[0, cu_seqlens[i] : cu_seqlens[i + 1]], y[i, :length])
        row = {k: tensors[k][i : i + 1] for k in ("x", "initial_state")}
        if length == 0:
            assert torch.equal(h[i], row["initial_state"][0])
            continue
        row = {**tensors, **row, "x": row["x"][:, :length]}
        y_row, h_row = causal_conv1d(**row, **options)
        assert h_row is not None
        assert torch.equal(y[i, :length], y_row[0])
        assert torch.equal(h[i], h_row[0])
        if reverse:
            flipped = {**options, "reverse": False}
            y_flipped, h_flipped = causal_conv1d(**{**row, "x": row["x"].flip(1)}, **flipped)
            assert torch.equal(y_row, y_flipped.flip(1))
            assert torch.equal(h_row, h_flipped)  # type: ignore[arg-type]  # asked for


class Convolution(torch.nn.Module):
    """The convolution with options, for those who take modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        initial_state: Tensor,
        lengths: Tensor | None = None,
    ) -> Any:
        options = {**self.options, "activation": "silu", "initial_state": initial_state}
        return causal_conv1d(x, weight, bias, lengths=lengths, **options)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("loss", ["both", "y", "final_state"])
def test_it_compiles_into_one_graph_for_all_lengths(backend: Any, loss: Any) -> None:
    torch.compiler.reset()
    lengths = torch.tensor([9, 0, 4]) if loss == "both" else None
    graphs = []

    def count(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, example_inputs)

    def compiled(*, backend: str, output_final_state: bool, **x: Any) -> Any:
        module = Convolution(backend=backend, output_final_state=output_final_state, reverse=True)
        return torch.compile(module, fullgraph=True, backend=count)(**x)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    for steps in (9, 12, 30):
        tensors = {k: v.float() for k, v in inputs(steps).items()}
        options: dict[str, Any] = {"lengths": lengths, "loss": loss}
        plain = results(causal_conv1d, backend, tensors, **options, reverse=True, activation="silu")
        got = results(compiled, backend, tensors, **options)
        for name in plain:
            assert error(got[name], plain[name]) < 1e-6, name
    assert len(graphs) <= 2  # one for the first length, one for any


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_it_exports(backend: Any) -> None:
    module = Convolution(backend=backend, output_final_state=True)
    steps = torch.export.Dim("steps", min=4, max=4096)
    shapes = {"x": {1: steps}, "weight": None, "bias": None, "initial_state": None}
    exported = torch.export.export(module, (), inputs(9), dynamic_shapes=shapes).module()
    other = inputs(50)
    for got, plain in zip(exported(**other), module(**other), strict=True):
        torch.testing.assert_close(got, plain)


@pytest.mark.parametrize("reverse", BOTH, ids=["forward", "reverse"])
def test_the_operators_are_registered_right(reverse: bool) -> None:
    """Fake tensors, autograd and aliasing, as torch.compile and torch.export rely on them."""
    lengths = torch.tensor([20, 0, 7])
    x, weight, bias, state = (v.requires_grad_() for v in inputs(20).values())
    torch.library.opcheck(causal_conv1d_op, (x, weight, bias, state, lengths, True, reverse, "cpu"))
    torch.library.opcheck(causal_conv1d_op, (x, weight, None, None, None, False, reverse, "cpu"))
    constants = (x.detach(), weight.detach(), bias.detach(), state.detach(), None, True, reverse)
    for dfinal, dstate in ((rand(3, 3, 5), True), (None, False)):
        torch.library.opcheck(
            causal_conv1d_backward, (rand(3, 20, 5), dfinal, *constants, dstate, "cpu")
        )


def test_wrong_shapes_kinds_and_backends_are_refused() -> None:
    x: dict[str, Any] = inputs(4)
    with pytest.raises(ValueError, match=r"weight has shape \(5,\); it must be \(5, width\)"):
        causal_conv1d(**{**x, "weight": x["weight"][:, 0]})
    with pytest.raises(ValueError, match=r"bias has shape \(1, 5\); it must be \(5,\)"):
        causal_conv1d(**{**x, "bias": x["bias"][None]})
    with pytest.raises(ValueError, match=r"initial_state has shape .* it must be \(3, 3, 5\)"):
        causal_conv1d(**{**x, "initial_state": x["x"]})
    with pytest.raises(ValueError, match=r"x is torch\.int64"):
        causal_conv1d(**{**x, "x": x["x"].long()})
    with pytest.raises(ValueError, match="needs at least one time step"):
        causal_conv1d(**{**x, "x": x["x"][:, :0]})
    with pytest.raises(ValueError, match=r"bias is torch\.int64; it must be real"):
        causal_conv1d(**{**x, "bias": x["bias"].long()})
    with pytest.raises(ValueError, match="bias is on meta; it must be on cpu"):
        causal_conv1d(**{**x, "bias": x["bias"].to("meta")})
    with pytest.raises(ValueError, match="activation is 'relu'"):
        causal_conv1d(**x, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lengths holds 5; each must be 0 to 4"):
        causal_conv1d(**x, lengths=torch.tensor([4, 5, 0]))
    ragged: dict[str, Any] = {
        "lengths": torch.tensor([4]),
        "cu_seqlens": torch.tensor([0, 1, 2, 4]),
    }
    with pytest.raises(ValueError, match="both given"):
        causal_conv1d(**{**x, "x": x["x"][:1]}, **ragged)
    with pytest.raises(ValueError, match="backend is 'cuda'; choose None"):
        causal_conv1d(**x, backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'triton' cannot run: x is"):
        causal_conv1d(**x, backend="triton")


@INTERPRETED
def test_a_filter_too_wide_for_triton_is_refused() -> None:
    x: dict[str, Any] = {name: v.float() for name, v in inputs(4, width=6).items()}
    with pytest.raises(ValueError, match="'triton' cannot run: width 6"):
        causal_conv1d(**x, backend="triton")


def test_a_backend_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = sys.modules["audiomamba_kernels.backend"]
    monkeypatch.setitem(backend._INSTALLED, "numba", False)
    x: dict[str, Any] = inputs(4)
    with pytest.raises(ValueError, match="'cpu' cannot run: numba is not installed"):
        causal_conv1d(**x, backend="cpu")
    assert torch.equal(causal_conv1d(**x)[0], causal_conv1d(**x, backend="torch")[0])
