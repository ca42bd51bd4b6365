"""On a GPU a run learns what it learns on a CPU, however it is run, and goes on where it was."""

import dataclasses

import pytest
import torch

from audiomamba import checkpoint
from audiomamba.train import train
from audiomamba.train_curve import read_curves
from tests.train.runs import MODEL, config

pytestmark = [
    pytest.mark.gpu,
    # Lightning's, of the run on a CPU that is compared; torch's, of its compiler and of graphs.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]
EXACT = {"accelerator": "gpu", "devices": "1", "precision": "32-true"}
MODES = {
    "eager": {"compile": False, "cuda_graph": False},
    "compiled": {"compile": True, "cuda_graph": False},
    "graph": {"compile": True, "cuda_graph": True},
    "recomputed": {"compile": False, "cuda_graph": True, "activation_checkpointing": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("carry_state", [False, True])
def test_a_gpu_learns_what_a_cpu_does(data, tmp_path, mode, carry_state):
    options = {"carry_state": carry_state, "log_every": 1, "listen_every": 0}
    train(MODEL, config(data, tmp_path / "cpu", **options))
    train(MODEL, config(data, tmp_path / "gpu", **options, **EXACT, **MODES[mode]))
    cpu, gpu = (read_curves(tmp_path / place) for place in ("cpu", "gpu"))
    for name, curve in cpu.items():
        steps, bits = zip(*curve, strict=True)
        assert [step for step, _ in gpu[name]] == list(steps)
        assert [value for _, value in gpu[name]] == pytest.approx(bits, abs=2e-3)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(data, tmp_path):
    """By default: bfloat16, compiled, in a graph."""
    whole = config(data, tmp_path / "whole", accelerator="gpu", devices="1", listen_every=0)
    halved = dataclasses.replace(whole, out=str(tmp_path / "halved"))
    train(MODEL, whole)
    train(MODEL, dataclasses.replace(halved, max_minutes=1e-9))
    assert train(MODEL, halved, resume=True).step == whole.steps
    one, other = (checkpoint.load(c.out).state_dict() for c in (whole, halved))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-4, msg=name)
