import dataclasses
import gc
import importlib.util
import json
import math
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from audiomamba import checkpoint
from audiomamba.data.tokens import TokenStore
from audiomamba.evaluate import evaluate
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import Objective
from audiomamba.state import leaves
from audiomamba.tokenizer import Tokenizer
from audiomamba.train import train
from audiomamba.train_config import TrainConfig
from audiomamba.train_curve import read_curves
from audiomamba.train_log import History
from audiomamba.train_module import Training, replays_graphs
from tests.train.runs import MODEL, config, read


def prepare(module):
    """Do what `on_train_start` does before the first step, without a trainer."""
    module.objective = Objective(module.network).__call__
    module.history = History(1)


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


def test_a_run_begins_with_the_weights_of_another(data, tmp_path):
    first, then = tmp_path / "first", tmp_path / "then"
    train(MODEL, config(data, first))
    still = {"learning_rate": 1e-12, "min_learning_rate": 0.0, "validate_every": 1}
    c = config(data, then, start=str(first), steps=2, seed=1, **still)
    train(MODEL, dataclasses.replace(c, steps=1))
    bits = evaluate(checkpoint.load(first), TokenStore(data), "validation")
    assert read_curves(then)["validation"][0] == (0, pytest.approx(bits, abs=1e-6))
    about = json.loads((then / "config.json").read_text())["training"]
    assert about["start"] == "first"
    theirs, ours = (checkpoint.load(folder).state_dict() for folder in (first, then))
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=0, atol=1e-9), name
    first.rename(tmp_path / "gone")  # which is not looked at again
    assert train(MODEL, c, resume=True).step == 2
    with pytest.raises(ValueError, match=r"has start .*first, and this one has ;"):
        train(MODEL, dataclasses.replace(c, start=""), resume=True)


def test_the_best_is_not_worse_than_what_a_run_began_with(data, tmp_path):
    first, then = tmp_path / "first", tmp_path / "then"
    train(MODEL, config(data, first))
    train(MODEL, config(data, then, start=str(first), learning_rate=1.0, steps=3, ema_decay=0.0))
    theirs, best = (checkpoint.load(folder).state_dict() for folder in (first, then / "best"))
    assert all(torch.equal(best[name], value) for name, value in theirs.items())


def test_a_run_begins_with_no_model_of_another_shape(data, tmp_path):
    other = dataclasses.replace(MODEL, d_model=4)
    train(other, config(data, tmp_path / "first", steps=1))
    c = config(data, tmp_path / "then", start=str(tmp_path / "first"))
    with pytest.raises(ValueError, match=r"first has d_model 4, and this run 8; --start takes"):
        train(MODEL, c)
    with pytest.raises(FileNotFoundError, match="no model 'nothing'"):
        train(MODEL, dataclasses.replace(c, start="nothing"))
    assert all(path.name.startswith(".") for path in (tmp_path / "then").iterdir())  # the lock


def test_nothing_of_a_run_is_held_when_it_has_ended(data, tmp_path):
    gc.disable()  # that it was collected is not by chance
    try:
        train(MODEL, config(data, tmp_path, steps=2))
        assert not [x for x in gc.get_objects() if type(x) in (Training, WaveformModel)]
    finally:
        gc.enable()


