"""What `audiomamba generate` writes, records and says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import audiomamba
from audiomamba import audio, output
from tests.cli.stand_in import RATE, Run, StandIn, is_one_line, noise


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


def test_names_of_files_hold_no_odd_characters(tmp_path: Path) -> None:
    names = [
        output.targets(tmp_path, model, 1, [0], "wav", overwrite=False)[0].name
        for model in ("piano", "owner/piano v2", "/runs/a:b/", "..")
    ]
    assert names == ["piano_1_0.wav", "piano-v2_1_0.wav", "a-b_1_0.wav", "model_1_0.wav"]


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
