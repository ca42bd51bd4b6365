"""What `audiomamba generate --prompt` takes, refuses and tells."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiomamba import audio
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine.choice import open_engine
from audiomamba.engine.prompt import read_prompt
from audiomamba.models.waveform import WaveformModel
from audiomamba_kernels.jit import jit
from tests.cli.stand_in import RATE, Run, StandIn, is_one_line, noise


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 5)])
def test_a_prompt_of_any_kind_is_continued(
    run: Run, model: StandIn, tmp_path: Path, rate: int, channels: int
) -> None:
    prompt = tmp_path / "prompt.flac"
    data = np.random.default_rng(0).uniform(-0.5, 0.5, (rate, channels))
    soundfile.write(prompt, data, rate)
    code, _, err = run(
        *("generate", "--seconds", 0.25, "--seed", 1, "-o", tmp_path, "--prompt", prompt)
    )
    assert (code, err) == (0, "")
    start = audio.read(prompt, RATE)
    (given,) = model.calls[0]["prompt"]
    assert np.array_equal(given, start)
    written = audio.read(tmp_path / "stand-in_1_0.wav", RATE)
    assert np.abs(written - np.concatenate([start, noise(4000, 1, 0)])).max() <= 1 / 32768
    record = json.loads((tmp_path / "stand-in_1_0.json").read_text())
    assert record["samples"] == 20000
    assert record["seconds"] == 0.25
    assert record["prompt"] == {
        "file": str(prompt),
        "sha256": hashlib.sha256(prompt.read_bytes()).hexdigest(),
        "seconds": 1.0,
        "in_file": True,
    }


def test_reading_a_prompt_is_no_part_of_the_speed(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(pieces: Iterator[np.ndarray], notify: Callable[[], None]) -> np.ndarray:
        notify()
        time.sleep(0.5)
        return np.concatenate(list(pieces))

    monkeypatch.setattr(model, "read", read)
    prompt = tmp_path / "prompt.wav"
    audio.write(prompt, noise(RATE, 0), RATE)
    code, _, err = run("generate", "--seconds", 10, "--seed", 1, "-o", tmp_path, "--prompt", prompt)
    told = "compiling what reads prompts, for this machine; the next start finds it done\n"
    assert (code, err) == (0, told)
    record = json.loads((tmp_path / "stand-in_1_0.json").read_text())
    assert record["times_real_time"] > 10 / 0.5


def test_the_beginning_of_a_prompt_can_be_used(run: Run, model: StandIn, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.wav"
    audio.write(prompt, noise(RATE, 0), RATE)
    arguments = ("generate", "--seconds", 0.1, "-o", tmp_path, "--prompt", prompt)
    assert run(*arguments, "--prompt-seconds", 0.5)[0] == 0
    code, _, err = run(*arguments, "--prompt-seconds", 2)
    assert [len(call["prompt"][0]) for call in model.calls] == [8000, 16000]
    assert code == 0
    assert err == "note: the prompt prompt.wav lasts 1 s; all of it is used\n"


def test_a_silent_prompt_is_used_and_told(run: Run, model: StandIn, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.wav"
    audio.write(prompt, np.zeros(99, np.float32), RATE)
    code, _, err = run("generate", "--seconds", 0.1, "-o", tmp_path, "--prompt", prompt)
    assert (code, err) == (0, "note: the prompt prompt.wav is silent\n")


def test_each_of_several_prompts_is_continued(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a.wav", "b.wav", "a.wav")]
    for path, samples in zip(paths[:2], (50, 70), strict=True):
        audio.write(path, noise(samples, 0), RATE)
    reads, read = [], model.read
    monkeypatch.setattr(model, "read", lambda *given: reads.append(given) or read(*given))
    prompts = [word for path in paths for word in ("--prompt", path)]
    asked = ("generate", "--seconds", 0.01, "--seed", 1, "-o", tmp_path, *prompts)
    assert run(*asked)[0] == 0
    assert len(reads) == 2
    assert [len(one) for one in model.calls[0]["prompt"]] == [50, 70, 50]
    for index, path in enumerate(paths):
        made = tmp_path / f"stand-in_1_{index}.wav"
        before = audio.read(path, RATE)
        assert np.array_equal(audio.read(made, RATE)[: len(before)], before)
        assert len(audio.read(made, RATE)) == len(before) + 160
        assert json.loads(made.with_suffix(".json").read_text())["prompt"]["file"] == str(path)
    assert run(*asked, "-n", 3, "--overwrite")[0] == 0
    code, _, err = run(*asked, "-n", 2)
    assert (code, is_one_line(err)) == (2, True)
    assert "--num 2 is not how many --prompt there are, 3; leave it out" in err
    code, _, err = run("generate", "--stream", *prompts)
    assert code == 2
    assert "--prompt, given 3 times, does not go with --stream" in err


def test_a_long_prompt_needs_a_limit(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiomamba.commands.prompt.PROMPT_LIMIT_SECONDS", 1)
    prompt = tmp_path / "prompt.wav"
    audio.write(prompt, noise(RATE + 1, 0), RATE)
    arguments = ("generate", "--seconds", 0.1, "-o", tmp_path / "out", "--prompt", prompt)
    code, _, err = run(*arguments)
    assert code == 1
    assert is_one_line(err)
    assert "longer than 1 s; say how much of it to use with --prompt-seconds, or add" in err
    assert run(*arguments, "--prompt-seconds", 1)[0] == 0
    assert run(*arguments, "--without-prompt", "--seed", 4)[0] == 0
    assert len(model.calls[-1]["prompt"][0]) == RATE + 1
    assert len(audio.read(tmp_path / "out" / "stand-in_4_0.wav", RATE)) == 1600


def spoil(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("no audio")
    elif how == "nan":
        soundfile.write(path, np.full(99, math.nan), RATE, subtype="FLOAT")
    elif how == "cut":
        soundfile.write(path, noise(99), RATE)
        path.write_bytes(path.read_bytes()[:-2])
    elif how == "empty":
        soundfile.write(path, np.zeros(0), RATE)
    elif how == "folder":
        path.mkdir()


@pytest.mark.parametrize("how", ["missing", "text", "nan", "empty", "folder", "cut"])
def test_a_bad_prompt_is_named(run: Run, model: StandIn, tmp_path: Path, how: str) -> None:
    prompt = tmp_path / "prompt.wav"
    spoil(prompt, how)
    code, out, err = run("generate", "--prompt", prompt, "-o", tmp_path / "out")
    assert code in (1, 2)
    assert out == ""
    assert is_one_line(err)
    assert "prompt.wav" in err
    assert not model.calls
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("how", ["text", "empty", "cut"])
def test_a_bad_prompt_is_found_before_the_model_is_loaded(
    run: Run, tmp_path: Path, how: str
) -> None:
    spoil(tmp_path / "prompt.wav", how)
    code, _, err = run(
        *("generate", "-m", "no such model", "-o", tmp_path, "--prompt", tmp_path / "prompt.wav")
    )
    assert code == 1
    assert is_one_line(err)
    assert "prompt.wav" in err


def test_compiling_for_a_prompt_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tier = Tier(mixer="lti", n_layers=1, d_state=2)
    network = WaveformModel(ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))).eval()
    opened = open_engine(network)
    functions = [jit(lambda x: x + 1), jit(lambda x: x + 2)]
    told: list[None] = []
    for fresh, notify in zip(functions, (lambda: told.append(None), None), strict=True):
        hook = network.register_forward_pre_hook(lambda *_, fresh=fresh: fresh(1) and None)
        for _ in range(2):
            read_prompt(network, opened, [np.zeros(9, np.int64)], notify)
        hook.remove()
    assert len(told) == 1
    said = [r.getMessage() for r in caplog.records if r.name == "audiomamba.engine.prompt"]
    assert said == ["compiling what reads prompts; this happens once and takes about 20 seconds"]
