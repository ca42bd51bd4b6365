import dataclasses

import pytest
import torch

from audiomamba.config import Tier, unet
from audiomamba.models.waveform import WaveformModel
from audiomamba.optim import average_weights, parameter_groups, warmup_cosine


def test_weight_decay_spares_what_shapes_the_recurrence():
    model = unet(8, 1, (2,), Tier(mixer="lti", complex=True), Tier(mixer="s4"))
    model = dataclasses.replace(model, tiers=(*model.tiers[:1], Tier(mixer="s6", complex=True)))
    network = WaveformModel(model)
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, rest = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    kinds = {names[id(p)].split(".", 1)[-1].rsplit(".", 2)[-2:][-1] for p in rest["params"]}
    assert kinds == {"A_log", "A_imag", "log_dt", "B", "C", "D", "bias", "weight"}
    for p in rest["params"]:
        name = names[id(p)]
        assert not name.endswith("weight") or "norm" in name
    for p in decayed["params"]:
        assert names[id(p)].endswith("weight")
        assert "norm" not in names[id(p)]
    assert "embedding.weight" in {names[id(p)] for p in decayed["params"]}


def test_learning_rate_rises_then_falls_along_a_cosine():
    rates = [warmup_cosine(step, 100, 0.1, 0.01) for step in range(101)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.505)
    assert rates[100] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert warmup_cosine(0, 1, 0.1, 0.0) == warmup_cosine(0, 10, 0.0, 0.5) == 1


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_is_the_recurrence_it_says(decay):
    network, average = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = average.weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            network.weight.normal_()
        average_weights(average, network, decay, step)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * network.weight.detach()
    torch.testing.assert_close(average.weight.detach(), expected)
