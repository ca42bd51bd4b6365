"""A model becomes a folder of its own: what is in it, what it scores, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from audiomamba import checkpoint
from audiomamba.cli import cli
from audiomamba.config import Tier, unet
from audiomamba.export import export
from audiomamba.models.waveform import WaveformModel

OUTER = Tier(mixer="lti", complex=True, d_state=4)
MODEL = unet(8, 2, (4, 3), OUTER, Tier(d_state=4))
TRAINING = {"step": 7, "samples": 896, "validation_bits_per_sample": 3.25, "learning_rate": 0.002}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run's folder, whose best model is another than its last."""
    folder = tmp_path / "run"
    for place, step in ((folder, 7), (folder / "best", 5)):
        weights = WaveformModel(MODEL).state_dict()
        training = {**TRAINING, "step": step, "validation_seconds": None}
        checkpoint.save(place, MODEL, weights, temperature=0.9, guard=True, training=training)
    (folder / "last.ckpt").write_bytes(b"large")
    return folder


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_the_folder_holds_the_model_and_how_it_was_trained(
    run: Path, tmp_path: Path, best: bool, half: bool
) -> None:
    out = export(run, tmp_path / "models" / "mine", best=best, half=half)
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    source = run / "best" if best else run
    before, after = checkpoint.load(source).state_dict(), checkpoint.load(out).state_dict()
    for name, value in before.items():
        expected = value.half().float() if half else value
        assert torch.equal(after[name], expected), name
    sizes = [(place / checkpoint.WEIGHTS).stat().st_size for place in (source, out)]
    assert sizes[1] < sizes[0] * (0.6 if half else 1.01)
    assert checkpoint.read_temperature(out) == 0.9
    assert checkpoint.read_guard(out)
    values = json.loads((out / checkpoint.CONFIG).read_text())
    assert values == json.loads((source / checkpoint.CONFIG).read_text())
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: audiomamba\n")
    assert f"| step | {5 if best else 7} |" in card
    assert "| validation bits per sample | 3.25 |" in card
    assert "validation seconds" not in card  # None says nothing
    assert "| start |" not in card
    assert ("before they were rounded" in card) == half
    assert "2 x complex Mamba, time-invariant (Mamba-S4) at 4000 Hz" in card
    assert "2 x Mamba (S6) at 1333.33 Hz" in card


def test_a_model_of_which_nothing_is_recorded_has_a_card_too(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", MODEL, WaveformModel(MODEL).state_dict())
    card = (export(tmp_path / "model", tmp_path / "out") / "README.md").read_text()
    assert "Nothing is recorded of it." in card


def test_what_cannot_be_exported_leaves_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="run is not empty; name a folder that is not there"):
        export(run, run)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is not empty"):
        export(run, tmp_path / "file")
    out = tmp_path / "out"
    (run / "best" / checkpoint.CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match="best holds no model; a run writes it at a valid"):
        export(run, out, best=True)
    weights = {k: v * 1e6 for k, v in WaveformModel(MODEL).state_dict().items()}
    checkpoint.save(run, MODEL, weights)
    with pytest.raises(ValueError, match=r"is not finite as torch\.float16"):
        export(run, out, half=True)
    assert not list(out.iterdir())
    export(run, out)


def test_the_command_exports_what_generate_takes(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = CliRunner().invoke(cli, ["export", str(run), str(out), "--best", "--half"])
    assert said.exit_code == 0, said.output
    assert said.output.strip() == str(out)
    made = CliRunner().invoke(
        cli, ["generate", "-m", str(out), "--seconds", "0.01", "-o", str(tmp_path), "--seed", "1"]
    )
    assert made.exit_code == 0, made.output
    assert (tmp_path / "out_1_0.wav").exists()
