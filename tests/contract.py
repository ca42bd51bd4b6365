"""The two promises that every operation and every layer is held to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from audiomamba.state import leaves
from audiomamba_kernels.ragged import valid

Op = Callable[..., tuple[Tensor, Tensor | None]]
Layout = Literal["contiguous", "transposed", "strided", "expanded"]
Loss = Literal["both", "y", "final_state"]


# The inputs with a time axis, where they have three axes, and those that come in half precision.
IN_TIME = ("x", "u", "delta", "B", "C", "z")

# What errs more than its dtype does, for a GPU sums rounded terms (kernels/README.md says where). A
# cut to tf32 takes at most 2^-10 of a term. Outputs and the final state of bfloat16 products pass
# two roundings of 2^-8, gradients four. A sum over 256 states takes 32 steps of a tensor core, each
# of which cuts off what is below 2^-23.
WIDER = {
    "selective_scan, 5 to 16 complex states, half precision": {"dB": 2**-10, "dC": 2**-10},
    "lti_scan, bfloat16": {
        **dict.fromkeys(("y", "final_state"), 2**-7),
        **dict.fromkeys(("du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dinitial_state"), 2**-6),
    },
    "lti_scan, 256 numbers, float32": dict.fromkeys(("y", "du", "dz"), 2**-18),
}


def check_kernel(
    op: Op,
    backend: str,
    tensors: Mapping[str, Tensor | None],
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    dtypes: Mapping[str, torch.dtype] | None = None,
    layout: Layout = "contiguous",
    loss: Loss = "both",
    cuts: Sequence[int] = (),
    against: str = "reference",
    wider: Mapping[str, float] | None = None,
    **options: Any,
) -> None:
    """Hold a backend to the reference's own error.

    Against the reference in float64 on the same numbers, each result may err twice as much as the
    reference's does, plus `rounding` of its own dtype: what is float32 where inputs are of half
    precision is held to float32.

    Args:
        op: The public function.
        backend: What is checked.
        tensors: Its tensor arguments, None where absent.
        dtype: Of everything if float64; else of the inputs IN_TIME, the others are float32.
        device: Where all runs.
        dtypes: Exceptions to `dtype`.
        layout: How inputs and gradients lie in memory.
        loss: Which results have a gradient.
        cuts: Where the backend's run is cut, the state being carried; the reference's is whole.
        against: Another backend in the place of the reference, where a loop would take too long.
        wider: Results that may err more, and how much.
        options: Other arguments. With `lengths` all padding is filled with NaN and infinities.
    """
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    lengths = options.get("lengths")
    narrow: dict[str, Tensor | None] = {}
    for name, x in tensors.items():
        wanted = dtype if dtype == torch.float64 or name in IN_TIME else torch.float32
        x = _to(x, (dtypes or {}).get(name, wanted))
        if x is not None:
            x = x.to(device)
            x = _lay(_poisoned(x, lengths) if _in_time(name, x) else x, layout)
        narrow[name] = x
    wide = {name: _to(x, torch.float64) for name, x in narrow.items()}
    how: dict[str, Any] = {"layout": layout, "loss": loss, "dy_dtype": dtype, **options}
    exact = results(op, against, wide, **how)
    plain = results(op, against, narrow, **how)
    got = results(op, backend, narrow, cuts=cuts, **how)
    hold(got, plain, exact, wider or {})


def rounding(dtype: torch.dtype) -> float:
    """Return what a result of a dtype may err where a plain run happens to be exact.

    Sixteen roundings of float32, for sums are taken in another order; one of a half precision, in
    which two gradients may meet; in float64 1e-13, to which the "exact" loop itself is known.
    """
    if dtype in (torch.bfloat16, torch.float16):
        return torch.finfo(dtype).eps / 2
    if dtype in (torch.float64, torch.complex128):
        return 1e-13
    return 16 * torch.finfo(torch.float32).eps


def hold(
    got: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    wider: Mapping[str, float],
) -> None:
    """Hold each result to twice the error of a plain run, and `rounding` or what `wider` says.

    Of a gradient that is one number, a sum over all steps which may nearly cancel, half of the
    digits that it was summed with are asked for: chance decides how many are left.
    """
    assert got.keys() == exact.keys()
    for name in exact:
        assert plain[name].isfinite().all(), f"{name} of the reference is not finite"
        assert got[name].dtype == plain[name].dtype, name
        assert got[name].shape == plain[name].shape, name
        dtype = got[name].dtype
        allowed = 2 * error(plain[name], exact[name]) + wider.get(name, rounding(dtype))
        if got[name].numel() == 1 and name.startswith("d"):
            summed = torch.promote_types(dtype, torch.float32)
            allowed = max(allowed, torch.finfo(summed).eps ** 0.5)
        found = error(got[name], exact[name])
        assert found <= allowed, f"{name}: {found} > {allowed}"


def results(
    op: Op,
    backend: str,
    tensors: Mapping[str, Tensor | None],
    *,
    layout: Layout = "contiguous",
    loss: Loss = "both",
    cuts: Sequence[int] = (),
    dy_dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Run an op; return y, the final state and all gradients of a loss.

    The gradients that the results are given are rounded to `dy_dtype`, so that runs in another
    dtype get the same numbers.
    """
    inputs = {k: v if v is None else v.detach().requires_grad_() for k, v in tensors.items()}
    options["backend"] = backend
    if cuts:
        y, final_state = _run_in_pieces(op, inputs, cuts, **options)
    else:
        y, final_state = op(**inputs, **options, output_final_state=loss != "y")
    outputs = {"y": y}
    if loss != "y":
        assert final_state is not None
        outputs["final_state"] = final_state
    # Irregular numbers that every run of the same shapes gets.
    random = torch.Generator().manual_seed(1)
    weights = {}
    for name, value in outputs.items():
        weight = torch.randn(value.shape, dtype=torch.float64, generator=random)
        if value.is_complex():
            weight = torch.complex(weight, weight.flip(0) - 1)
        rounded = _to(weight, dy_dtype or value.dtype)
        assert rounded is not None
        weights[name] = _lay(rounded.to(value.device, value.dtype), layout)
    weights["y"] = _poisoned(weights["y"], options.get("lengths"))
    used = [name for name in outputs if loss in ("both", name)]
    torch.autograd.backward([outputs[n] for n in used], [weights[n] for n in used])
    out = {name: value.detach() for name, value in outputs.items()}
    for name, x in inputs.items():
        if x is not None:
            assert x.grad is not None or loss != "both", f"no gradient for {name}"
            out[f"d{name}"] = torch.zeros_like(x) if x.grad is None else x.grad
    return out


