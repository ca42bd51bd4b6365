"""The encoder on a GPU, by the Triton kernels.

With DEVICE "cpu" all but the graphs runs without a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba import EncoderConfig, MambaEncoder
from audiomamba_kernels.ragged import valid
from tests.contract import error

DEVICE = "cuda"
ON_GPU = DEVICE == "cuda"
BACKEND: Any = "triton" if ON_GPU else "torch"
pytestmark = [pytest.mark.gpu] if ON_GPU else []

SMALL = EncoderConfig(
    d_input=5, d_model=16, n_layers=2, d_state=8, subsampling=2, feed_forward=2, conv_kernel=5
)
STEPS = 150  # more than one chunk of the scans
LENGTHS = torch.tensor([STEPS, 1, 0, 131, 3, 64])
MIXERS = (("s6", False), ("s6", True), ("lti", False))
KINDS = [
    {"direction": direction, "mixer": mixer, "complex": complex}
    for direction in ("causal", "inner", "outer")
    for mixer, complex in MIXERS
]
# Of norms, in float32: some hundred roundings in sequence; gradients are sums that partly cancel.
FORWARD, BACKWARD = 1e-5, 1e-4

every_kind = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values()))
)


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Any:
    """cuDNN's convolutions cut it to tf32 unless told."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def build(kind: dict[str, Any], device: str = DEVICE, backend: Any = BACKEND) -> MambaEncoder:
    """Return an encoder with the same weights everywhere."""
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, dropout=0.0, **kind)
    return MambaEncoder(config, backend=backend).to(device)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return features, their lengths, and a gradient of what comes out."""
    x, dy = torch.randn(6, STEPS, 5), torch.randn(6, STEPS // 2, 16)
    return x.to(DEVICE), LENGTHS.to(DEVICE), dy.to(DEVICE)


def evil(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.where(valid(lengths, x.shape[1])[..., None], x, torch.nan)


def results(encoder: Any, x: Tensor, lengths: Tensor | None, dy: Tensor) -> list[Tensor]:
    """Return y, then gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y, _ = encoder(x, lengths)
    return [y.detach(), *torch.autograd.grad(y, [x, *encoder.parameters()], dy)]


def hold(encoder: MambaEncoder, got: list[Tensor], wanted: list[Tensor]) -> None:
    names = ["y", "x", *(name for name, _ in encoder.named_parameters())]
    for name, a, b in zip(names, got, wanted, strict=True):
        found = error(a.cpu(), b.cpu())
        assert found <= (FORWARD if name == "y" else BACKWARD), f"{name}: {found}"


@every_kind
def test_a_row_of_a_padded_batch_is_as_if_alone(kind: dict[str, Any]) -> None:
    encoder = build(kind)
    x, lengths, dy = inputs()
    got = results(encoder, evil(x, lengths), lengths, evil(dy, lengths // 2))
    wanted = [torch.zeros_like(a) for a in got]
    for row, n in enumerate(LENGTHS.tolist()):
        if n >= 2:
            y, dx, *rest = results(encoder, x[row : row + 1, :n], None, dy[row : row + 1, : n // 2])
            wanted[0][row, : n // 2], wanted[1][row, :n] = y[0], dx[0]
            for total, part in zip(wanted[2:], rest, strict=True):
                total += part
    assert not got[0][~valid(lengths // 2, STEPS // 2)].any()
    assert not got[1][~valid(lengths, STEPS)].any()
    hold(encoder, got, wanted)


@every_kind
def test_it_gives_what_the_cpu_gives(kind: dict[str, Any]) -> None:
    encoder, same = build(kind), build(kind, "cpu", "torch")
    x, lengths, dy = inputs()
    wanted = results(same.double(), x.cpu().double(), LENGTHS, dy.cpu().double())
    hold(encoder, results(encoder, x, lengths, dy), wanted)


@every_kind
def test_bfloat16_autocast(kind: dict[str, Any]) -> None:
    encoder = build(kind)
    x, lengths, dy = inputs()
    exact, *_ = results(encoder, x, lengths, dy)
    with torch.autocast(DEVICE, torch.bfloat16):
        y, *gradients = results(encoder, evil(x, lengths), lengths, dy)
    assert y.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Some ten roundings in sequence.
    assert error(y, exact) < 16 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(("mixer", "complex"), MIXERS)
@torch.no_grad()
def test_a_causal_stream_in_uneven_pieces_equals_the_whole(mixer: str, complex: bool) -> None:
    encoder = build({"direction": "causal", "mixer": mixer, "complex": complex})
    x, _, _ = inputs()
    state, ys = None, []
    for start, stop in itertools.pairwise([0, 0, 1, 2, 5, 70, 71, 140, STEPS]):
        y, state = encoder.stream(x[:, start:stop], state)
        ys.append(y)
    assert error(torch.cat(ys, dim=1), encoder(x)[0]) <= FORWARD


@pytest.mark.skipif(not ON_GPU, reason="graphs are CUDA's")
# torch's own warm-up leaves a graph behind, of another stream, and warns of it.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
@every_kind
def test_it_is_recorded_as_a_cuda_graph(kind: dict[str, Any]) -> None:
    """With fixed shapes; other features and lengths are replayed, forward and backward."""
    encoder = build(kind)
    x, lengths, dy = inputs()
    wanted = results(encoder, x, lengths, dy)
    sample = torch.zeros_like(x).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(encoder, (sample, torch.full_like(lengths, STEPS)))
    for _ in range(2):
        hold(encoder, results(graphed, x, lengths, dy), wanted)
