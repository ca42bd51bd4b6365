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
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from audiomamba import audio, checkpoint
from audiomamba.audiomodel import AudioModel
from audiomamba.config import Tier, unet
from audiomamba.data.tokens import INDEX, TOKENS, TokenFile, TokenStore, write_index
from audiomamba.evaluate import evaluate
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import Objective
from audiomamba.optim import average_weights, parameter_groups, warmup_cosine
from audiomamba.plot import spectrogram
from audiomamba.tokenizer import Tokenizer
from audiomamba.train import train
from audiomamba.train_config import TrainConfig
from audiomamba.train_folder import LAST, LISTEN
from audiomamba.train_listen import Listener, Take
from audiomamba.train_log import History, Report
from audiomamba.train_module import Training, replays_graphs

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
    module.history = History(1)


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
    forward, why = Objective.forward, Training._why_stop
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
        late = lambda self: "SIGTERM" if self.global_step == 8 else why(self)  # noqa: E731
        monkeypatch.setattr(Training, "_why_stop", late)
    message = rf"the {what} is not finite at step 5 \(.*--learning-rate.*--resume from .*last\.ckpt"
    with pytest.raises(FloatingPointError, match=message):
        train(MODEL, c, resume=True)
    record = tmp_path / "run.json"
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".csv" and path != record:
            assert path.read_bytes() == kept[path], path
    assert read(tmp_path)["global_step"] == 3


def test_another_run_is_not_resumed(data, tmp_path):
    c = config(data, tmp_path, steps=1)
    train(MODEL, c)
    with pytest.raises(FileExistsError, match="holds a run; go on with it by --resume"):
        train(MODEL, c)
    (tmp_path / LAST).rename(tmp_path / "hidden")
    with pytest.raises(FileExistsError, match="holds a run; go on with it by --resume"):
        train(MODEL, c)  # killed before its first checkpoint
    (tmp_path / "hidden").rename(tmp_path / LAST)
    with pytest.raises(ValueError, match="has batch 2, and this one has 3"):
        train(MODEL, dataclasses.replace(c, batch=3), resume=True)
    with pytest.raises(ValueError, match=r"has model\.d_model 8"):
        train(dataclasses.replace(MODEL, d_model=16), c, resume=True)


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


def test_samples_are_of_the_averaged_model_and_disturb_nothing(data, tmp_path):
    runs = [
        config(data, tmp_path / str(every), steps=6, listen_every=every, listen_seconds=0.1, seed=3)
        for every in (0, 2, 6)
    ]
    for c in runs:
        train(MODEL, c)
    silent, often, last = (Path(c.out) for c in runs)
    weights = (silent / checkpoint.WEIGHTS).read_bytes()
    assert (often / checkpoint.WEIGHTS).read_bytes() == weights
    assert (last / checkpoint.WEIGHTS).read_bytes() == weights
    assert not (silent / LISTEN).exists()
    assert (often / LISTEN / "step_2.wav").exists()
    assert {path.name for path in (last / LISTEN).iterdir()} == {"step_6.wav", "step_6.png"}
    assert (last / LISTEN / "step_6.png").read_bytes().startswith(b"\x89PNG")
    expected = AudioModel(checkpoint.load(last)).generate(seconds=0.1, seed=3)[0]
    heard = audio.read(last / LISTEN / "step_6.wav", MODEL.sample_rate)
    np.testing.assert_allclose(heard, expected, atol=2 / 32768)


def test_a_sample_that_cannot_be_written_ends_no_training(data, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    c = config(data, tmp_path / "run", listen_every=8, listen_seconds=0.1)
    train(MODEL, dataclasses.replace(c, steps=1))
    (tmp_path / "run" / LISTEN).write_text("in the way")
    assert train(MODEL, c, resume=True).step == 8
    assert "no sample of step 8: " in caplog.text


def test_listening_is_one_at_a_time_and_can_be_left_off(tmp_path, caplog):
    listener = Listener(tmp_path / LISTEN, samples=1 << 30, seed=0)
    network = WaveformModel(MODEL)
    listener.begin(network, 5)
    assert listener.finished() is None
    listener.begin(network, 7)
    assert "no sample of step 7: that of step 5 is not finished" in caplog.text
    listener.close()
    assert listener.finished() is None
    assert "no sample of step 5: training has ended" in caplog.text
    assert not (tmp_path / LISTEN).exists()


def test_sounds_go_to_the_logs_that_play_them(tmp_path):
    picture, wave = tmp_path / "step_4.png", np.zeros(2048, np.float32)
    spectrogram(wave, 16000, picture)
    take = Take(step=4, waveform=wave, sample_rate=16000, audio=tmp_path / "a.wav", picture=picture)
    wandb, board, table = Mock(), Mock(), Mock()
    del board.log_audio, table.log_audio, table.experiment.add_audio
    Report([wandb, board, table], 10).sound(take)
    wandb.log_audio.assert_called_once_with("listen/sample", [str(tmp_path / "a.wav")], 4)
    wandb.log_image.assert_called_once_with("listen/spectrogram", [str(picture)], 4)
    name, heard, *rest = board.experiment.add_audio.call_args.args
    assert (name, heard.shape, rest) == ("listen/sample", (1, 2048), [4, 16000])
    name, image, step = board.experiment.add_image.call_args.args
    assert (name, image.shape[2], step) == ("listen/spectrogram", 3, 4)
    assert 0 <= image.min() < image.max() <= 1
    assert [call[0] for call in table.method_calls] == []


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
    ],
)
def test_config_refuses_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be"):
        TrainConfig(**{field: value})