def test_the_loss_counts_bits_as_evaluation_does(data, tmp_path):
    """Whole clips from silence: the training loss and `nll` are the same number."""
    store = TokenStore(data)
    module = Training(MODEL, config(data, tmp_path, length=200), store)
    prepare(module)
    clip = torch.from_numpy(np.array(store.clip(store.files("test")[0])))
    tokens = torch.cat([torch.tensor([128], dtype=torch.uint8), clip])[None]
    batch = {"tokens": tokens, "samples": torch.tensor([200]), "first": torch.tensor([True])}
    nats = module.training_step(batch, 0)
    expected = evaluate(module.network, store, "test")
    assert float(nats.detach()) / math.log(2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("learn", [False, True])
def test_silence_after_a_clip_is_learnt_if_asked_for(data, tmp_path, learn):
    store = TokenStore(data)
    module = Training(MODEL, config(data, tmp_path, length=208, learn_silence=learn), store)
    prepare(module)
    clip = torch.from_numpy(np.array(store.clip(store.files("test")[0])))
    tokens = torch.cat([torch.tensor([128], dtype=torch.uint8), clip, clip[:8]])[None]
    batch = {"tokens": tokens, "samples": torch.tensor([200]), "first": torch.tensor([True])}
    nats = float(module.training_step(batch, 0).detach())
    bits = module.network.nll(tokens[:, 1:].long())[0].detach()
    assert len(bits) == 208
    learnt = 208 if learn else 200
    assert nats / math.log(2) == pytest.approx(float(bits[:learnt].mean()), rel=1e-6)
    module.history.add_norm(torch.tensor(1.0))
    assert module.history.take()[2] == learnt


def test_carried_state_makes_chunks_equal_to_the_whole(data, tmp_path):
    store = TokenStore(data)
    clip = torch.from_numpy(np.array(store.clip(store.files("train")[0])))[:129][None]
    whole = Training(MODEL, config(data, tmp_path, length=128), store)
    chunks = Training(MODEL, config(data, tmp_path, carry_state=True), store)
    prepare(whole)
    prepare(chunks)

    def batch(tokens, first):
        samples = torch.tensor([tokens.shape[1] - 1])
        return {"tokens": tokens, "samples": samples, "first": torch.tensor([first])}

    at_once = whole.training_step(batch(clip, True), 0)
    a = chunks.training_step(batch(clip[:, :65], True), 0)
    b = chunks.training_step(batch(clip[:, 64:], False), 1)
    assert float((a + b).detach()) / 2 == pytest.approx(float(at_once.detach()), rel=1e-5)
    fresh = chunks.training_step(batch(clip[:, 64:], True), 2)
    assert abs(float((fresh - b).detach())) > 1e-4


def test_a_carried_state_has_no_history(data, tmp_path):
    """Unlike what a recorded graph returns: to autograd, a replay is made of the weights."""
    store = TokenStore(data)
    module = Training(MODEL, config(data, tmp_path, carry_state=True), store)
    prepare(module)
    objective, weight = module.objective, module.network.head.weight

    def replayed(*inputs):
        loss, *state = objective(*inputs)
        return loss, *(leaf + 0 * weight.sum() for leaf in state)

    module.objective = replayed
    clip = torch.from_numpy(np.array(store.clip(store.files("train")[0])))[:65][None]
    batch = {"tokens": clip, "samples": torch.tensor([64]), "first": torch.tensor([True])}
    for index in range(2):
        module.training_step(batch, index).backward()
    assert not any(leaf.requires_grad for leaf in leaves(module.carried))


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("notice", ["log_every", "validate_every", "checkpoint_every", "stop"])
def test_what_is_not_finite_is_noticed_before_anything_is_written(
    data, tmp_path, monkeypatch, what, notice
):
    """It turns so after step 4, between two looks; whatever comes next finds it."""
    never = {"log_every": 100, "validate_every": 100, "checkpoint_every": 100, "listen_every": 100}
    c = config(data, tmp_path, steps=20, **never)
    train(MODEL, dataclasses.replace(c, steps=3))
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    c = dataclasses.replace(c, **({} if notice == "stop" else {notice: 8}))
    forward = Objective.forward
    calls = iter(range(4, 100))

    def poison(self, *inputs):
        step = next(calls)
        loss, *state = forward(self, *inputs)
        if step >= 5 and what == "loss":
            loss = loss * math.nan
        elif step == 5:
            loss.register_hook(lambda g: g * math.inf)
        return loss, *state

    monkeypatch.setattr(Objective, "forward", poison)
    if notice == "stop":
        late = lambda mine, trainer: "SIGTERM" if trainer.global_step == 8 else mine  # noqa: E731
        monkeypatch.setattr("audiomamba.train_module.agreed", late)
    message = rf"the {what} is not finite at step 5 \(.*--learning-rate.*--resume from .*last\.ckpt"
    with pytest.raises(FloatingPointError, match=message):
        train(MODEL, c, resume=True)
    record = tmp_path / "run.json"
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".csv" and path != record:
            assert path.read_bytes() == kept[path], path
    assert read(tmp_path)["global_step"] == 3


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused(data, tmp_path, resume):
    checkpoint.save(tmp_path / "model", MODEL, WaveformModel(MODEL).state_dict())
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path, "holds file and no run; give another --out, or empty the folder"),
        (tmp_path / "model", "holds config.json and no run"),
        (data, "holds index.json and no run"),
        (tmp_path / "file", "is a file; give another --out"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FileExistsError, match=message):
            train(MODEL, config(data, out), resume=resume)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_run_records_what_it_is_and_sweeps_up_after_a_killed_one(data, tmp_path):
    c = config(data, tmp_path / "run", steps=1)
    (tmp_path / "run" / "data").mkdir(parents=True)  # a recipe prepares its data there
    (tmp_path / "run" / ".DS_Store").write_text("")
    with pytest.raises(Exception, match="accelerator"):
        train(
            MODEL, dataclasses.replace(c, accelerator="none")
        )  # nothing is lost by beginning anew
    train(MODEL, c)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["train"]["steps"] == 1
    assert record["model"] == json.loads(json.dumps(MODEL.to_dict()))
    torn = [tmp_path / "run" / name for name in (".last.ckpt.1.part", "best/.config.json.1.part")]
    for path in torn:
        path.write_text("half")
    train(MODEL, dataclasses.replace(c, steps=2), resume=True)
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["train"]["steps"] == 2
    assert again["id"] == record["id"]
    assert not any(path.exists() for path in torn)