def _run_in_pieces(
    op: Op, inputs: Mapping[str, Tensor | None], cuts: Sequence[int], **options: Any
) -> tuple[Tensor, Tensor]:
    """Run the op piece by piece, in the order of time that it is told, and carry the state."""
    inputs = dict(inputs)
    steps = next(x for x in inputs.values() if x is not None).shape[1]
    pieces = list(itertools.pairwise((0, *cuts, steps)))
    state, lengths = inputs.pop("initial_state", None), options.pop("lengths", None)
    ys = {}
    for start, stop in reversed(pieces) if options.get("reverse") else pieces:
        part = {
            name: x[:, start:stop] if x is not None and _in_time(name, x) else x
            for name, x in inputs.items()
        }
        if lengths is not None:
            options["lengths"] = (lengths - start).clamp(0, stop - start)
        ys[start], state = op(**part, initial_state=state, output_final_state=True, **options)
    assert state is not None
    return torch.cat([ys[start] for start, _ in pieces], dim=1), state


def error(x: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact result."""
    wide = torch.complex128 if exact.is_complex() else torch.float64
    return float((x.to(wide) - exact.to(wide)).norm() / (exact.to(wide).norm() + 1e-30))


def _in_time(name: str, x: Tensor) -> bool:
    return name in IN_TIME and x.dim() == 3


def _poisoned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Fill the padding of x (batch, time, channels), in each channel with another evil."""
    if lengths is None:
        return x
    evil = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64, device=x.device)
    evil = evil.repeat(x.shape[2])[: x.shape[2]].to(x.dtype)
    return torch.where(valid(lengths, x.shape[1])[..., None], x, evil)


def _lay(x: Tensor, layout: Layout) -> Tensor:
    """Return x, or for "expanded" its first row, in another memory layout."""
    if layout == "transposed":
        return x.mT.contiguous().mT if x.dim() > 1 else x
    if layout == "strided":
        return x.repeat_interleave(3, dim=-1)[..., 1::3]
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x.contiguous()


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Complex tensors have float32 and float64 parts only."""
    if x is None or not x.is_complex():
        return x if x is None else x.to(dtype)
    return x.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def check_recurrent(
    layer: Callable[[Tensor, Any], tuple[Tensor, Any]],
    x: Tensor,
    initial_state: Any,
    period: int = 1,
) -> None:
    """Hold a layer, in float64, to its contract on x (batch, time, ...): however it is cut, the
    result is the same.

    Outputs, final states, gradients (through the carried state) and causality; states keep shape
    and dtype, and old states stay valid.
    """
    steps = x.shape[1]
    differentiable = x.is_floating_point()
    whole_x = x.detach().clone().requires_grad_(differentiable)
    whole, final = layer(whole_x, None)
    before = [leaf.clone() for leaf in leaves(initial_state)]
    for cuts in (
        (period,),
        (steps - period,),
        tuple(range(period, steps, period)),
        (2 * period, 3 * period),
    ):
        cut_x = x.detach().clone().requires_grad_(differentiable)
        state, ys = initial_state, []
        for start, stop in zip((0, *cuts), (*cuts, steps), strict=True):
            y, state = layer(cut_x[:, start:stop], state)
            ys.append(y)
        torch.testing.assert_close(torch.cat(ys, dim=1), whole, rtol=1e-9, atol=1e-9)
        for got, exact, first in zip(leaves(state), leaves(final), before, strict=True):
            assert got.shape == exact.shape == first.shape
            assert got.dtype == exact.dtype == first.dtype
            torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)
        if differentiable:
            (grad_whole,) = torch.autograd.grad(whole.square().sum(), whole_x, retain_graph=True)
            (grad_cut,) = torch.autograd.grad(torch.cat(ys, dim=1).square().sum(), cut_x)
            torch.testing.assert_close(grad_cut, grad_whole, rtol=1e-8, atol=1e-8)
    for leaf, copy in zip(leaves(initial_state), before, strict=True):
        assert torch.equal(leaf, copy), "a state was written in place"
    check_causal(lambda v: layer(v, None)[0], x)


def check_causal(fn: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Change the input from the middle on: before it, y stays bit-equal; after it, y changes."""
    middle = x.shape[1] // 2
    other = x.clone()
    other[:, middle:] = (
        1 - other[:, middle:] if x.is_floating_point() else (other[:, middle:] + 1) % 7
    )
    a, b = fn(x), fn(other)
    assert torch.equal(a[:, :middle], b[:, :middle])
    assert not torch.equal(a[:, middle:], b[:, middle:])
