from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import audiomamba
from audiomamba import audio, checkpoint, output
from audiomamba.cli import main
from audiomamba.config import ModelConfig, Tier
from audiomamba.data import TokenStore
from audiomamba.models.waveform import WaveformModel
from audiomamba.tokenizer import Tokenizer

RATE = 16000


class StandIn:
    """A model that makes noise, sample i of (seed, i)."""

    name = "owner/stand in"
    sample_rate = RATE
    tokenizer = Tokenizer()
    weights_sha256 = "0123"
    temperature = 0.75
    engine = "numba"
    weights = None
    nll_bits = 2.5
    bits = (4.0, 2.0, 3.0)
    slow_to_compile = False

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.interrupt_at: int | None = None
        self.closed = False

    def warm_up(self, notify: Callable[[], None]) -> None:
        if self.slow_to_compile:
            notify()

    def read(self, pieces: Iterator[np.ndarray], notify: Callable[[], None]) -> np.ndarray:
        if self.slow_to_compile:
            notify()
        return np.concatenate(list(pieces))

    def generate_each(
        self, *, samples: int, num: int, seed: int, progress: Callable[[int], None], **options: Any
    ) -> Iterator[SimpleNamespace]:
        self.calls.append({"samples": samples, "num": num, "seed": seed, **options})
        try:
            for index in reversed(range(num)):
                if index == self.interrupt_at:
                    raise KeyboardInterrupt
                progress(samples)
                yield SimpleNamespace(
                    index=index,
                    waveform=noise(samples, seed, index),
                    bits_per_sample=self.bits[index % len(self.bits)],
                    rewinds=None,
                )
        finally:
            self.closed = True

    def nll(self, waveform: np.ndarray) -> float:
        self.calls.append({"waveform": waveform})
        return self.nll_bits


