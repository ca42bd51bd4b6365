"""What the command line says when something is wrong: one line, what to do, and early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file

import audiomamba
from audiomamba import EncoderConfig, MambaEncoder, audio, checkpoint
from audiomamba.cli import main
from audiomamba.config import ModelConfig, Tier
from audiomamba.models.waveform import WaveformModel

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert isinstance(stop.value.code, int)
        return stop.value.code, err

    return run


def test_a_gallery_is_a_page(run: Run, tmp_path: Path) -> None:
    code, err = run("generate", "-o", tmp_path, "--gallery", tmp_path / "best.txt")
    assert code == 2
    assert f"--gallery {tmp_path / 'best.txt'} must end in .html or .htm; see" in err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    audio.write(tmp_path / "a.wav", np.zeros(4000), 16000)
    return tmp_path / "a.wav"


def test_only_models_of_the_kind_are_named(run: Run, wav: Path, tmp_path: Path) -> None:
    assert "shipped: digits, piano\n" in run("generate", "-m", "pian", "-o", tmp_path)[1]
    assert "shipped: digits, piano\n" in run("encode", wav, "-m", "pian", "-o", tmp_path)[1]
    assert "shipped: digit_classifier\n" in run("classify", wav, "-m", "pian")[1]


def test_a_model_of_another_kind_is_told_with_what_there_is(
    run: Run, wav: Path, tmp_path: Path
) -> None:
    assert run("classify", wav, "-m", "piano")[1] == (
        "error: piano is no classifier, but a model of waveforms, for `audiomamba generate`; "
        "a classifier that ships: digit_classifier\n"
    )
    assert run("generate", "-m", "digit_classifier", "-o", tmp_path)[1] == (
        "error: digit_classifier is no model of waveforms, but a classifier, for `audiomamba "
        "classify`; a model of waveforms that ships: digits, piano\n"
    )


def test_a_folder_of_transformers_is_told_how_to_be_taken(
    run: Run, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = pytest.importorskip("audiomamba.adapters.for_transformers")
    encoder = MambaEncoder(EncoderConfig(d_model=8, n_layers=1)).eval()
    adapter.AudiomambaEncoderModel.from_encoder(encoder).save_pretrained(tmp_path / "theirs")
    capsys.readouterr()
    _, err = run("encode", wav, "-m", tmp_path / "theirs", "-o", tmp_path)
    assert ".from_pretrained(FOLDER).encoder.save_pretrained(OUT)" in err
    model = adapter.AudiomambaEncoderModel.from_pretrained(tmp_path / "theirs")
    model.encoder.save_pretrained(tmp_path / "ours")
    with pytest.raises(SystemExit, match="0"):
        main(["encode", str(wav), "-m", str(tmp_path / "ours"), "-o", str(tmp_path)])


class ConnectError(Exception):
    """As that of httpx, which is no OSError."""


@pytest.mark.parametrize("kind", [ConnectError, errors.LocalEntryNotFoundError])
def test_a_hub_that_cannot_be_reached_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fetch(repository: str, **options: object) -> str:
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as error:
            raise kind("Got: ConnectError:\nAn error happened") from error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    begin = "error: 'some/model' is no folder here, and "
    code, err = run("generate", "-m", "some/model", "-o", tmp_path)
    assert code == 1
    assert err == (
        f"{begin}it cannot be fetched from the Hugging Face Hub ([Errno -2] Name or service "
        "not known); check the name and the network, or give a local folder\n"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    err = run("generate", "-m", "some/model", "-o", tmp_path)[1]
    assert err.startswith(f"{begin}HF_HUB_OFFLINE forbids to fetch it; unset that")


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for is wrong, and found before a model is loaded."""
    monkeypatch.delitem(audiomamba.__dict__, "load", raising=False)
    monkeypatch.setitem(audiomamba._HOME, "load", "not needed")


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize("end", [".wav", ".json"])
def test_a_file_that_is_there_is_found_early(run: Run, tmp_path: Path, end: str) -> None:
    there = (tmp_path / "piano_3_1").with_suffix(end)
    there.write_text("precious")
    code, err = run("generate", "-o", tmp_path, "--seed", 3, "-n", 2)
    assert code == 1
    assert f"{there} is there already; add --overwrite" in err


@pytest.mark.usefixtures("_no_model")
def test_weights_that_no_cpu_has_are_found_early(run: Run, tmp_path: Path) -> None:
    code, err = run("generate", "-o", tmp_path, "--weights", "bfloat16")
    assert code == 2
    assert "--weights bfloat16 is for a GPU alone; add --device cuda, or leave it out; see" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_no_model")
def test_a_file_that_cannot_be_resumed_is_found_early(run: Run, tmp_path: Path) -> None:
    state, record = tmp_path / "take.safetensors", tmp_path / "take.json"
    record.write_text('{"seed": 1}')
    code, err = run("generate", "-o", tmp_path, "--resume", record)
    assert code == 1
    assert f"{record} is damaged or holds no saved streams (" in err
    assert "; give" not in err
    save_file({"x": torch.zeros(1)}, state, {"format": "pt"})
    assert f"; give {state}\n" in run("generate", "-o", tmp_path, "--resume", record)[1]
    err = run("generate", "-o", tmp_path, "--resume", state)[1]
    assert f"{state} holds other tensors; give a file of --save-state or Session.save" in err


def make_model(folder: Path, bits: float | None) -> Path:
    """Make a model of noise, which has 8 bits per sample, and says that recordings have some."""
    tier = Tier(mixer="lti", complex=True, n_layers=1, d_state=2, d_conv=2)
    config = ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))
    known = {} if bits is None else {"validation_bits_per_sample": bits}
    checkpoint.save(folder, config, WaveformModel(config).state_dict(), training=known)
    return folder


def test_what_runs_away_is_told_by_files_and_seconds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "hiss", 1.0)
    common = ["generate", "-m", str(model), "--seconds", "1", "--seed", "4", "--guard"]
    told = "runs into noise at 0.25 s of what was made"
    for mode, anew in (("warn", ""), ("rewind", ", also after it was drawn anew 8 times")):
        with pytest.raises(SystemExit, match="0"):
            main([*common, mode, "-n", "2", "-o", str(tmp_path), "--overwrite"])
        err = capfd.readouterr().err
        for index in (0, 1):
            assert f"warning: hiss_4_{index}.wav {told}{anew}; it goes on as it is\n" in err
        assert "sample " not in err
    with pytest.raises(SystemExit, match="0"):
        main([*common, "rewind", "--stream"])
    assert f"warning: the stream {told}{anew}; it goes on" in capfd.readouterr().err


def test_a_guard_without_a_limit_is_told_by_its_option(run: Run, tmp_path: Path) -> None:
    model = make_model(tmp_path / "hiss", None)
    err = run("generate", "-m", model, "-o", tmp_path, "--guard", "rewind")[1]
    assert f"{model} has no validation bits, from which a guard's limit follows; leave" in err
    assert "--guard rewind out" in err