def test_activation_checkpointing_trains_to_the_same_bits(data, tmp_path):
    for name, switch in (("kept", False), ("recomputed", True)):
        c = config(data, tmp_path / name, carry_state=True, activation_checkpointing=switch)
        train(MODEL, c)
    names = [tmp_path / name / "model.safetensors" for name in ("kept", "recomputed")]
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 60}, "length is 60; .*period 8, such as 56 or 64"),
        ({"length": 1 << 20}, "no train clip"),
        ({"data": ""}, "no data given"),
        ({"listen_seconds": 0.01}, r"listen_seconds is 0.01; it must be at least 0\.064"),
        ({"wandb": "piano"}, "wandb is not installed; pip install wandb, or leave --wandb out"),
    ],
)
def test_what_does_not_fit_fails_before_anything_is_written(
    data, tmp_path, monkeypatch, changes, message
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    c = dataclasses.replace(config(data, tmp_path / "run"), **changes)
    with pytest.raises(ValueError, match=message):
        train(MODEL, c)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "gpu"}, "accelerator gpu: No supported gpu backend found"),
        ({"devices": "0,2"}, "devices is 0,2, and accelerator cpu: .* should be an int"),
        ({"devices": "1,"}, "devices is 1,, and accelerator cpu: .* should be an int"),
    ],
)
def test_hardware_that_is_not_there_is_named(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(MODEL, dataclasses.replace(config(data, tmp_path), **changes))


def test_tokens_of_another_kind_are_refused(data, tmp_path):
    model = dataclasses.replace(MODEL, tokenizer=Tokenizer(bits=7))
    with pytest.raises(ValueError, match=r"holds Tokenizer.*bits=8.*the model is of .*bits=7"):
        train(model, config(data, tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("learning_rate", 0.0),
        ("warmup", 1.0),
        ("ema_decay", -0.1),
        ("listen_every", -1),
        ("listen_seconds", 0.0),
        ("devices", "3x"),
    ],
)
def test_config_refuses_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be"):
        TrainConfig(**{field: value})


def test_a_step_too_large_for_a_cpu_is_warned_of(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("audiomamba.train.LARGE_STEP", 127)
    train(MODEL, config(data, tmp_path, max_minutes=1e-9))
    assert "a step of 2 x 64 samples on a CPU can take tens of GB" in caplog.text


def test_graphs_are_replayed_on_one_device_and_with_ddp():
    on, off = TrainConfig(cuda_graph=True), TrainConfig(cuda_graph=False)
    gpu = torch.device("cuda:0")
    for strategy in (SingleDeviceStrategy(), DDPStrategy()):
        assert replays_graphs(TrainConfig(), strategy, gpu)
        assert replays_graphs(on, strategy, gpu)
        assert not replays_graphs(off, strategy, gpu)
        assert not replays_graphs(TrainConfig(), strategy, torch.device("cpu"))
    assert not replays_graphs(TrainConfig(strategy="fsdp"), FSDPStrategy(), gpu)
    with pytest.raises(ValueError, match="take --strategy ddp or --no-cuda-graph"):
        replays_graphs(dataclasses.replace(on, strategy="fsdp"), FSDPStrategy(), gpu)


def test_graphs_that_are_asked_for_on_a_cpu_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="cuda_graph is on, and the device is cpu; leave it out"):
        train(MODEL, config(data, tmp_path, cuda_graph=True))


def test_without_lightning_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    spec = importlib.util.find_spec("audiomamba.train")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning>=2.6.6"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
