"""Layers that look back: padding has no effect, and what is looked ahead at is not carried on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from audiomamba.encoder_config import EncoderConfig
from audiomamba.layers.bidirectional import InnerBidirectional, OuterBidirectional
from audiomamba.layers.convolution import ConvModule
from audiomamba.layers.encoder_layer import EncoderLayer
from audiomamba.layers.mamba import Mamba
from audiomamba.state import leaves
from audiomamba_kernels.ragged import valid

LAYERS: dict[str, Any] = {
    "Mamba": lambda: Mamba(6, d_state=4),
    "inner": lambda: InnerBidirectional(6, d_state=4),
    "outer": lambda: OuterBidirectional(6, d_state=4, selective=False),
    "convolution": lambda: ConvModule(6, 5, causal=False),
    "causal convolution": lambda: ConvModule(6, 4, causal=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_padding_has_no_effect(name: str) -> None:
    layer = LAYERS[name]().double()
    lengths = torch.tensor([9, 0, 4])
    x = torch.randn(3, 9, 6, dtype=torch.float64)
    bad = torch.where(valid(lengths, 9)[..., None], x, torch.nan).requires_grad_()
    y, _ = layer(bad, lengths=lengths)
    assert y.isfinite().all()
    alone, _ = layer(x[2:, :4])
    torch.testing.assert_close(y[2:, :4], alone)
    got = torch.autograd.grad(y[2:, :4].square().sum(), [bad, *layer.parameters()])
    expected = torch.autograd.grad(alone.square().sum(), list(layer.parameters()))
    assert got[0].isfinite().all()
    for a, b in zip(got[1:], expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("selective", [False, True])
def test_a_block_runs_from_the_last_valid_step(reverse: bool, selective: bool) -> None:
    layer = Mamba(6, d_state=4, selective=selective).double()
    x, lengths = torch.randn(2, 9, 6, dtype=torch.float64), torch.tensor([9, 4])
    y, state = layer(x, lengths=lengths, reverse=reverse)
    for i, n in enumerate((9, 4)):
        row = x[i : i + 1, :n]
        alone, after = layer(row.flip(1) if reverse else row)
        torch.testing.assert_close(y[i : i + 1, :n], alone.flip(1) if reverse else alone)
        for got, exact in zip(leaves(state), leaves(after), strict=True):
            torch.testing.assert_close(got[i : i + 1], exact)


@pytest.mark.parametrize("name", ["inner", "outer", "convolution"])
def test_the_state_is_that_before_what_is_looked_ahead_at(name: str) -> None:
    layer = LAYERS[name]().double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    whole, _ = layer(x)
    y, state = layer(x, ahead=3)
    torch.testing.assert_close(y, whole)
    for got, exact in zip(leaves(state), leaves(layer(x[:, :6])[1]), strict=True):
        torch.testing.assert_close(got, exact)


def test_chunks_of_a_layer_written_out() -> None:
    """No carried state: every chunk sees all that came before, and its look-ahead, afresh."""
    config = EncoderConfig(d_model=6, direction="outer", feed_forward=0, conv_kernel=5, dropout=0)
    layer = EncoderLayer(config, 0.0).double()
    mixer: Any = layer.mixer
    conv: Any = layer.conv
    x = torch.randn(1, 11, 6, dtype=torch.float64)
    state, before = None, x[:, :0]
    for start, kept, stop in [(0, 3, 5), (3, 6, 8), (6, 9, 11), (9, 11, 11)]:
        y, state = layer(x[:, start:stop], state, ahead=stop - kept)
        seen = layer.norm(x[:, :stop])
        ahead = mixer.forwards(seen)[0][:, start:]
        back = mixer.backwards(seen[:, start:].flip(1))[0].flip(1)
        h = x[:, start:stop] + mixer.out_proj(torch.cat([ahead, back], -1))
        both = torch.cat([before, h], dim=1)
        expected = (both + conv(both)[0])[:, start:]
        torch.testing.assert_close(y[:, : kept - start], expected[:, : kept - start])
        before = both[:, :kept]