def noise(samples: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(audiomamba.__dict__, "load", lambda name, **options: stand_in)
    return stand_in


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return run


Run = Callable[..., tuple[int, str, str]]


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


def test_generate_writes_audio_and_its_record(run: Run, model: StandIn, tmp_path: Path) -> None:
    code, out, err = run("generate", "--seconds", 0.5, "--seed", 7, "-o", tmp_path / "new" / "er")
    path = tmp_path / "new" / "er" / "stand-in_7_0.wav"
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["seed 7", str(path)]
    assert lines[2].startswith("0.5 s of audio in ")
    assert lines[2].endswith(" times real time")
    assert np.abs(audio.read(path, RATE) - noise(8000, 7, 0)).max() <= 1 / 32768
    record = json.loads(path.with_suffix(".json").read_text())
    assert record.pop("times_real_time") > 0
    assert set(record.pop("versions")) - {"NUMBA_CPU_NAME"} == {
        "audiomamba",
        "cpu",
        "machine",
        "numba",
        "numpy",
        "python",
        "torch",
    }
    assert record == {
        "file": path.name,
        "sample_rate": RATE,
        "samples": 8000,
        "model": "piano",
        "weights_sha256": "0123",
        "seed": 7,
        "index": 0,
        "bits_per_sample": 4.0,
        "seconds": 0.5,
        "temperature": 0.75,
        "top_k": None,
        "top_p": None,
        "guard": None,
        "prompt": None,
        "engine": "numba",
        "weights": "float32",
        "device": "cpu",
    }
    assert sorted(p.name for p in path.parent.iterdir()) == ["stand-in_7_0.json", path.name]


def test_a_spectrogram_is_drawn_beside_and_not_over_another(
    run: Run, model: StandIn, tmp_path: Path
) -> None:
    asked = ("generate", "--seconds", 0.1, "--seed", 3, "--spectrogram", "-o", tmp_path)
    code, out, _ = run(*asked, "--quiet")
    (picture,) = tmp_path.glob("*.png")
    assert (code, out) == (0, f"{picture.with_suffix('.wav')}\n{picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for path in (*tmp_path.glob("*.wav"), *tmp_path.glob("*.json")):
        path.unlink()
    code, _, err = run(*asked)
    assert (code, is_one_line(err)) == (1, True)
    assert f"{picture} is there already" in err
    code, out, _ = run(*asked, "--overwrite", "--rank")
    assert (code, out.splitlines()[2]) == (0, str(picture))


def test_a_spectrogram_of_too_little_is_refused_before_the_work(
    run: Run, model: StandIn, tmp_path: Path
) -> None:
    code, _, err = run("generate", "--seconds", 0.01, "--spectrogram", "-o", tmp_path)
    assert (code, is_one_line(err)) == (2, True)
    assert "--spectrogram needs at least 1024 samples" in err
    assert not model.calls


def test_the_record_names_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", "nocona")
    versions = output.versions()
    assert versions["cpu"] not in ("", "nocona")
    assert versions["NUMBA_CPU_NAME"] == "nocona"
    monkeypatch.delenv("NUMBA_CPU_NAME")
    assert "NUMBA_CPU_NAME" not in output.versions()


def test_every_option_reaches_the_model(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = StandIn()
    loaded: list[tuple[str, str, str]] = []

    def load(name: str, device: str, weights: str) -> StandIn:
        loaded.append((name, device, weights))
        return model

    monkeypatch.setitem(audiomamba.__dict__, "load", load)
    code, out, _ = run(
        *("generate", "--seconds", 0.01, "--num", 2, "--output_dir", tmp_path, "--seed", 3),
        *("--temperature", 0.9, "--top-k", 5, "--top-p", 0.8, "--format", "flac"),
        *("-m", "some/where", "--device", "cuda:1", "--batch-size", 7),
        *("--weights", "bfloat16"),
    )
    assert code == 0
    assert loaded == [("some/where", "cuda:1", "bfloat16")]
    assert model.calls == [
        {
            "samples": 160,
            "num": 2,
            "seed": 3,
            "first": 0,
            "temperature": 0.9,
            "top_k": 5,
            "top_p": 0.8,
            "guard": False,
            "prompt": None,
            "batch": 7,
        }
    ]
    paths = [tmp_path / f"stand-in_3_{index}.flac" for index in (1, 0)]
    assert out.splitlines()[1:3] == list(map(str, paths))
    assert [soundfile.info(path).format for path in paths] == ["FLAC", "FLAC"]
    record = json.loads(paths[0].with_suffix(".json").read_text())
    expected = {"index": 1, "temperature": 0.9, "top_k": 5, "top_p": 0.8, "device": "cuda:1"}
    assert expected.items() <= record.items()


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_every_format_is_written(run: Run, model: StandIn, tmp_path: Path, format: str) -> None:
    code, _, _ = run("generate", "--seconds", 0.1, "--seed", 0, "-o", tmp_path, "--format", format)
    assert code == 0
    assert len(audio.read(tmp_path / f"stand-in_0_0.{format}", RATE)) == 1600


def test_a_random_seed_is_printed(run: Run, model: StandIn, tmp_path: Path) -> None:
    seeds = set()
    for _ in range(2):
        code, out, _ = run("generate", "--seconds", 0.01, "-o", tmp_path)
        assert code == 0
        seeds.add(int(out.splitlines()[0].removeprefix("seed ")))
    assert seeds == {call["seed"] for call in model.calls}
    assert len(seeds) == 2


def test_quiet_prints_the_paths_alone(run: Run, model: StandIn, tmp_path: Path) -> None:
    code, out, err = run("generate", "--seconds", 0.01, "--seed", 1, "-o", tmp_path, "--quiet")
    assert (code, out, err) == (0, f"{tmp_path / 'stand-in_1_0.wav'}\n", "")


def test_paths_are_absolute(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("generate", "--seconds", 0.01, "--seed", 1, "-o", "here", "--quiet")
    assert out == f"{tmp_path / 'here' / 'stand-in_1_0.wav'}\n"


def test_compiling_is_told(run: Run, model: StandIn, tmp_path: Path) -> None:
    model.slow_to_compile = True
    arguments = ("generate", "--seconds", 0.01, "-o", tmp_path)
    assert run(*arguments)[2].startswith("compiling for this machine")
    audio.write(tmp_path / "before.wav", noise(160, 0), RATE)
    prompted = (*arguments, "--prompt", tmp_path / "before.wav")
    assert run(*prompted)[2].splitlines() == [
        "compiling for this machine; the next start finds it done",
        "compiling what reads prompts, for this machine; the next start finds it done",
    ]
    assert run(*arguments, "--quiet")[2] == ""


def test_the_engine_recorded_is_the_one_that_could_be_opened(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.engine = "cuda"
    monkeypatch.setattr(model, "warm_up", lambda notify: setattr(model, "engine", "triton"))
    run("generate", "--seconds", 0.01, "--seed", 1, "-o", tmp_path)
    assert json.loads((tmp_path / "stand-in_1_0.json").read_text())["engine"] == "triton"


def test_progress_shows_on_a_terminal_alone(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    arguments = ("generate", "--seconds", 2, "--num", 2, "-o", tmp_path)
    _, _, err = run(*arguments)
    assert "0.0 of 4.0 s" in err
    assert "times real time, " in err
    assert "left" in err
    assert run(*arguments, "--quiet")[2] == ""


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
    assert np.array_equal(model.calls[0]["prompt"], start)
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
    assert [len(call["prompt"]) for call in model.calls] == [8000, 16000]
    assert code == 0
    assert err == "note: the prompt lasts 1 s; all of it is used\n"


def test_a_silent_prompt_is_used_and_told(run: Run, model: StandIn, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.wav"
    audio.write(prompt, np.zeros(99, np.float32), RATE)
    code, _, err = run("generate", "--seconds", 0.1, "-o", tmp_path, "--prompt", prompt)
    assert (code, err) == (0, "note: the prompt is silent\n")


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
    assert len(model.calls[-1]["prompt"]) == RATE + 1
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seconds", "0"],
        ["--seconds", "-1"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--seconds", "1e308"],
        ["--prompt-seconds", "1e308"],
        ["--seconds", "long"],
        ["--seconds", "1e-9"],
        ["--num", "0"],
        ["--seed", "-1"],
        ["--temperature", "-0.1"],
        ["--temperature", "nan"],
        ["--top-k", "0"],
        ["--top-k", "99999999999999999999"],
        ["--top-p", "0"],
        ["--top-p", "1.5"],
        ["--format", "aac"],
        ["--prompt-seconds", "1"],
        ["--prompt-seconds", "-1"],
        ["--without-prompt"],
        ["--keep", "2"],
        ["--batch-size", "0"],
        ["--batch-size", "many"],
        ["--stream", "--play"],
        ["--stream", "--num", "2"],
        ["--loud"],
        ["extra"],
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    run: Run, model: StandIn, tmp_path: Path, arguments: list[str]
) -> None:
    code, out, err = run("generate", "-o", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert err.endswith("; see audiomamba generate --help\n")
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_misuse(run: Run) -> None:
    code, _, err = run("generat")
    assert code == 2
    assert is_one_line(err)
    assert "generat" in err


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert out == run("--help")[1]
    for command in ("doctor", "evaluate", "fetch", "generate", "prepare"):
        assert f"  {command} " in out


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"audiomamba {audiomamba.__version__}\n", "")


@pytest.mark.parametrize("existing", ["stand-in_5_1.wav", "stand-in_5_1.json"])
def test_nothing_is_overwritten_unasked(
    run: Run, model: StandIn, tmp_path: Path, existing: str
) -> None:
    (tmp_path / existing).write_text("precious")
    arguments = ("generate", "--seconds", 0.01, "--seed", 5, "--num", 2, "-o", tmp_path)
    code, _, err = run(*arguments)
    assert code == 1
    assert is_one_line(err)
    assert f"{tmp_path / existing} is there already; add --overwrite" in err
    assert not model.calls
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert run(*arguments, "--overwrite")[0] == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_an_unwritable_folder_is_found_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("generate", "-m", "no such model", "-o", tmp_path / "file" / "out")
    assert code == 1
    assert is_one_line(err)
    assert "file/out (Not a directory); name another folder with --output-dir" in err


def test_a_read_only_folder_is_found(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    code, _, err = run("generate", "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    assert f"cannot write into {tmp_path} (Permission denied); name another folder" in err


def test_too_little_space_is_found_before_generating(
    run: Run, model: StandIn, tmp_path: Path
) -> None:
    code, _, err = run("generate", "--seconds", "1e9", "-n", 10**9, "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    assert "B free and the audio takes 32.0ZB; free some space" in err
    assert not model.calls


def test_the_space_is_told_in_a_unit_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.shutil, "disk_usage", lambda folder: SimpleNamespace(free=512))
    with pytest.raises(OSError, match=r"has 512B free and the audio takes 32\.0kB; free some"):
        output.check_space(tmp_path, 16000)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.ENOSPC, "free some space or name another folder"),
        (errno.EDQUOT, "free some of your quota or name another folder"),
        (errno.EFBIG, "ask for less or name a folder that takes larger files"),
    ],
)
def test_a_disk_that_fills_up_keeps_what_is_finished(
    run: Run,
    model: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    remedy: str,
) -> None:
    original = Path.write_bytes

    def write_bytes(path: Path, data: Any) -> int:
        if "_0.wav" in path.name:
            original(path, bytes(data)[:100])
            raise OSError(error, os.strerror(error))
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    code, out, err = run("generate", "--seconds", 0.01, "-n", 2, "--seed", 1, "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    assert err == f"error: {os.strerror(error)}: {tmp_path / 'stand-in_1_0.wav'}; {remedy}\n"
    assert str(tmp_path / "stand-in_1_1.wav") in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "stand-in_1_1.json",
        "stand-in_1_1.wav",
    ]


def test_a_full_disk_names_the_record(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_text(path: Path, text: str, encoding: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    code, _, err = run("generate", "--seconds", 0.01, "--seed", 1, "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    assert f"No space left on device: {tmp_path / 'stand-in_1_0.json'}; free some" in err


def test_a_failure_to_write_stops_the_other_takes(
    model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as failure:  # holds the frames of the error
        main(["generate", "--seconds", "0.01", "-n", "3", "-o", str(tmp_path), "--debug"])
    assert model.closed
    assert failure.tb is not None


def test_ctrl_c_keeps_what_is_finished(run: Run, model: StandIn, tmp_path: Path) -> None:
    model.interrupt_at = 0
    code, out, err = run("generate", "--seconds", 0.01, "-n", 3, "--seed", 1, "-o", tmp_path)
    assert code == 130
    assert err == "interrupted: 2 of 3 files are finished and kept\n"
    for index in (1, 2):
        assert str(tmp_path / f"stand-in_1_{index}.wav") in out
        assert len(audio.read(tmp_path / f"stand-in_1_{index}.wav", RATE)) == 160
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_is_interrupted_is_not_counted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audiomamba.output.write_take", interrupted)
    code, _, err = run("generate", "--seconds", 0.1, "-n", 2, "-o", tmp_path, "--quiet")
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert err == "interrupted: 0 of 2 files are finished and kept\n"


def test_ctrl_c_while_loading_exits_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(audiomamba.__dict__, "load", load)
    code, out, err = run("generate")
    assert (code, out, err.strip()) == (130, "", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "error: two lines\n"),
        (FileNotFoundError("no model 'x'"), "error: no model 'x'\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "error: Permission denied: /x; change its permissions or name another folder\n",
        ),
        (
            ImportError("needs lightning: pip install it"),
            "error: needs lightning: pip install it\n",
        ),
        (KeyError("x"), "error: KeyError: 'x'; --debug tells where\n"),
        (
            RuntimeError("CUDA error: no CUDA-capable device is detected\nSearch for ..."),
            "error: the device failed (CUDA error: no CUDA-capable device is detected); audiomamba "
            "doctor tells what works here\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee ..."),
            "error: the device's memory is full; free some of it, or ask for less at once\n",
        ),
        (RuntimeError("other"), "error: RuntimeError: other; --debug tells where\n"),
    ],
)
def test_an_error_is_one_line_unless_debugging(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, line: str
) -> None:
    def load(name: str, **options: Any) -> None:
        raise error

    monkeypatch.setitem(audiomamba.__dict__, "load", load)
    assert run("generate", "-o", tmp_path) == (1, "", line)
    with pytest.raises(type(error)):
        main(["generate", "-o", str(tmp_path), "--debug"])


def test_prepare_turns_a_folder_into_tokens(run: Run, tmp_path: Path) -> None:
    for index, split in enumerate(["train", "train", "validation", "test"]):
        path = tmp_path / "music" / split / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(22050, index), 22050)
    soundfile.write(tmp_path / "music" / "train" / "silent.wav", np.zeros(100), RATE)
    out_dir = tmp_path / "out"
    options = ("--sample-rate", 8000, "--encoding", "linear", "--bits", 9, "--speeds", "0.9,1")
    code, out, err = run("prepare", tmp_path / "music", out_dir, *options)
    assert (code, err) == (0, "note: train/silent.wav is silent\n")
    assert out.splitlines()[0].split() == ["train", "6", "files", "0.00", "hours"]
    assert out.splitlines()[-1] == str(out_dir)
    store = TokenStore(out_dir)
    assert (store.sample_rate, store.tokenizer) == (8000, Tokenizer("linear", 9))
    assert store.files("test")[0].samples == 8000

    code, _, err = run("prepare", tmp_path / "music", out_dir)
    assert code == 1
    assert is_one_line(err)
    assert "--overwrite" in err
    assert run("prepare", tmp_path / "music", out_dir, "--overwrite", "--quiet") == (
        0,
        f"{out_dir}\n",
        "note: train/silent.wav is silent\n",
    )

    (tmp_path / "music" / "train" / "bad.mp3").write_text("no audio")
    code, _, err = run("prepare", tmp_path / "music", tmp_path / "again")
    assert code == 1
    assert is_one_line(err)
    assert "bad.mp3" in err
    code, _, err = run("prepare", tmp_path / "music", tmp_path / "again", "--skip-bad")
    assert code == 0
    assert "skipped train/bad.mp3: " in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere", "out"],
        ["here"],
        ["here", "out", "--bits", "17"],
        ["here", "out", "--speeds", "fast"],
        ["here", "a.txt"],
    ],
)
def test_prepare_misused_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "a.txt").write_text("")
    code, _, err = run("prepare", *arguments)
    assert code == 2
    assert is_one_line(err)


def test_evaluate_scores_a_file(run: Run, model: StandIn, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", noise(RATE, 0), RATE)
    assert run("evaluate", tmp_path / "a.wav") == (0, "2.5000 bits per sample\n", "")
    assert run("evaluate", tmp_path / "a.wav", "--seconds", 0.5)[0] == 0
    assert [len(call["waveform"]) for call in model.calls] == [16000, 8000]


def test_evaluate_refuses_a_folder_of_audio(run: Run, model: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "music" / "test" / "a.wav"
    path.parent.mkdir(parents=True)
    audio.write(path, noise(99, 0), RATE)
    code, _, err = run("evaluate", tmp_path / "music")
    assert code == 1
    assert is_one_line(err)
    assert "holds no prepared tokens" in err


def test_names_of_files_hold_no_odd_characters(tmp_path: Path) -> None:
    names = [
        output.targets(tmp_path, model, 1, [0], "wav", overwrite=False)[0].name
        for model in ("piano", "owner/piano v2", "/runs/a:b/", "..")
    ]
    assert names == ["piano_1_0.wav", "piano-v2_1_0.wav", "a-b_1_0.wav", "model_1_0.wav"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tier = Tier(mixer="lti", complex=True, n_layers=1, d_state=2, d_conv=2)
    config = ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))
    folder = tmp_path / "small"
    checkpoint.save(folder, config, WaveformModel(config).state_dict())
    return folder


def test_evaluate_scores_tokens_as_it_scores_their_audio(
    run: Run, small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "music" / "validation" / "a.wav"
    path.parent.mkdir(parents=True)
    audio.write(path, noise(1001, 0), RATE)
    assert run("prepare", tmp_path / "music", tmp_path / "out")[0] == 0
    arguments = ("evaluate", "-m", small)
    code, out, err = run(*arguments, tmp_path / "out", "--split", "validation")
    assert (code, err) == (0, "")
    assert 4 < float(out.removesuffix(" bits per sample\n")) < 16
    assert out == run(*arguments, path)[1]
    assert out != run(*arguments, path, "--seconds", 0.01)[1]
    code, _, err = run(*arguments, tmp_path / "out")
    assert code == 1
    assert is_one_line(err)
    assert "no test files" in err


@pytest.mark.parametrize("how", ["missing", "pickle", "truncated", "mismatched", "file"])
def test_a_bad_model_is_one_line(run: Run, small: Path, tmp_path: Path, how: str) -> None:
    name, weights, config = small, small / "model.safetensors", small / "config.json"
    if how == "missing":
        name = tmp_path / "nowhere"
    elif how == "pickle":
        name = tmp_path / "model.pt"
        name.write_bytes(b"x")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "mismatched":
        config.write_text(config.read_text().replace('"d_model": 4', '"d_model": 6'))
    elif how == "file":
        name = weights
    code, out, err = run("generate", "-m", name, "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert name.name in err
    assert not list((tmp_path / "out").iterdir())
