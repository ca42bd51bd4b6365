import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from audiomamba import checkpoint, train_stop
from audiomamba.train import _is_first, train
from audiomamba.train_folder import LAST, RUN, held, save_checkpoint
from audiomamba.train_module import Training
from tests.train.runs import MODEL, config, read


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


def test_max_minutes_stops_with_a_checkpoint_and_a_model(data, tmp_path):
    c = config(data, tmp_path, max_minutes=1e-9)
    outcome = train(MODEL, c)
    assert (outcome.step, outcome.stopped) == (1, "max_minutes")
    assert read(tmp_path)["global_step"] == 1
    assert checkpoint.load(tmp_path).config == MODEL
    outcome = train(MODEL, dataclasses.replace(c, max_minutes=None), resume=True)
    assert (outcome.step, outcome.stopped) == (8, None)


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


def test_a_signal_stops_after_the_step_with_a_checkpoint(data, tmp_path, monkeypatch):
    """As `timeout` sends it, twice; test_processes.py sends one from another process."""
    step = Training.training_step

    def end(self, batch, index):
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    monkeypatch.setattr(Training, "training_step", end)
    outcome = train(MODEL, config(data, tmp_path, checkpoint_every=100))
    assert (outcome.step, outcome.stopped) == (5, "SIGTERM")
    assert read(tmp_path)["global_step"] == 5
    assert checkpoint.load(tmp_path).config == MODEL


def test_a_second_interrupt_does_not_wait_for_the_step(monkeypatch):
    before = {number: signal.getsignal(number) for number in train_stop.SIGNALS}
    try:
        stop = train_stop.Stop(None)
        stop.listen()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # of the same moment
        assert stop.why() == "SIGINT"
        monkeypatch.setattr(train_stop, "ONE_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    assert whole["global_step"] == killed["global_step"] == 24
    assert whole["state_dict"].keys() == killed["state_dict"].keys()
    assert all(torch.equal(v, killed["state_dict"][k]) for k, v in whole["state_dict"].items())
    moments = [run["optimizer_states"][0]["state"] for run in (whole, killed)]
    for name, of_one in moments[0].items():
        assert all(torch.equal(v, moments[1][name][k]) for k, v in of_one.items())
    for name in ("model.safetensors", "best/model.safetensors", "best/config.json"):
        assert (out["whole"] / name).read_bytes() == (out["killed"] / name).read_bytes(), name
    assert not list(out["killed"].rglob("*.part"))


def test_ctrl_c_before_it_is_heeded_is_no_exit_of_lightning(data, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "configure_optimizers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, config(data, tmp_path))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    class Full:
        global_rank = 0

        def save_checkpoint(self, path, *, weights_only):
            path.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / LAST).write_text("whole")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(Full(), tmp_path / LAST)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert (tmp_path / LAST).read_text() == "whole"


@pytest.mark.parametrize("name", ["training_step", "_validate", "on_train_end"])
def test_a_signal_in_the_last_step_is_heeded(data, tmp_path, monkeypatch, name):
    c = config(data, tmp_path, steps=2, listen_every=2, listen_seconds=0.1)
    method = getattr(Training, name)

    def signalled(self, *arguments):
        if self.global_step >= 1:
            signal.raise_signal(signal.SIGTERM)
        return method(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, name, signalled)
        outcome = train(MODEL, c)
    assert (outcome.step, outcome.stopped) == (2, "SIGTERM")  # so that no test follows
    assert (tmp_path / "listen/step_2.wav").exists()
    again = train(MODEL, c, resume=True)
    assert again == dataclasses.replace(outcome, stopped=None)


def test_a_jump_of_the_learning_rate_is_warned_of(data, tmp_path, caplog, monkeypatch):
    used = []
    clip = Training.configure_gradient_clipping

    def note(self, optimizer, *arguments, **options):
        used.append(f"{optimizer.param_groups[0]['lr']:.3g}")
        clip(self, optimizer, *arguments, **options)

    monkeypatch.setattr(Training, "configure_gradient_clipping", note)
    c = config(data, tmp_path, learning_rate=2e-3, warmup=0.1, max_minutes=1e-9)
    train(MODEL, c)
    train(MODEL, c, resume=True)
    assert "was laid out" not in caplog.text
    (schedule,) = read(tmp_path)["lr_schedulers"]
    assert {f"{rate:.3g}" for rate in schedule["_last_lr"]} == {"0.0019"}  # as is told below
    used.clear()
    train(MODEL, dataclasses.replace(c, steps=80), resume=True)
    assert used == ["0.00075"]
    assert (
        "was laid out for 8 steps and goes on to 80: after step 2 its learning rate is 0.00075, "
        "and would have been 0.0019" in caplog.text
    )


def test_another_run_is_not_resumed(data, tmp_path):
    c = config(data, tmp_path, steps=1)
    train(MODEL, c)
    with pytest.raises(FileExistsError, match="holds a run; go on with it by --resume"):
        train(MODEL, c)
    (tmp_path / LAST).rename(tmp_path / "hidden")
    with pytest.raises(FileExistsError, match="holds a run; go on with it by --resume"):
        train(MODEL, c)  # killed before its first checkpoint
    (tmp_path / "hidden").rename(tmp_path / LAST)
    before = (tmp_path / RUN).read_text()
    with pytest.raises(ValueError, match="has batch 2, and this one has 3"):
        train(MODEL, dataclasses.replace(c, batch=3), resume=True)
    assert (tmp_path / RUN).read_text() == before
    with pytest.raises(ValueError, match=r"has model\.d_model 8"):
        train(dataclasses.replace(MODEL, d_model=16), c, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_do_not_train_in_one_folder(data, tmp_path, resume):
    c = config(data, tmp_path / "run", steps=1)
    with (
        held(tmp_path / "run"),
        pytest.raises(FileExistsError, match=r"another process trains in .*run; wait for it"),
    ):
        train(MODEL, c, resume=resume)
    assert train(MODEL, c, resume=resume).step == 1


@pytest.mark.parametrize(
    ("variables", "first"),
    [({}, True), ({"NODE_RANK": "1"}, False), ({"NODE_RANK": "1", "RANK": "0"}, True)],
)
def test_the_main_process_of_another_node_is_not_the_first(monkeypatch, variables, first):
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _is_first() == first


def test_a_precision_is_compared_as_what_it_came_to(data, tmp_path):
    c = config(data, tmp_path, steps=1)
    train(MODEL, c)
    saved = read(tmp_path)
    assert saved["audiomamba"]["run"]["precision"] == "32-true"
    with pytest.raises(ValueError, match="has precision 32-true, and this one has bf16-mixed"):
        train(MODEL, dataclasses.replace(c, steps=2, precision="bf16-mixed"), resume=True)
    saved["audiomamba"]["run"]["precision"] = "auto"  # as it was once written
    torch.save(saved, tmp_path / LAST)
    assert train(MODEL, dataclasses.replace(c, steps=2), resume=True).step == 2


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    c = config(data, tmp_path, steps=1)
    train(MODEL, c)
    last = tmp_path / LAST
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        train(MODEL, c, resume=True)


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


def test_a_finished_run_is_not_repeated(data, tmp_path):
    c = config(data, tmp_path, steps=2)
    outcome = train(MODEL, c)
    before = (tmp_path / LAST).stat().st_mtime_ns
    assert train(MODEL, c, resume=True) == outcome
    assert (tmp_path / LAST).stat().st_mtime_ns == before
