"""What `audiomamba generate` does with takes: ranks, keeps, resumes, plays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import audiomamba
from audiomamba import audio
from audiomamba.cli import main
from audiomamba.files import sha256
from tests.takes.records import RATE, Run, record


def test_the_likeliest_are_kept_in_order(run: Run, small: Path, tmp_path: Path) -> None:
    model = audiomamba.load(small)
    bits = [model.nll(row) for row in model.generate(samples=160, num=6, seed=1)]
    best = sorted(range(6), key=lambda index: bits[index])
    code, out, err = run(
        *("--seconds", 0.01, "-n", 6, "--keep", 2, "--save-state"),
    )
    assert (code, err) == (0, "")
    kept = [tmp_path / f"small_1_{index}.wav" for index in best[:2]]
    assert out.splitlines()[1:3] == list(map(str, kept))
    assert len(list(tmp_path.iterdir())) == 6
    for rank, path in enumerate(kept, 1):
        found = record(path)
        assert (found["rank"], found["ranked"]) == (rank, 6)
        assert found["bits_per_sample"] == pytest.approx(bits[best[rank - 1]], abs=1e-4)
        assert found["file"] == path.name

    code, out, _ = run("--seconds", 0.01, "-n", 6, "--rank", "--overwrite", "--quiet")
    assert code == 0
    assert out.split() == [str(tmp_path / f"small_1_{index}.wav") for index in best]
    assert record(tmp_path / f"small_1_{best[5]}.wav")["rank"] == 6


def test_what_an_older_take_left_beside_does_not_stay(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "small_1_9.safetensors"
    run("--seconds", 0.01, "-n", 3, "--save-state")
    other.write_bytes(b"another's")
    assert run("--seconds", 0.01, "-n", 2, "--overwrite")[0] == 0
    left = {path.name for path in tmp_path.glob("*.safetensors")}
    assert left == {"small_1_2.safetensors", other.name}  # no state of sounds that are gone
    assert run("--seconds", 0.01, "-n", 3, "--keep", 1, "--overwrite")[0] == 0
    assert other.exists()


def test_a_zero_is_an_option_too(run: Run, tmp_path: Path) -> None:
    run("--seconds", 0.01, "--save-state")
    state = tmp_path / "small_1_0.safetensors"
    code, _, err = run("--seconds", 0.01, "--resume", state, "--temperature", 0)
    assert code == 2
    assert "--temperature does not go with --resume" in err


def test_a_take_goes_on_from_its_state(
    run: Run, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--seconds", 0.3, "-n", 2, "--temperature", 0.9)[0] == 0
    whole = audio.read(tmp_path / "small_1_1.wav", RATE)
    half = ("--seconds", 0.15, "-n", 2, "--temperature", 0.9, "--save-state", "--overwrite")
    assert run(*half)[0] == 0
    state = tmp_path / "small_1_1.safetensors"
    code, out, _ = run("--seconds", 0.1, "--resume", state, "--save-state")
    rest = tmp_path / "small_1_1_from_2400.wav"
    assert (code, out.splitlines()[:2]) == (0, ["seed 1", str(rest)])
    assert np.array_equal(audio.read(rest, RATE), whole[2400:4000])
    found = record(rest)
    assert (found["index"], found["temperature"]) == (1, 0.9)
    assert found["resumed"]["samples"] == 2400  # type: ignore[index]
    assert run("--seconds", 0.05, "--resume", rest.with_suffix(".safetensors"))[0] == 0
    last = audio.read(tmp_path / "small_1_1_from_4000.wav", RATE)
    assert np.array_equal(last, whole[4000:])
    model = audiomamba.load(small)
    two = model.start(num=2)
    two.save(tmp_path / "two.safetensors")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "-m", str(small), "--resume", f"{tmp_path}/two.safetensors", "--stream"])
    assert "two.safetensors holds 2" in capfd.readouterr().err
    code, _, err = run("--resume", state, "--top-k", 3)
    assert code == 2
    assert "--top-k does not go with --resume" in err
    state.write_bytes(state.read_bytes()[:50])
    code, _, err = run("--resume", state)
    assert (code, err.count("\n")) == (1, 1)
    assert "is damaged or holds no saved streams" in err


def test_streams_go_on_from_where_each_stands(run: Run, small: Path, tmp_path: Path) -> None:
    model, state = audiomamba.load(small), tmp_path / "three.safetensors"
    session = model.start(prompt=[np.zeros(n, np.float32) for n in (800, 300, 301)], seed=4)
    session.run(500)
    session.save(state)
    assert run("--seconds", 0.01, "--resume", state)[0] == 0
    for index, start in enumerate((1300, 800, 801)):
        path = tmp_path / f"small_4_{index}_from_{start}.wav"
        assert record(path)["resumed"] == {
            "file": str(state),
            "sha256": sha256(state),
            "samples": start,
        }
        rest = model.resume(state).run(160)[index]
        np.testing.assert_allclose(audio.read(path, RATE), rest, atol=1e-4)  # 16 bits


def test_weights_that_the_engine_has_not_are_one_line(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--weights", "bfloat16")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--weights bfloat16 is for a GPU alone" in err
    run("--seconds", 0.01, "--save-state")
    state = tmp_path / "small_1_0.safetensors"
    assert run("--seconds", 0.01, "--resume", state, "--weights", "float32")[0] == 0
    with safe_open(state, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["facts"]) | {"weights": "bfloat16"}
        metadata = file.metadata() | {"facts": json.dumps(facts)}
    save_file(tensors, state, metadata)
    code, _, err = run("--seconds", 0.01, "--resume", state, "--overwrite")
    assert (code, err.count("\n")) == (1, 1)
    assert "weights is 'bfloat16', but the numba engine" in err


def test_files_are_played_in_order(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    asked = ("--seconds", 0.01, "-n", 2, "--play", "--overwrite")
    code, _, err = run(*asked)
    assert code == 1
    assert "none of ffplay, afplay, paplay, aplay is installed; install ffmpeg" in err
    assert not list(tmp_path.glob("*.wav"))
    player = tmp_path / "bin" / "aplay"
    player.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/played\n')
    player.chmod(0o755)
    assert run(*asked)[0] == 0
    played = (tmp_path / "played").read_text().splitlines()
    assert played == [f"-q {tmp_path}/small_1_{index}.wav" for index in range(2)]
    assert "nothing here plays mp3 files" in run(*asked, "--format", "mp3")[2]
    player.write_text("#!/bin/sh\necho no sound device >&2; exit 3\n")
    code, _, err = run(*asked)
    assert code == 1
    assert re.search(r"^error: aplay could not play .*: no sound device; the file is there\n", err)
