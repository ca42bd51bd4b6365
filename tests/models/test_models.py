"""The U-Net and the waveform model: sizes, causality, chunks, steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.models.unet import UNet
from audiomamba.models.waveform import WaveformModel
from audiomamba.state import leaves, where
from tests.contract import check_causal, check_recurrent

REAL, COMPLEX = Tier(d_state=4), Tier(d_state=4, complex=True)
LTI = Tier(mixer="lti", complex=True, d_state=4)
S4 = Tier(mixer="s4", d_state=4)
ATTENTION = Tier(mixer="attention", n_heads=2, context=7, expand=1)
PAIRS = {
    "s6, s6": (REAL, REAL),
    "lti, s6 complex": (LTI, COMPLEX),
    "s4, attention": (S4, ATTENTION),
}


def small(outer: Tier, centre: Tier, pools: tuple[int, ...] = (3, 2)) -> WaveformModel:
    torch.manual_seed(0)
    return WaveformModel(unet(8, 1, pools, outer, centre)).double()


@pytest.mark.parametrize(
    ("d_model", "n_layers", "pools", "millions"),
    [(64, 3, (16, 16), 3.56), (64, 8, (4, 4), 6.26), (96, 15, (4, 4), 24.85)],
)
@pytest.mark.parametrize("complex", [False, True])
def test_the_published_sizes_come_out(
    d_model: int, n_layers: int, pools: tuple[int, ...], millions: float, complex: bool
) -> None:
    tier = Tier(complex=complex)
    with torch.device("meta"):
        model = WaveformModel(unet(d_model, n_layers, pools, tier, tier))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("pair", PAIRS)
def test_the_unet_cut_at_its_period_equals_whole(pair: str) -> None:
    torch.manual_seed(0)
    outer, centre = PAIRS[pair]
    net = UNet(8, (outer, outer, centre), (3, 2)).double()
    check_recurrent(net, torch.randn(2, 30, 8, dtype=torch.float64), net.initial_state(2), period=6)


@pytest.mark.parametrize("pools", [(), (4,), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("pair", PAIRS)
def test_steps_equal_chunks(pair: str, pools: tuple[int, ...]) -> None:
    model = small(*PAIRS[pair], pools=pools)
    period = model.config.period
    tokens = torch.randint(0, 256, (2, 5 * period))
    logits, final = model(tokens)
    first, state = model(tokens[:, : 2 * period])
    torch.testing.assert_close(first, logits[:, : 2 * period])
    for start in (0, 2 * period):  # from silence, and after a chunk
        state = model.initial_state(2) if start == 0 else state
        steps = []
        for t in range(start, 5 * period):
            y, state = model.step(tokens[:, t], state, t % period)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps, 1), logits[:, start:])
        for got, exact in zip(leaves(state), leaves(final), strict=True):
            torch.testing.assert_close(got, exact)
        state = model(tokens[:, : 2 * period])[1]


@pytest.mark.parametrize("pair", PAIRS)
def test_no_logit_sees_a_later_token(pair: str) -> None:
    model = small(*PAIRS[pair])
    check_causal(lambda tokens: model(tokens)[0], torch.randint(0, 256, (2, 36)))


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 40), chunk=st.integers(1, 50))
def test_nll_takes_any_length_and_any_chunk(steps: int, chunk: int) -> None:
    model = small(*PAIRS["lti, s6 complex"])
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model.nll(tokens)
        torch.testing.assert_close(model.nll(tokens[:, :steps], chunk), exact[:, :steps])


def test_an_untrained_model_is_close_to_uniform() -> None:
    bits = small(*PAIRS["s6, s6"]).nll(torch.randint(0, 256, (2, 50)))
    assert abs(bits.mean().item() - math.log2(256)) < 1


def test_rows_of_a_batch_can_start_afresh() -> None:
    model = small(*PAIRS["lti, s6 complex"])
    tokens = torch.randint(0, 256, (2, 12))
    _, carried = model(tokens[:, :6])
    fresh = model.initial_state(2)
    mixed, _ = model(tokens[:, 6:], where(torch.tensor([True, False]), fresh, carried))
    torch.testing.assert_close(mixed[0], model(tokens[:, 6:], fresh)[0][0])
    torch.testing.assert_close(mixed[1], model(tokens[:, 6:], carried)[0][1])


def test_a_length_off_the_period_is_refused() -> None:
    with pytest.raises(ValueError, match="time is 7; it must be a multiple of the period 6"):
        small(REAL, REAL)(torch.zeros(1, 7, dtype=torch.long))


def test_a_config_survives_json() -> None:
    config = unet(24, 2, (4, 2), LTI, ATTENTION)
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_modell": 3}, "unknown key 'd_modell'"),
        ({"d_model": None}, "lacks the key 'd_model'"),
        ({"tiers": [{"mixer": "s6"}]}, r"config.tiers\[0\] lacks the key 'complex'"),
        ({"pools": [4]}, "3 tiers need 2 pools"),
        ({"tokenizer": 3}, "config.tokenizer is 3"),
    ],
)
def test_a_wrong_config_names_the_key(change: dict[str, Any], message: str) -> None:
    values = {**ModelConfig().to_dict(), **change}
    values = {k: v for k, v in values.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixer": "rnn"}, "mixer is 'rnn'"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"complex": True, "d_state": 3}, "even"),
    ],
)
def test_a_wrong_tier_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tier(**values)
