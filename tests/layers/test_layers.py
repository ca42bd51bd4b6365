"""Every layer keeps the one contract: cut anywhere and carried equals whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from audiomamba.config import Tier
from audiomamba.layers.attention import Attention, rotate
from audiomamba.layers.block import Block
from audiomamba.layers.mamba import Mamba
from audiomamba.layers.s4 import S4
from audiomamba.state import leaves
from audiomamba_kernels import lti_scan
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


@pytest.mark.parametrize("name", LAYERS)
def test_layers_train_in_bfloat16_autocast_with_float32_state(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x = torch.randn(2, 40, 12 if "attention" in name else 10, requires_grad=True)
    exact, _ = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x, layer.initial_state(2))
    y.float().square().sum().backward()
    assert x.grad is not None
    for got, first in zip(leaves(state), leaves(layer.initial_state(2)), strict=True):
        assert got.dtype == first.dtype
    error = (y - exact).norm() / exact.norm()
    assert error < 4 * torch.finfo(torch.bfloat16).eps  # a handful of roundings in sequence


def test_the_complex_selective_block_is_a_rotation_written_out() -> None:
    """Conjugate pairs as real 2 x 2 rotations, 2 Re(C h) as a dot product; no complex number."""
    torch.manual_seed(0)
    layer = Mamba(6, d_state=4, complex=True).double()
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    u, z = layer.in_proj(x).chunk(2, -1)
    u = nn.functional.silu(layer.conv1d(nn.functional.pad(u.mT, (3, 0))).mT)
    dt, B, C = layer.x_proj(u).split([1, 4, 4], -1)
    delta = nn.functional.softplus(layer.dt_proj(dt))
    re, im, ys = torch.zeros(2, 12, 2).double(), torch.zeros(2, 12, 2).double(), []
    for t in range(11):
        d = delta[:, t, :, None]
        radius, angle = torch.exp(-d * layer.A_log.exp()), d * layer.A_imag
        gain = d * u[:, t, :, None]
        re, im = (
            radius * (angle.cos() * re - angle.sin() * im) + gain * B[:, t, None, 0::2],
            radius * (angle.sin() * re + angle.cos() * im) + gain * B[:, t, None, 1::2],
        )
        y = 2 * (C[:, t, None, 0::2] * re - C[:, t, None, 1::2] * im).sum(-1)
        ys.append(y + layer.D * u[:, t])
    expected = layer.out_proj(torch.stack(ys, 1) * nn.functional.silu(z))
    torch.testing.assert_close(layer(x)[0], expected)


def test_s4_is_the_convolution_with_the_kernel_of_s4d() -> None:
    """K[t] = 2 Re sum_n C_n (exp(delta A_n) - 1) / A_n exp(t delta A_n), by an FFT."""
    torch.manual_seed(0)
    layer, steps = S4(6, d_state=8).double(), 50
    start = torch.complex(torch.tensor(-0.5), torch.pi * torch.arange(4.0)).to(torch.complex128)
    delta = layer.log_dt.exp()[:, None]
    A = torch.complex(-layer.A_log.exp(), layer.A_imag)
    torch.testing.assert_close(A, start.expand(6, 4), rtol=1e-6, atol=1e-6)
    terms = torch.exp(torch.arange(steps)[:, None, None] * delta * A)
    gain = torch.view_as_complex(layer.C) * (torch.exp(delta * A) - 1) / A
    kernel = 2 * (gain * terms).sum(-1).real  # (steps, channels)
    x = torch.randn(2, steps, 6, dtype=torch.float64)
    product = torch.fft.rfft(x, 2 * steps, dim=1) * torch.fft.rfft(kernel, 2 * steps, dim=0)
    y = torch.fft.irfft(product, 2 * steps, dim=1)[:, :steps] + layer.D * x
    expected = nn.functional.glu(layer.out_proj(nn.functional.gelu(y)), -1)
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize("mixer", ["s4", "lti"])
def test_scans_have_the_dtype_of_autocast(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm before a mixer leaves float32, whose kernels are several times as slow."""
    seen = []

    def spy(u: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(u.dtype)
        return lti_scan(u, *args, **kwargs)

    monkeypatch.setattr(f"audiomamba.layers.{'s4' if mixer == 's4' else 'mamba'}.lti_scan", spy)
    block = Block(8, Tier(mixer=mixer, d_state=8))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = block(torch.randn(1, 20, 8))
    assert seen == [torch.bfloat16]
    block(torch.randn(1, 20, 8))
    assert seen[1:] == [torch.float32]
    assert y.dtype == torch.float32  # the residual stream
    assert all(leaf.dtype in (torch.float32, torch.complex64) for leaf in leaves(state))
    with torch.device("meta"):  # of which autocast knows nothing
        shapes = Block(8, Tier(mixer=mixer, d_state=8))
        assert shapes(torch.randn(1, 20, 8))[0].shape == (1, 20, 8)


def test_rotations_depend_on_distance_at_the_published_frequencies() -> None:
    """RoFormer, equation 15: frequencies 10000^(-i / half); products see only differences."""
    q, k = torch.randn(1, 1, 1, 6).double(), torch.randn(1, 1, 1, 6).double()
    at = [rotate(q, torch.tensor([m])) @ rotate(k, torch.tensor([m - 3])).mT for m in (3, 40)]
    torch.testing.assert_close(at[0], at[1])
    pair = torch.complex(q[..., :3], q[..., 3:])
    turn = torch.exp(7j * torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]).double())
    got = rotate(q, torch.tensor([7]))
    torch.testing.assert_close(
        torch.complex(got[..., :3], got[..., 3:]), pair * turn, atol=1e-6, rtol=0
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@pytest.mark.parametrize("mixer", ["s6", "lti", "s4", "attention"])
def test_a_compiled_block_is_one_graph(mixer: Any) -> None:
    block = Block(16, Tier(mixer=mixer, complex=True))
    explanation = torch._dynamo.explain(block)(torch.randn(2, 40, 16))
    assert explanation.graph_break_count == 0
