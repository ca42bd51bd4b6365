import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from audiomamba import checkpoint
from audiomamba.config import Tier, unet
from audiomamba.data.tokens import INDEX, TOKENS, TokenFile, TokenStore, write_index
from audiomamba.evaluate import evaluate
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import Objective
from audiomamba.optim import average_weights, parameter_groups, warmup_cosine
from audiomamba.tokenizer import Tokenizer
from audiomamba.train import LAST, Training, train
from audiomamba.train_config import TrainConfig

MODEL = unet(
    8,
    1,
    (4, 2),
    Tier(mixer="lti", complex=True, d_state=4),
    Tier(mixer="s6", complex=True, d_state=4),
)
LENGTHS = {"train": (700, 333, 900), "validation": (301, 150), "test": (200,)}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of tokens: slow random walks, so that there is something to learn."""
    directory = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    clips, files = [], []
    for split, lengths in LENGTHS.items():
        for i, n in enumerate(lengths):
            walk = 128 + np.cumsum(random.integers(-2, 3, n))
            offset = sum(map(len, clips))
            clips.append(np.clip(walk, 0, 255).astype(np.uint8))
            files.append(
                TokenFile(
                    path=f"{split}/{i}.wav",
                    split=split,
                    offset=offset,
                    samples=n,
                    peak=1.0,
                    sha256="",
                )
            )
    (directory / TOKENS).write_bytes(b"".join(clip.tobytes() for clip in clips))
    write_index(
        directory / INDEX,
        files,
        tokenizer=Tokenizer(),
        sample_rate=16000,
        split_rule="by folder",
        skipped={},
    )
    return directory


def config(data, out, **changes):
    values = {
        "steps": 8,
        "batch": 2,
        "length": 64,
        "validate_every": 3,
        "checkpoint_every": 2,
        "log_every": 3,
        "accelerator": "cpu",
    }
    return TrainConfig(data=str(data), out=str(out), **(values | changes))


def read(out):
    return torch.load(Path(out) / LAST, weights_only=True)


def prepare(module):
    """Do what `on_train_start` does before the first step, without a trainer."""
    module.objective = Objective(module.network).__call__
    module._history = torch.zeros(2, 1)


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("carry_state", [False, True])
def test_a_killed_run_resumes_to_the_same_bits(data, tmp_path, monkeypatch, carry_state):
    whole = config(data, tmp_path / "whole", carry_state=carry_state)
    straight = train(MODEL, whole)
    halved = dataclasses.replace(whole, out=str(tmp_path / "halved"))

    def die(self, batch, index):
        if self.global_step == 5:  # the last checkpoint is of step 4
            raise KilledError
        return step(self, batch, index)

    step = Training.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", die)
        with pytest.raises(KilledError):
            train(MODEL, halved)
    assert read(halved.out)["global_step"] == 4
    assert train(MODEL, halved, resume=True) == straight

    one, other = read(whole.out), read(halved.out)
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(v, other["state_dict"][k]) for k, v in one["state_dict"].items())
    carried = one["audiomamba"]["carried"]
    assert bool(carried) == carry_state
    assert all(map(torch.equal, carried, other["audiomamba"]["carried"]))
    names = [Path(run.out) / "model.safetensors" for run in (whole, halved)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_run_learns_logs_and_leaves_a_model_that_scores_what_it_said(data, tmp_path):
    c = config(data, tmp_path, steps=60, validate_every=30, log_every=20, learning_rate=2e-2)
    c = dataclasses.replace(c, checkpoint_every=60)
    outcome = train(MODEL, c)
    assert outcome.step == 60
    assert outcome.stopped is None
    assert outcome.best_bits_per_sample <= outcome.bits_per_sample < 7.3  # 8 before training
    for folder in (tmp_path, tmp_path / "best"):
        about = json.loads((folder / checkpoint.CONFIG).read_text())["training"]
        assert about["validation_step"] == about["step"]
        assert about["samples"] == about["step"] * 2 * 64
        assert "data" not in about
        network = checkpoint.load(folder)
        assert network.config == MODEL
        bits = evaluate(network, TokenStore(data), "validation")
        # The same float32 weights; products over another number of threads round differently.
        assert bits == pytest.approx(about["validation_bits_per_sample"], rel=1e-7)
    lines = (tmp_path / "logs/version_0/metrics.csv").read_text().splitlines()
    assert {
        "step",
        "train/bits_per_sample",
        "train/gradient_norm",
        "train/learning_rate",
        "validation/bits_per_sample",
        "samples_per_second",
    } == set(lines[0].split(","))
    assert len(lines) == 1 + 4 + 2  # steps 20, 30, 50, 60 and the validations at 30 and 60


def test_the_loss_counts_bits_as_evaluation_does(data, tmp_path):
    """Whole clips from silence: the training loss and `nll` are the same number."""
    store = TokenStore(data)
    module = Training(MODEL, config(data, tmp_path, length=200), store)
    prepare(module)
    clip = torch.from_numpy(np.array(store.clip(store.files("test")[0])))
    tokens = torch.cat([torch.tensor([128], dtype=torch.uint8), clip])[None]
    nats = module.training_step({"tokens": tokens, "first": torch.tensor([True])}, 0)
    expected = evaluate(module.network, store, "test")
    assert float(nats.detach()) / math.log(2) == pytest.approx(expected, rel=1e-6)


def test_carried_state_makes_chunks_equal_to_the_whole(data, tmp_path):
    store = TokenStore(data)
    clip = torch.from_numpy(np.array(store.clip(store.files("train")[0])))[:129][None]
    whole = Training(MODEL, config(data, tmp_path, length=128), store)
    chunks = Training(MODEL, config(data, tmp_path, carry_state=True), store)
    prepare(whole)
    prepare(chunks)
    true, false = torch.tensor([True]), torch.tensor([False])
    at_once = whole.training_step({"tokens": clip, "first": true}, 0)
    a = chunks.training_step({"tokens": clip[:, :65], "first": true}, 0)
    b = chunks.training_step({"tokens": clip[:, 64:], "first": false}, 1)
    assert float((a + b).detach()) / 2 == pytest.approx(float(at_once.detach()), rel=1e-5)
    fresh = chunks.training_step({"tokens": clip[:, 64:], "first": true}, 2)
    assert abs(float((fresh - b).detach())) > 1e-4


def test_a_finished_run_is_not_repeated(data, tmp_path):
    c = config(data, tmp_path, steps=2)
    outcome = train(MODEL, c)
    before = (tmp_path / LAST).stat().st_mtime_ns
    assert train(MODEL, c, resume=True) == outcome
    assert (tmp_path / LAST).stat().st_mtime_ns == before


def test_max_minutes_stops_with_a_checkpoint_and_a_model(data, tmp_path):
    c = config(data, tmp_path, max_minutes=1e-9)
    outcome = train(MODEL, c)
    assert (outcome.step, outcome.stopped) == (1, "max_minutes")
    assert read(tmp_path)["global_step"] == 1
    assert checkpoint.load(tmp_path).config == MODEL
    outcome = train(MODEL, dataclasses.replace(c, max_minutes=None), resume=True)
    assert (outcome.step, outcome.stopped) == (8, None)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_it_is_saved(data, tmp_path, monkeypatch, what):
    c = config(data, tmp_path, checkpoint_every=3, validate_every=100, log_every=100)
    step = Training.training_step

    def poison(self, batch, index):
        loss = step(self, batch, index)
        if self.global_step == 4:
            if what == "gradient":
                loss.register_hook(lambda g: g * math.inf)
            else:
                loss = loss * math.nan
                self._history[0, self._unchecked] = loss.detach()
        return loss

    monkeypatch.setattr(Training, "training_step", poison)
    with pytest.raises(FloatingPointError, match=f"the {what} is not finite at step 5 .*--resume"):
        train(MODEL, c)
    assert read(tmp_path)["global_step"] == 3
    assert all(v.isfinite().all() for v in read(tmp_path)["state_dict"].values())


def test_another_run_is_not_resumed(data, tmp_path):
    c = config(data, tmp_path, steps=1)
    train(MODEL, c)
    with pytest.raises(FileExistsError, match="holds a run; go on with it by --resume"):
        train(MODEL, c)
    with pytest.raises(ValueError, match="has batch 2, and this one has 3"):
        train(MODEL, dataclasses.replace(c, batch=3), resume=True)
    with pytest.raises(ValueError, match=r"has model\.d_model 8"):
        train(dataclasses.replace(MODEL, d_model=16), c, resume=True)


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    c = config(data, tmp_path, steps=1)
    train(MODEL, c)
    last = tmp_path / LAST
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        train(MODEL, c, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 60}, "length is 60; .*period 8, such as 56 or 64"),
        ({"length": 1 << 20}, "no train clip"),
        ({"data": ""}, "no data given"),
    ],
)
def test_what_does_not_fit_fails_before_anything_is_written(data, tmp_path, changes, message):
    c = dataclasses.replace(config(data, tmp_path / "run"), **changes)
    with pytest.raises(ValueError, match=message):
        train(MODEL, c)
    assert not (tmp_path / "run" / "config.json").exists()


def test_tokens_of_another_kind_are_refused(data, tmp_path):
    model = dataclasses.replace(MODEL, tokenizer=Tokenizer(bits=7))
    with pytest.raises(ValueError, match=r"holds Tokenizer.*bits=8.*the model is of .*bits=7"):
        train(model, config(data, tmp_path))


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("learning_rate", 0.0), ("warmup", 1.0), ("ema_decay", -0.1)]
)
def test_config_refuses_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be"):
        TrainConfig(**{field: value})


@pytest.mark.slow
def test_a_signal_stops_after_the_step_with_a_checkpoint(data, tmp_path):
    """In a process of its own, as a scheduler would stop it."""
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import torch
torch.set_num_threads(1)
from audiomamba.config import ModelConfig
from audiomamba.train import train
from audiomamba.train_config import TrainConfig
model = ModelConfig.from_dict({MODEL.to_dict()!r})
config = TrainConfig(
    data={str(data)!r}, out={str(tmp_path)!r}, steps=100000, batch=2, length=64, log_every=5,
    checkpoint_every=100000, validate_every=100000, accelerator="cpu")
outcome = train(model, config)
assert outcome.stopped == "SIGTERM", outcome
print(outcome.step)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        metrics = tmp_path / "logs/version_0/metrics.csv"
        try:
            for _ in range(600):
                if metrics.exists() or process.poll() is not None:
                    break
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGTERM)
            step = int(process.communicate(timeout=30)[0])
        finally:
            process.kill()
    assert step >= 5
    assert read(tmp_path)["global_step"] == step
    assert checkpoint.load(tmp_path).config == MODEL


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


def test_without_lightning_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    spec = importlib.util.find_spec("audiomamba.train")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning>=2.6.6"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
