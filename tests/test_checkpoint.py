"""A folder either is a whole model or is refused in one line that names what is wrong."""

from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from audiomamba import audio, checkpoint
from audiomamba.config import Tier, unet
from audiomamba.models.waveform import WaveformModel

CONFIG = unet(8, 1, (2,), Tier(mixer="lti", complex=True, d_state=4), Tier(d_state=4))

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "model", CONFIG, WaveformModel(CONFIG).state_dict())
    return tmp_path / "model"


def change(folder: Path, **values: Any) -> None:
    path = folder / checkpoint.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_model_loads_equal_up_to_its_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = WaveformModel(CONFIG).state_dict()
    checkpoint.save(tmp_path, CONFIG, weights, dtype=dtype, temperature=0.5)
    model = checkpoint.load(tmp_path)
    assert not model.training
    assert model.config == CONFIG
    assert checkpoint.read_temperature(tmp_path) == 0.5
    assert not checkpoint.read_guard(tmp_path)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights[name].to(dtype).float())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    mode = stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "config.json").stat().st_mode)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        checkpoint.load(folder)


def test_the_first_differing_key_is_named(folder: Path) -> None:
    weights = load_file(folder / checkpoint.WEIGHTS)
    missing = {k: v for k, v in weights.items() if k != "norm.weight"}
    save_file(missing, folder / checkpoint.WEIGHTS)
    with pytest.raises(ValueError, match=r"'norm.weight' is in config.json but not in model"):
        checkpoint.load(folder)
    save_file({**weights, "extra": torch.zeros(1)}, folder / checkpoint.WEIGHTS)
    with pytest.raises(ValueError, match=r"'extra' is in model.safetensors but not in config"):
        checkpoint.load(folder)
    save_file({**weights, "norm.weight": torch.zeros(3)}, folder / checkpoint.WEIGHTS)
    with pytest.raises(ValueError, match=r"'norm.weight' is \(8,\) by config.json but \(3,\)"):
        checkpoint.load(folder)


def test_weights_that_are_no_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / checkpoint.WEIGHTS)
    for value in (torch.full((8,), torch.nan), torch.ones(8, dtype=torch.int8)):
        save_file({**weights, "norm.weight": value}, folder / checkpoint.WEIGHTS)
        with pytest.raises(ValueError, match=r"'norm.weight' in model.safetensors is torch"):
            checkpoint.load(folder)
    huge = {**weights, "norm.weight": torch.full((8,), 1e6)}
    with pytest.raises(ValueError, match=r"norm.weight is not finite as torch.float16"):
        checkpoint.save(tmp_path / "new", CONFIG, huge, dtype=torch.float16)


def test_a_config_of_another_model_is_refused(folder: Path) -> None:
    change(folder, model={**CONFIG.to_dict(), "d_model": 10})
    with pytest.raises(ValueError, match=r"'embedding.weight' is \(256, 10\)"):
        checkpoint.load(folder)
    change(folder, model={**CONFIG.to_dict(), "width": 10})
    with pytest.raises(ValueError, match="unknown key 'width'"):
        checkpoint.load(folder)
    change(folder, model={**CONFIG.to_dict(), "d_model": 8.0})
    with pytest.raises(ValueError, match=r"config.d_model is 8.0; it must be of type int"):
        checkpoint.load(folder)
    change(folder, model={**CONFIG.to_dict(), "pools": [2.0]})
    with pytest.raises(ValueError, match=r"config.pools is \[2.0\]"):
        checkpoint.load(folder)
    change(folder, model=CONFIG.to_dict(), format=2)
    with pytest.raises(ValueError, match="its format is 2, this version reads 1"):
        checkpoint.load(folder)
    for generation, wrong in (({"temperature": "hot"}, "temperature"), ("hot", "generation")):
        change(folder, format=1, generation=generation)
        with pytest.raises(ValueError, match=f"{wrong} is 'hot'; it must be "):
            checkpoint.read_temperature(folder)
    change(folder, generation={"guard": "yes"})
    with pytest.raises(ValueError, match="guard is 'yes'; it must be true or false"):
        checkpoint.read_guard(folder)
    change(folder, generation={"guard": True}, training={})
    with pytest.raises(ValueError, match="there are no validation bits"):
        checkpoint.read_guard(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": 3}', "{}"])
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    (folder / checkpoint.CONFIG).write_text(text)
    with pytest.raises(ValueError, match="is not a model's config"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", checkpoint.PICKLES)
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"model{name}"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        checkpoint.find(path)


def test_what_is_nowhere_is_told_with_what_is_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not one of the shipped: .*piano"):
        checkpoint.find("violin")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        checkpoint.find(folder / checkpoint.WEIGHTS)
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        checkpoint.load(tmp_path)


def test_a_stray_folder_does_not_hide_a_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "piano").mkdir()
    assert checkpoint.find("piano") == checkpoint.SHIPPED / "piano"
    assert checkpoint.find("./piano") == Path("piano")


def test_the_shipped_model_is_small_and_speaks() -> None:
    folder = checkpoint.find("piano")
    assert (folder / checkpoint.WEIGHTS).stat().st_size < 8_000_000
    assert (folder / "README.md").is_file()
    model = checkpoint.load(folder)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 3.53
    # A chord of decaying partials is far more likely to a piano model than white noise.
    t = torch.arange(8192) / 16000
    chord = sum(torch.sin(2 * torch.pi * f * t) * torch.exp(-3 * t) for f in (262, 330, 392))
    tokens = model.config.tokenizer.encode(0.2 * chord)[None]
    noise = torch.randint(0, 256, (1, 8192), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert model.nll(tokens).mean() < 4
        assert model.nll(noise).mean() > 8


def test_the_shipped_digits_are_small_and_end() -> None:
    folder = checkpoint.find("digits")
    assert (folder / checkpoint.WEIGHTS).stat().st_size < 13_000_000
    assert (folder / "README.md").is_file()
    model = checkpoint.load(folder)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 3.31
    word = audio.read(ROOT / "samples" / "digits_1_31.ogg", 16000)
    tokens = torch.from_numpy(model.config.tokenizer.encode(word).astype(np.int64))[None]
    noise = torch.randint(0, 256, (1, 8192), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert model.nll(tokens[:, :8192]).mean() < 4
        assert model.nll(noise).mean() > 8
        # A word is followed by silence: had it been left out of the loss, it would go on.
        end = torch.cat(
            [tokens[:, :6400], torch.full((1, 2800), model.config.tokenizer.silence)], 1
        )
        assert model.nll(end).mean() < model.nll(tokens[:, :6400]).mean()
