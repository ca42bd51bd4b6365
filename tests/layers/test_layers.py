"""Every layer keeps the one contract: cut anywhere and carried equals whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from audiomamba.config import Tier
from audiomamba.layers.attention import Attention
from audiomamba.layers.block import Block
from audiomamba.layers.mamba import Mamba
from audiomamba.layers.s4 import S4
from tests.contract import check_recurrent

LAYERS: dict[str, Any] = {
    "S6 real": lambda: Mamba(10, d_state=6),
    "S6 complex": lambda: Mamba(10, d_state=6, complex=True),
    "LTI real": lambda: Mamba(10, d_state=6, selective=False),
    "LTI complex": lambda: Mamba(10, d_state=6, selective=False, complex=True),
    "wide, narrow convolution": lambda: Mamba(10, expand=3, d_conv=2),
    "S4": lambda: S4(10, d_state=8),
    "attention": lambda: Attention(12, n_heads=3, context=9),
    "S4 + MLP": lambda: Block(10, Tier(mixer="s4", d_state=8)),
    "attention + MLP": lambda: Block(12, Tier(mixer="attention", n_heads=2, context=5, expand=1)),
    "Mamba block": lambda: Block(10, Tier(complex=True)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_cut_anywhere_and_carried_equals_whole(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    x = torch.randn(2, 19, 12 if "attention" in name else 10, dtype=torch.float64)
    check_recurrent(layer, x, layer.initial_state(2))


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    y, _ = layer(torch.randn(2, 19, 12 if "attention" in name else 10))
    y.square().sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize(
    "options", [{}, {"complex": True}, {"selective": False}, {"selective": False, "complex": True}]
)
def test_backends_agree_in_a_block(options: dict[str, bool], backend: Any) -> None:
    torch.manual_seed(0)
    layer, same = Mamba(8, **options).double(), Mamba(8, **options, backend=backend).double()
    same.load_state_dict(layer.state_dict())
    x = torch.randn(1, 140, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], same(x)[0])


def test_the_real_selective_block_has_the_parameters_of_mamba_ssm() -> None:
    """Names and shapes of `mamba_ssm.modules.mamba_simple.Mamba(d_model=48)`, version 2.3."""
    shapes = {name: tuple(p.shape) for name, p in Mamba(48).named_parameters()}
    assert shapes == {
        "A_log": (96, 16),
        "D": (96,),
        "in_proj.weight": (192, 48),
        "conv1d.weight": (96, 1, 4),
        "conv1d.bias": (96,),
        "x_proj.weight": (35, 96),
        "dt_proj.weight": (96, 3),
        "dt_proj.bias": (96,),
        "out_proj.weight": (48, 96),
    }


def test_initial_values_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    real, complex = Mamba(64), Mamba(64, complex=True)
    torch.testing.assert_close(real.A(), -torch.arange(1.0, 17).repeat(128, 1))
    torch.testing.assert_close(
        complex.A(), torch.complex(torch.tensor(-0.5), torch.arange(8.0)).repeat(128, 1)
    )
    for step in (
        torch.nn.functional.softplus(real.dt_proj.bias),
        Mamba(64, selective=False).log_dt.exp(),
    ):
        assert 1e-3 * 0.999 <= step.min() < 3e-3
        assert 0.03 < step.max() <= 0.1 * 1.001
    assert real.dt_proj.weight.abs().max() <= real.dt_rank**-0.5


def test_a_mamba_block_is_the_formula_written_out() -> None:
    """Figure 3 of the paper in other words: PyTorch's conv1d, a loop, no shared code."""
    torch.manual_seed(0)
    layer = Mamba(6, d_state=4).double()
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    u, z = layer.in_proj(x).chunk(2, -1)
    u = nn.functional.silu(layer.conv1d(nn.functional.pad(u.mT, (3, 0))).mT)
    dt, B, C = layer.x_proj(u).split([1, 4, 4], -1)
    delta = nn.functional.softplus(layer.dt_proj(dt))
    h, ys = torch.zeros(2, 12, 4, dtype=torch.float64), []
    for t in range(11):
        h = torch.exp(delta[:, t, :, None] * -layer.A_log.exp()) * h
        h = h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None]
        ys.append((h @ C[:, t, :, None])[..., 0] + layer.D * u[:, t])
    torch.testing.assert_close(
        layer(x)[0], layer.out_proj(torch.stack(ys, 1) * nn.functional.silu(z))
    )


def test_attention_without_a_window_is_causal_attention() -> None:
    torch.manual_seed(0)
    layer = Attention(8, n_heads=2, context=64).double()
    x = torch.randn(1, 20, 8, dtype=torch.float64)
    y = layer(x)[0]
    torch.testing.assert_close(y[:, :5], layer(x[:, :5])[0])
    narrow = Attention(8, n_heads=2, context=5).double()
    narrow.load_state_dict(layer.state_dict())
    torch.testing.assert_close(narrow(x)[0][:, :5], y[:, :5])
    assert not torch.allclose(narrow(x)[0][:, 10:], y[:, 10:])


def test_blocks_run_in_bfloat16_autocast_with_float32_state() -> None:
    torch.manual_seed(0)
    block = Block(16, Tier(mixer="lti", complex=True))
    x = torch.randn(2, 40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = block(x)
    assert y.dtype == torch.float32
    assert (state.conv.dtype, state.ssm.dtype) == (torch.float32, torch.complex64)
    torch.testing.assert_close(y, block(x)[0], rtol=0.05, atol=0.02)  # bfloat16 keeps 8 bits


def test_a_compiled_block_is_one_graph() -> None:
    torch.manual_seed(0)
    block = Block(16, Tier(mixer="lti", complex=True))
    explanation = torch._dynamo.explain(block)(torch.randn(2, 40, 16))
    assert explanation.graph_break_count == 0
