from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiomamba import audio, checkpoint
from audiomamba.classifier import AudioClassifier, ClassifierConfig
from audiomamba.cli import main
from audiomamba.data.corpora import DIGITS
from audiomamba.encoder_config import EncoderConfig

ROOT = Path(__file__).parent.parent
RATE = 16000
ENCODER = EncoderConfig(
    d_model=8, n_layers=1, d_state=4, subsampling=2, feed_forward=0, conv_kernel=3
)
CONFIG = ClassifierConfig(words=("no", "yes"), encoder=ENCODER)


@pytest.fixture
def classifier() -> AudioClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AudioClassifier(CONFIG, backend="torch").eval()


@pytest.fixture
def folder(classifier: AudioClassifier, tmp_path: Path) -> Path:
    classifier.save_pretrained(tmp_path / "model", half=True)
    return tmp_path / "model"


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


def test_a_recording_is_heard_alone_as_in_a_padded_batch(classifier: AudioClassifier) -> None:
    rows = [noise(n) for n in (8000, 5000, 7999)]
    waveform = torch.full((3, 8000), torch.nan)
    for i, one in enumerate(rows):
        waveform[i, : len(one)] = torch.from_numpy(one)
    logits = classifier(waveform, torch.tensor([len(one) for one in rows])).detach()
    for one, together in zip(rows, logits, strict=True):
        # Sums over a batch of another size, in another order.
        torch.testing.assert_close(
            classifier(torch.from_numpy(one)[None])[0], together, atol=1e-5, rtol=1e-5
        )
        word, probability = classifier.classify(one)
        assert word == CONFIG.words[int(together.argmax())]
        assert probability == pytest.approx(float(together.softmax(0).max()), abs=1e-5)


def test_a_saved_classifier_is_the_same_to_half_precision(
    classifier: AudioClassifier, folder: Path
) -> None:
    again = AudioClassifier.from_pretrained(folder, backend="torch")
    assert again.config == CONFIG
    x = torch.from_numpy(noise(8000))[None]
    torch.testing.assert_close(again(x), classifier(x), atol=0.02, rtol=0.01)


def test_the_shortest_recording_makes_one_frame(classifier: AudioClassifier) -> None:
    needed = 400 + 160  # a window and, halved by the subsampling, a hop
    classifier.classify(noise(needed))
    with pytest.raises(ValueError, match=rf"\({needed - 1},\); .* at least {needed} .*0.035 s"):
        classifier.classify(noise(needed - 1))
    with pytest.raises(ValueError, match=r"\(1, 8000\); it must be \(samples,\)"):
        classifier.classify(noise(8000)[None])


def test_a_recording_of_no_numbers_is_refused(classifier: AudioClassifier) -> None:
    broken = noise(8000)
    broken[7] = np.nan
    for waveform, match in (
        (np.ones(8000, np.int16), "the recording is int16; it must be a floating-point"),
        (torch.ones(8000, dtype=torch.int16), r"the recording is torch\.int16"),
        (broken, "the recording is NaN or infinite at sample 7"),
        (noise(0), "the recording is empty"),
    ):
        with pytest.raises(ValueError, match=match):
            classifier.classify(waveform)
    half = torch.from_numpy(noise(8000)).bfloat16()
    assert classifier.classify(half) == classifier.classify(half.float())


def test_a_row_without_frames_gives_the_bias(classifier: AudioClassifier) -> None:
    logits = classifier(torch.ones(2, 8000), torch.tensor([8000, 100]))
    assert torch.equal(logits[1], classifier.head.bias)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": ("yes",)}, "words are .*at least two"),
        ({"words": ("yes", "yes", "no")}, "each once"),
        ({"sample_rate": 0}, "sample_rate is 0"),
    ],
)
def test_a_config_says_what_is_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierConfig.from_dict(CONFIG.to_dict() | values)


def test_the_command_prints_a_line_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for file, rate in zip(files, (RATE, 8000), strict=True):
        audio.write(file, noise(rate).clip(-1, 1), rate)
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main(["classify", *files, "-m", str(folder), *flags])
        assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    plain, objects = [line.split("\t") for line in lines[:2]], [json.loads(x) for x in lines[2:]]
    assert [one["file"] for one in objects] == files
    for (file, word, probability), one in zip(plain, objects, strict=True):
        assert (file, word) == (one["file"], one["word"])
        assert word in CONFIG.words
        assert float(probability) == pytest.approx(one["probability"], abs=6e-4)


def test_the_command_names_bad_files_when_the_others_are_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, text, good = (tmp_path / name for name in ("a.wav", "b.wav", "c.wav"))
    audio.write(short, noise(100), RATE)
    text.write_text("no audio")
    audio.write(good, noise(RATE).clip(-1, 1), RATE)
    with pytest.raises(SystemExit) as stopped:
        main(["classify", *map(str, (short, text, good)), "-m", str(folder)])
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(good)]
    assert f"{short}: the recording has shape (100,)" in err
    assert err.count(str(text)) == 1
    assert len(err.splitlines()) == 1


def test_the_shipped_classifier_is_small_and_its_card_tells_its_results() -> None:
    folder = checkpoint.find("digit_classifier")
    assert (folder / checkpoint.WEIGHTS).stat().st_size < 4_000_000
    classifier = AudioClassifier.from_pretrained(folder)
    assert classifier.config.words == tuple(sorted(DIGITS))
    (result,) = json.loads((ROOT / "benchmarks/results/digit_classifier.json").read_text())
    card = (folder / "README.md").read_text(encoding="utf-8")
    for percent in result["percent"].values():
        assert f"{percent:.1f} %" in card
    assert result["parameters"] == sum(p.numel() for p in classifier.parameters())
    assert f"{result['parameters'] / 1e6:.2f} M" in card