def test_a_step_too_large_for_a_cpu_is_warned_of(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("audiomamba.train.LARGE_STEP", 127)
    train(MODEL, config(data, tmp_path, max_minutes=1e-9))
    assert "a step of 2 x 64 samples on a CPU can take tens of GB" in caplog.text


def test_a_checkpoint_of_before_there_were_these_settings_goes_on(data, tmp_path):
    c = config(data, tmp_path)
    train(MODEL, dataclasses.replace(c, max_minutes=1e-9))
    saved = torch.load(tmp_path / LAST, weights_only=True)
    del saved["audiomamba"]["run"]["learn_silence"], saved["audiomamba"]["samples"]
    torch.save(saved, tmp_path / LAST)
    with pytest.raises(ValueError, match="has learn_silence False, and this one has True"):
        train(MODEL, dataclasses.replace(c, learn_silence=True), resume=True)
    outcome = train(MODEL, c, resume=True)
    assert (outcome.step, outcome.samples) == (c.steps, c.steps * c.batch * c.length)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no SIGUSR1")
def test_a_job_that_slurm_requeues_goes_on(data, tmp_path, monkeypatch):
    """SLURM sends SIGUSR1 before the time is over, and starts the same command again."""
    for name, value in {"JOB_ID": 7, "JOB_NAME": "run", "NTASKS": 1, "NTASKS_PER_NODE": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    c, step = config(data, tmp_path, devices="1"), Training.training_step

    def warn(self, batch, index):
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", warn)
        outcome = train(MODEL, c)
    assert (outcome.step, outcome.stopped) == (5, "SIGUSR1")
    assert not list(tmp_path.rglob("hpc_*"))  # lightning's own
    with pytest.raises(FileExistsError, match="holds a run"):
        train(MODEL, c)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # another job
    with pytest.raises(FileExistsError, match="holds a run"):
        train(MODEL, c)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    outcome = train(MODEL, c)
    assert (outcome.step, outcome.stopped) == (8, None)


@pytest.mark.slow
def test_a_signal_stops_after_the_step_with_a_checkpoint(data, tmp_path):
    """In a process of its own, as a scheduler would stop it."""
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(data, tmp_path):
    program = Path(__file__).with_name("killed.py")
    out = {name: tmp_path / name for name in ("whole", "killed")}
    root = program.parent.parent
    paths = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, program, data, out["whole"], out["killed"]],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count = json.loads(done.stdout)
    assert count["torn"] == 3, done.stderr
    whole, killed = read(out["whole"]), read(out["killed"])
    assert whole["global_step"] == killed["global_step"] == 40
    assert whole["state_dict"].keys() == killed["state_dict"].keys()
    assert all(torch.equal(v, killed["state_dict"][k]) for k, v in whole["state_dict"].items())
    moments = [run["optimizer_states"][0]["state"] for run in (whole, killed)]
    for name, of_one in moments[0].items():
        assert all(torch.equal(v, moments[1][name][k]) for k, v in of_one.items())
    for name in ("model.safetensors", "best/model.safetensors", "best/config.json"):
        assert (out["whole"] / name).read_bytes() == (out["killed"] / name).read_bytes(), name
    assert not list(out["killed"].rglob("*.part"))


def test_graphs_are_replayed_on_one_device_and_with_ddp():
    on, off = TrainConfig(cuda_graph=True), TrainConfig(cuda_graph=False)
    for strategy in (SingleDeviceStrategy(), DDPStrategy()):
        assert replays_graphs(TrainConfig(), strategy)
        assert replays_graphs(on, strategy)
        assert not replays_graphs(off, strategy)
    assert not replays_graphs(TrainConfig(strategy="fsdp"), FSDPStrategy())
    with pytest.raises(ValueError, match="take --strategy ddp or --no-cuda-graph"):
        replays_graphs(dataclasses.replace(on, strategy="fsdp"), FSDPStrategy())


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
