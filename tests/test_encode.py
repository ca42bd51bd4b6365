"""`audiomamba encode`: what it writes is what a model makes of each file alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiomamba import EncoderConfig, MambaEncoder, audio, checkpoint, encode
from audiomamba.cli import main
from audiomamba.config import Tier, unet
from audiomamba.features import log_mel
from audiomamba.models.features import WaveformFeatures
from audiomamba.models.waveform import WaveformModel

SAMPLES = {"long.wav": 9000, "short.flac": 2000, "between.wav": 5000}
Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as stop:
            main(["encode", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out.splitlines(), err

    return run


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in SAMPLES]
    for path, samples in zip(paths, SAMPLES.values(), strict=True):
        noise = np.random.default_rng(samples).uniform(-0.5, 0.5, samples)
        audio.write(path, noise.astype(np.float32), 16000)
    return paths


@pytest.fixture
def encoder(tmp_path: Path) -> MambaEncoder:
    """A small encoder, saved as ENCODER."""
    config = EncoderConfig(d_input=20, d_model=8, n_layers=2, d_state=4, conv_kernel=5)
    encoder = MambaEncoder(config).eval()
    encoder.save_pretrained(tmp_path / "ENCODER")
    return encoder


@pytest.fixture
def network(tmp_path: Path) -> WaveformModel:
    """A small model of waveforms, saved as WAVEFORMS."""
    network = WaveformModel(unet(4, 1, (4,), Tier(), Tier())).eval()
    checkpoint.save(tmp_path / "WAVEFORMS", network.config, network.state_dict())
    return network


def wave(path: Path) -> torch.Tensor:
    return torch.from_numpy(audio.read(path, 16000))[None]


def close(path: Path, wanted: torch.Tensor) -> None:
    got = np.load(path)
    assert got.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(got), wanted[0].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.1, 30])
def test_an_encoder_reads_log_mel(
    run: Run, files: list[Path], encoder: MambaEncoder, tmp_path: Path, seconds: float
) -> None:
    out = tmp_path / "new" / "er"
    model = ("-m", tmp_path / "ENCODER", "--batch-seconds", seconds)
    code, lines, err = run(*files, "-o", out, *model, "--normalize")
    assert (code, err) == (0, "")
    assert lines == [str(out / name) for name in ("short.npy", "between.npy", "long.npy")]
    assert {path.name for path in out.iterdir()} == {Path(line).name for line in lines}
    for path in files:
        features, _ = log_mel(wave(path), n_mels=20, normalize=True)
        close(out / f"{path.stem}.npy", encoder(features)[0])
    code, _, _ = run(*files, "-o", tmp_path / "first", *model, "--layer", 1)
    layers, _ = encoder.extract_features(log_mel(wave(files[0]), n_mels=20)[0])
    close(tmp_path / "first" / "long.npy", layers[0])


def test_a_waveform_model_gives_its_own(
    run: Run, files: list[Path], network: WaveformModel, tmp_path: Path
) -> None:
    model = ("-m", tmp_path / "WAVEFORMS")
    code, _, err = run(*files, "-o", tmp_path, *model)
    assert (code, err) == (0, "")
    for path in files:
        close(path.with_suffix(".npy"), WaveformFeatures(network)(wave(path))[0])
    tokens = network.config.tokenizer.encode(wave(files[1]))
    layers, _ = network.extract_features(tokens)
    for layer in (1, 3):
        assert run(*files, "-o", tmp_path, *model, "--overwrite", "--layer", layer)[0] == 0
        close(tmp_path / "short.npy", layers[layer - 1])


def test_safetensors_say_what_made_them(
    run: Run, files: list[Path], encoder: MambaEncoder, tmp_path: Path
) -> None:
    model = tmp_path / "ENCODER"
    run(files[0], "-o", tmp_path, "-m", model, "--layer", 2, "--format", "safetensors")
    with safetensors.safe_open(tmp_path / "long.safetensors", "np") as file:
        assert file.get_tensor("features").shape == (13, 8)
        assert file.metadata() == {"model": str(model), "layer": "2", "sample_rate": "16000"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "ENCODER", "--layer", 3], "--layer is 3; this model has layers 1 to 2"),
        (["-m", "WAVEFORMS", "--layer", 4], "--layer is 4; this model has layers 1 to 3"),
        (["-m", "WAVEFORMS", "--normalize"], "is a model of waveforms, which are not normalized"),
        (["-m", "ENCODER", "text.wav"], "is not audio that libsndfile reads"),
        (["-m", "ENCODER", "there.wav"], "is there already; add --overwrite"),
        (["-m", "ENCODER", "sub/long.wav"], "keep theirs by --keep-folders"),
        (["-m", "ENCODER", "--device", "cuda:99"], "device is 'cuda:99'"),
        (["-m", "nothing"], "no model 'nothing'"),
        (["no.wav"], "File 'no.wav' does not exist; see audiomamba encode --help"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    run: Run,
    files: list[Path],
    encoder: MambaEncoder,
    network: WaveformModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "out").mkdir()
    audio.write("sub/long.wav", np.zeros(5000), 16000)
    audio.write("there.wav", np.zeros(5000), 16000)
    Path("text.wav").write_text("no sound")
    Path("out/there.npy").write_text("mine")
    code, lines, err = run("long.wav", *arguments, "-o", "out")
    assert code in (1, 2)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert lines == []
    assert [path.name for path in Path("out").iterdir()] == ["there.npy"]
    assert Path("out/there.npy").read_text() == "mine"


def test_the_folders_of_a_corpus_are_kept(
    run: Run, files: list[Path], encoder: MambaEncoder, tmp_path: Path, monkeypatch: Any
) -> None:
    for word in ("zero", "one/more"):
        (tmp_path / "words" / word).mkdir(parents=True)
        (tmp_path / "words" / word / "a.wav").write_bytes(files[0].read_bytes())
    monkeypatch.chdir(tmp_path / "words/one")
    out, model = tmp_path / "out", ("-m", tmp_path / "ENCODER")
    code, lines, _ = run("../zero/a.wav", "more/a.wav", "-o", out, *model, "--keep-folders")
    assert code == 0
    assert sorted(lines) == [str(out / "one/more/a.npy"), str(out / "zero/a.npy")]
    assert all(Path(line).is_file() for line in lines)
    code, lines, _ = run(files[1], "-o", out, *model, "--keep-folders")
    assert (code, lines) == (0, [str(out / "short.npy")])


def test_files_that_are_too_short_are_named_at_the_end(
    run: Run, files: list[Path], encoder: MambaEncoder, tmp_path: Path
) -> None:
    clicks = [tmp_path / "click.wav", tmp_path / "tick.wav"]
    for path, samples in zip(clicks, (800, 160), strict=True):
        audio.write(path, np.zeros(samples), 16000)
    out, model = tmp_path / "out", ("-m", tmp_path / "ENCODER")
    code, lines, err = run(clicks[0], files[0], clicks[1], files[1], "-o", out, *model)
    assert code == 1
    assert err == (
        f"error: too short for a frame, and left out: {clicks[1]} (0.01 s), {clicks[0]} (0.05 s); "
        "all other files are encoded\n"
    )
    assert lines == [str(out / "short.npy"), str(out / "long.npy")]
    assert {path.name for path in out.iterdir()} == {"short.npy", "long.npy"}
    code, lines, err = run(clicks[0], "-o", tmp_path, *model)
    assert (code, lines) == (1, [])


@given(st.lists(st.floats(0.1, 9)), st.floats(0.1, 30))
def test_batches_hold_all_and_no_more_than_the_limit(sizes: list[float], limit: float) -> None:
    groups = encode.batches(sizes, limit)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    order = [sizes[i] for group in groups for i in group]
    assert order == sorted(order)
    for group in groups:
        assert len(group) == 1 or len(group) * max(sizes[i] for i in group) <= limit
