"""The training objective: the model's own likelihood, compiled or recorded without a difference."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from audiomamba.config import Tier, unet
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import Objective, capture, compile_blocks
from audiomamba.state import leaves

CONFIG = unet(8, 1, (4,), Tier(mixer="lti", complex=True, d_state=4), Tier(complex=True, d_state=4))


def network() -> WaveformModel:
    torch.manual_seed(0)
    return WaveformModel(CONFIG)


def gradients(objective: Objective, *inputs: torch.Tensor) -> list[torch.Tensor]:
    objective.network.zero_grad()
    objective(*inputs)[0].backward()
    return [p.grad.clone() for p in objective.network.parameters() if p.grad is not None]


def test_it_is_the_model_s_likelihood_and_carries_its_state() -> None:
    model = network()
    tokens = torch.randint(0, 256, (2, 33))
    bits = model(tokens[:, :-1])[0].log_softmax(-1).gather(2, tokens[:, 1:, None]) / -math.log(2)
    objective = Objective(model)
    nats, *state = objective(tokens[:, :16], tokens[:, 1:17])
    more, *_ = objective(tokens[:, 16:32], tokens[:, 17:], *state)
    torch.testing.assert_close((nats + more) / 2 / math.log(2), bits.mean())
    assert all(not leaf.requires_grad for leaf in state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
def test_compiled_blocks_change_nothing() -> None:
    plain, compiled = Objective(network()), Objective(network())
    compile_blocks(compiled)
    tokens = torch.randint(0, 256, (2, 33))
    inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    for a, b in zip(gradients(compiled, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("carry_state", [False, True])
def test_a_recorded_graph_changes_nothing(carry_state: bool) -> None:
    plain = Objective(network().cuda(), torch.bfloat16)
    recorded = capture(copy.deepcopy(plain), 2, 32, carry_state)
    state = leaves(plain.network.initial_state(2)) if carry_state else []
    for _ in range(3):
        tokens = torch.randint(0, 256, (2, 33), device="cuda")
        inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), *state)
        for a, b in zip(gradients(recorded, *inputs), gradients(plain, *inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
        state = [leaf.clone() for leaf in plain(*inputs)[1:]] if carry_state else []
