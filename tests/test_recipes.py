import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiomamba import checkpoint
from audiomamba.models.waveform import WaveformModel

RECIPE = Path(__file__).parent.parent / "recipes" / "youtubemix.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("youtubemix", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["youtubemix"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["youtubemix"]


@pytest.fixture
def audio(tmp_path):
    """Return a folder of short decaying tones at another rate than the model's."""
    t = np.arange(8000) / 8000
    for split in ("train", "validation", "test"):
        (tmp_path / "audio" / split).mkdir(parents=True)
        for i in range(2):
            tone = 0.5 * np.sin(2 * np.pi * 220 * (i + 1) * t) * np.exp(-t)
            soundfile.write(tmp_path / "audio" / split / f"{i}.wav", tone, 8000)
    return tmp_path / "audio"


def test_a_folder_of_audio_becomes_a_model_and_is_prepared_once(recipe, audio, tmp_path, capsys):
    out = tmp_path / "run"
    common = ["--data", str(audio), "--out", str(out), "--preset", "tiny", "--accelerator", "cpu"]
    common += ["--batch", "2", "--length", "1024", "--steps", "3"]
    recipe.main([*common, "--max-minutes", "1e-9"])
    said = capsys.readouterr()
    assert "step 1 of 3" in said.out
    assert "--resume" in said.out
    assert "preparing" in said.err
    recipe.main([*common, "--resume"])
    said = capsys.readouterr()
    assert re.search(r"step 3 of 3, validation \d\.\d+ bits per sample", said.out)
    assert f"audiomamba generate -m {out}" in said.out
    assert "preparing" not in said.err
    assert checkpoint.load(out).config == recipe.PRESETS["tiny"]
    recipe.main([*common[2:], "--data", str(out / "data"), "--out", str(tmp_path / "second")])
    values = json.loads((tmp_path / "second" / "config.json").read_text())
    assert values["training"]["step"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a folder of piano recordings by --data FOLDER"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "nowhere", "--steps", "0"], "steps is 0; it must be at least 1"),
        (["--preset", "grand"], "invalid choice: 'grand'"),
    ],
)
def test_mistakes_end_with_one_line(recipe, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        recipe.main(arguments)
    said = capsys.readouterr().err + str(stopped.value.code)
    assert message in said
    assert stopped.value.code != 0
    assert not list(tmp_path.iterdir())


def test_presets_of_the_paper_have_its_size(recipe):
    for name, config in recipe.PRESETS.items():
        with torch.device("meta"):
            network = WaveformModel(config)
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        if name in ("small", "tiny"):
            assert millions < 1
        else:
            assert 3 < millions < 4.5, name


def test_every_field_has_a_flag_with_help(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--min-learning-rate FLOAT At the end of the run (default: 1e-05)" in said
    assert "--carry-state, --no-carry-state Walk through clips" in said
    assert "--betas FLOAT FLOAT AdamW's (default: (0.9, 0.95))" in said
