"""`audiomamba generate --guard`: noise and running away, told or made again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import audiomamba
from audiomamba import audio
from audiomamba.cli import main
from audiomamba.commands.takes import _faults
from audiomamba.guard import NOISE, Guard
from tests.takes.records import RATE, Run, record


def test_noise_is_warned_of_and_recorded(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--seconds", 4, "--guard")
    assert code == 0
    assert err == "warning: small_1_0.wav has noise from 0 s to 4 s of what was made\n"
    assert record(tmp_path / "small_1_0.wav")["faults"] == [
        {"kind": "noise", "start": 0.0, "stop": 4.0}
    ]
    assert run("--seconds", 0.1, "--guard", "--overwrite")[2] == ""


def test_takes_are_judged_by_the_limits_of_their_model() -> None:
    sample = Path(__file__).parents[2] / "samples" / "piano_7_3.ogg"
    waveform, rate = soundfile.read(sample, dtype="float32")
    kinds = {name: [x["kind"] for x in _faults(waveform, rate, name)] for name in ("piano", "mine")}
    assert kinds == {"piano": ["noise", "silence"], "mine": ["silence"]}


@pytest.fixture
def known(small: Path) -> Iterator[float]:
    """Gives the small model bits of validation under which a guard finds it bad now and then."""
    path = small / "config.json"
    before = path.read_text()
    bits = 7.0
    values = {**json.loads(before), "training": {"validation_bits_per_sample": bits / NOISE}}
    path.write_text(json.dumps(values))
    yield bits
    path.write_text(before)


def test_a_guarded_take_can_be_made_again(
    run: Run, small: Path, tmp_path: Path, known: float, caplog: pytest.LogCaptureFixture
) -> None:
    code, _, _ = run("--seconds", 2, "-n", 2, "--guard", "rewind", "--save-state")
    assert code == 0
    path = tmp_path / "small_1_1.wav"
    found = record(path)
    assert found["guard"] == {"bits": known, "seconds": 0.5, "back": 1.0, "tries": 8}
    guard = Guard(**found["guard"])  # type: ignore[arg-type]
    model = audiomamba.load(small)
    *_, take = sorted(
        model.generate_each(samples=32000, num=2, seed=1, guard=guard), key=lambda one: one.index
    )
    assert take.rewinds is not None
    assert take.rewinds.times > 0
    assert found["rewinds"] == take.rewinds._asdict()
    np.testing.assert_allclose(audio.read(path, RATE), take.waveform, atol=1e-4)  # 16 bits
    assert not np.array_equal(take.waveform, model.generate(2, num=2, seed=1)[1])
    assert "stream 1 runs away at sample" in caplog.text
    state = path.with_suffix(".safetensors")
    assert run("--seconds", 0.1, "--resume", state, "--overwrite")[0] == 0
    resumed = record(tmp_path / "small_1_1_from_32000.wav")
    assert resumed["guard"] == found["guard"]


def test_a_model_may_want_a_guard(run: Run, small: Path, tmp_path: Path, known: float) -> None:
    free = audiomamba.load(small).generate(2, seed=1)
    path = small / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "generation": {"guard": True}}))
    model = audiomamba.load(small)
    guarded = model.generate(2, seed=1)
    assert np.array_equal(guarded, model.generate(2, seed=1, guard=True))
    assert not np.array_equal(guarded, free)
    assert np.array_equal(free, model.generate(2, seed=1, guard=False))
    model.temperature = 0.5
    model.save(tmp_path / "again")
    again = audiomamba.load(tmp_path / "again")
    assert (again.temperature, again.guard) == (0.5, True)
    assert again.validation_bits == model.validation_bits
    model.temperature = 1.0
    session = model.start(seed=1, guard=False)
    session.run(samples=10)
    session.save(tmp_path / "free.safetensors")
    for flags, limit in (
        ([], known),
        (["--guard", "off"], None),
        (["--resume", tmp_path / "free.safetensors"], None),  # goes on as it was
        (["--resume", tmp_path / "free.safetensors", "--guard", "rewind"], known),
    ):
        assert run("--seconds", 0.1, "--overwrite", *flags)[0] == 0
        name = "small_1_0_from_10.wav" if "--resume" in flags else "small_1_0.wav"
        guard = record(tmp_path / name)["guard"]
        assert (None if guard is None else guard["bits"]) == limit
        assert ("faults" in record(tmp_path / name)) == ("rewind" in flags)


def test_a_guard_without_a_limit_is_told_before_the_work(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--seconds", 1, "--guard", "rewind")
    assert (code, list(tmp_path.iterdir())) == (1, [])
    assert "has no validation bits, from which a guard's limit follows" in err


def test_a_guarded_stream_is_that_of_the_file(
    small: Path, known: float, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "generate",
                "-m",
                str(small),
                "--seed",
                "1",
                "--seconds",
                "2",
                "--stream",
                "--guard",
                "rewind",
                "--quiet",
            ]
        )
    sound = capfdbinary.readouterr().out
    whole = audiomamba.load(small).generate(2, seed=1, guard=True)[0]
    assert sound == audio.to_pcm16(whole)


def test_a_warning_alone_watches_the_likelihood_too(
    run: Run, tmp_path: Path, known: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("--seconds", 1, "--guard", "warn")[0] == 0
    found = record(tmp_path / "small_1_0.wav")
    assert found["guard"] == {"bits": known, "seconds": 0.5, "back": 1.0, "tries": 0}
    assert found["rewinds"] == {"times": 0, "samples": 0, "bad": 12000}
    assert "stream 0 runs away at sample 4000; it goes on as it is" in caplog.text


def test_a_stream_warns_of_nothing(run: Run) -> None:
    code, _, err = run("--stream", "--guard")
    assert code == 2
    assert "--guard warn does not go with --stream; --guard rewind does" in err
