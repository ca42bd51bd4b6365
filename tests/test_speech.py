"""What the speech recipes share: clips, batches, models of one size, decoding, resuming."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba import audio
from audiomamba.recipe_results import append_result, read_results

RECIPES = str(Path(__file__).parent.parent / "recipes")


@pytest.fixture(scope="module")
def speech() -> Any:
    """Return the recipes' modules as attributes of one object."""
    sys.path.insert(0, RECIPES)
    names = ("speech_clips", "speech_config", "speech_models", "speech", "asr_ctc", "spoken_digits")
    try:
        modules = {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(RECIPES)
    return type(
        "Speech", (), {k: v for m in modules.values() for k, v in vars(m).items()} | modules
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return two words of three speakers; "c" speaks in the test alone."""
    for i, word in enumerate(("no", "yes")):
        for j, speaker in enumerate("abc"):
            tone = np.full(1600 * (1 + j), 0.1 * (1 + i))
            (tmp_path / "data" / word).mkdir(parents=True, exist_ok=True)
            audio.write(tmp_path / "data" / word / f"{speaker}_nohash_0.wav", tone, 16000)
    lists = {"validation": "no/b_nohash_0.wav\n", "testing": "no/c_nohash_0.wav\n"}
    for name, text in lists.items():
        text += text.replace("no/", "yes/")
        (tmp_path / "data" / f"{name}_list.txt").write_text(text)
    return tmp_path / "data"


def test_clips_have_words_splits_and_speakers(speech: Any, folder: Path) -> None:
    clips = speech.read_clips(folder)
    assert clips.words == ("no", "yes")
    assert list(clips.labels) == [0, 0, 0, 1, 1, 1]
    assert list(clips.chosen("test")) == list(clips.chosen("unseen")) == [2, 5]
    assert np.diff(clips.starts).tolist() == [1600, 3200, 4800] * 2
    (folder / "validation_list.txt").write_text("yes/b_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("no/c_nohash_0.wav\nyes/a_nohash_0.wav\n")
    held = speech.read_clips(folder, hold_out=["c"])
    assert list(held.chosen("test")) == [2, 3, 5]
    assert list(held.chosen("unseen")) == [2, 5]
    assert list(held.chosen("seen")) == [3]
    assert held.digest != clips.digest


def test_the_digest_is_of_samples_too(speech: Any, folder: Path) -> None:
    digest = speech.read_clips(folder).digest
    assert speech.read_clips(folder).digest == digest
    file = folder / "no" / "a_nohash_0.wav"
    audio.write(file, -audio.read(file, 16000), 16000)  # as long
    assert speech.read_clips(folder).digest != digest


def test_a_folder_that_will_not_do_is_told(speech: Any, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="audiomamba fetch sc09 nowhere"):
        speech.read_clips("nowhere")
    with pytest.raises(ValueError, match="no clip of the word 'up'"):
        speech.read_clips(folder, words=["no", "up"])
    with pytest.raises(ValueError, match="no clip of the speaker 'd'"):
        speech.read_clips(folder, hold_out=["d"])
    with pytest.raises(ValueError, match="no clip of the split 'train'"):
        speech.read_clips(folder, hold_out=["a"])


@pytest.mark.parametrize(
    "words", [("four", "one", "three", "two"), ("test", "train", "validation")]
)
def test_words_are_not_split_by_position(
    speech: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    data = tmp_path / "data"
    for word in words:
        (data / word).mkdir(parents=True)
        for i in range(9):
            audio.write(data / word / f"{i}_nohash_0.wav", np.full(160, 0.1), 16000)
    message = (
        rf"data has no validation_list\.txt and no testing_list\.txt: its folders "
        rf"\({', '.join(words)}\) are words, .* WORD/SPEAKER_nohash_N\.wav with the two lists"
    )
    with pytest.raises(ValueError, match=message):
        speech.read_clips(data)
    arguments = ["--smoke", "--data", str(data), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"^error: [^\n]*data has no validation_list\.txt[^\n]*$"):
        speech.run(speech.spoken_digits.RECIPE, [*arguments, "--models", "mamba"])
    assert not (tmp_path / "out").exists()


def test_an_utterance_is_clips_and_gaps(speech: Any, folder: Path) -> None:
    clips = speech.read_clips(folder)
    batch = speech.join(clips, [np.array([0, 4]), np.array([1])], [[0.1, 0.05, 0], [0, 0]])
    assert batch.lengths.tolist() == [1600 + 1600 + 800 + 3200, 3200]
    assert [labels.tolist() for labels in batch.labels] == [[0, 1], [0]]
    wanted = np.repeat(np.float32([0, 0.1, 0, 0.2]), [1600, 1600, 800, 3200])
    np.testing.assert_allclose(batch.waveform[0], wanted, atol=1e-4)  # 16 bits
    assert not batch.waveform[1, 3200:].any()


def test_a_batch_is_a_function_of_its_random_numbers(speech: Any, folder: Path) -> None:
    clips = speech.read_clips(folder)
    for recipe in (speech.asr_ctc.RECIPE, speech.spoken_digits.RECIPE):
        one, same, other = (
            recipe.draw(clips, recipe.config, np.random.default_rng(seed)) for seed in (0, 0, 1)
        )
        assert torch.equal(one.waveform, same.waveform)
        assert not torch.equal(one.lengths, other.lengths)
        assert len(one.labels) == recipe.config.batch


@pytest.mark.parametrize("front_end", ["mel", "waveform"])
def test_models_are_of_one_size(speech: Any, front_end: str) -> None:
    config = speech.Config(front_end=front_end)
    with torch.device("meta"):
        sizes = {
            name: speech.parameters(speech.build(name, config, 10, pool=True))
            for name in speech.MODELS
        }
    assert max(sizes.values()) < 1.05 * min(sizes.values()), sizes


@pytest.mark.parametrize("front_end", ["mel", "waveform"])
@pytest.mark.parametrize("name", ["mamba", "mamba-causal", "gru", "conformer"])
def test_padding_has_no_effect(speech: Any, front_end: str, name: str) -> None:
    if name == "conformer":
        pytest.importorskip("torchaudio.models")
    config = speech.Config(front_end=front_end, d_model=8, n_layers=1, conv_kernel=3)
    torch.manual_seed(0)
    network = speech.build(name, config, 3, pool=True).eval()
    waveform, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 4321])
    together, _ = network(waveform, lengths)
    alone, _ = network(waveform[1:, :4321], lengths[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_filters_on_samples_begin_as_mel_bands(speech: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 16000, generator=generator)
    lengths = torch.tensor([16000])
    for band in (500, 4000):
        time = torch.arange(16000) / 16000
        tone = 0.3 * torch.sin(2 * torch.pi * band * time)[None] + 1e-3 * noise
        mel, counts = speech.MelFrontEnd()(tone, lengths)
        filters, same = speech.WaveformFrontEnd()(tone, lengths)
        assert torch.equal(counts, same)
        both = torch.stack([mel[0].mean(0), filters[0].mean(0)])
        # Hann's window is applied to the bands here, and to the sound there: skirts differ.
        assert both.argmax(1).diff().abs() <= 1
        assert torch.corrcoef(both)[0, 1] > 0.9


def test_masks_are_as_wide_as_asked_for(speech: Any) -> None:
    config = speech.Config(masks=1, mask_bands=8, mask_share=0.5)
    ones = torch.ones(64, 100, 80)
    lengths = torch.full((64,), 100)
    hidden = speech.spec_augment(config, 64, np.random.default_rng(0))(ones, lengths) == 0
    bands, frames = hidden.all(1).sum(1), hidden.all(2).sum(1)
    assert 6 <= bands.max() <= 8
    assert 40 <= frames.max() <= 50
    assert torch.equal(hidden.sum((1, 2)), bands * 100 + frames * 80 - bands * frames)
    nothing = speech.spec_augment(
        dataclasses.replace(config, masks=0), 64, np.random.default_rng(0)
    )
    assert torch.equal(nothing(ones, lengths), ones)


def test_words_are_read_off_frames_and_errors_counted(speech: Any) -> None:
    best = torch.tensor([[0, 2, 2, 0, 2, 1, 1, 0], [1, 1, 0, 3, 3, 3, 2, 2]])
    logits = torch.nn.functional.one_hot(best, 4).float()
    assert speech.decode(logits, torch.tensor([8, 5])) == [[2, 2, 1], [1, 3]]
    for found, wanted, errors in (
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("ab", "ba", 2),
        ("xabc", "abcy", 2),
    ):
        assert speech.edit_distance([*map(ord, found)], [*map(ord, wanted)]) == errors


def test_what_is_done_is_not_done_again(
    speech: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--smoke", "--out", str(tmp_path), "--steps", "1", "--models", "mamba"]
    speech.run(speech.spoken_digits.RECIPE, common)
    assert "classify -m" in capsys.readouterr().out
    speech.run(speech.spoken_digits.RECIPE, [*common, "--seeds", "0", "1"])
    said = capsys.readouterr().out
    assert said.count("is done") == 1
    assert "| 2 |" in said
    assert [r["seed"] for r in speech.read_results(tmp_path)] == [0, 1]
    speech.run(speech.spoken_digits.RECIPE, [*common, "--front-end", "waveform"])
    said = capsys.readouterr().out
    assert "mamba, mel | " in said
    assert "mamba, waveform | " in said
    speech.run(speech.spoken_digits.RECIPE, [*common, "--batch", "3"])
    assert "| 2 |" not in capsys.readouterr().out


def test_classifiers_of_other_settings_or_clips_have_folders_of_their_own(
    speech: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    common = ["--smoke", "--out", str(out), "--steps", "1", "--models", "mamba"]
    for flags in ([], ["--batch", "3"], ["--data", str(folder)]):
        speech.run(speech.spoken_digits.RECIPE, [*common, *flags])
    kept = [out / "-".join(["mamba-mel-0", *r["hold_out"], r["run"]]) for r in read_results(out)]
    assert set(kept) == {path.parent for path in out.glob("*/model.safetensors")}
    assert len(set(kept)) == 3
    said = capsys.readouterr().out
    for path in kept:
        assert f"classify -m {path} FILE" in said


def test_a_run_that_another_process_trains_is_left_to_it(
    speech: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--smoke", "--out", str(tmp_path), "--models", "mamba", "--seeds", "0"]
    said = []

    def fit(network: Any, config: Any, seed: int, *rest: Any) -> list[dict[str, float]]:
        if not said:
            capsys.readouterr()
            said.append("")
            speech.run(speech.asr_ctc.RECIPE, [*common, "1"])  # as if from another process
            said.append(capsys.readouterr().out)
        return [{"step": 1, "loss": 0.0, "score": 0.0}]

    monkeypatch.setattr(speech.speech, "fit", fit)
    speech.run(speech.asr_ctc.RECIPE, common)
    assert "seed 0, 1: another process trains it, and adds it to the results\n" in said[1]
    assert [x["seed"] for x in read_results(tmp_path)] == [1, 0]


def test_runs_beside_each_other_keep_all_results(
    speech: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--smoke", "--out", str(tmp_path), "--steps", "1", "--models", "mamba"]
    speech.run(speech.asr_ctc.RECIPE, common)
    (other,) = read_results(tmp_path)

    def fit(*arguments: Any) -> list[dict[str, float]]:
        append_result(tmp_path, other | {"seed": 7})
        return [{"step": 1, "loss": 0.0, "score": 0.0}]

    monkeypatch.setattr(speech.speech, "fit", fit)
    speech.run(speech.asr_ctc.RECIPE, [*common, "--seeds", "1"])
    assert [x["seed"] for x in read_results(tmp_path)] == [0, 7, 1]


def test_speakers_are_held_out_one_after_another(
    speech: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--smoke", "--out", str(tmp_path / "out"), "--data", str(folder), "--steps", "1"]
    common += ["--models", "mamba", "--hold-out", "b", "c"]
    with pytest.raises(SystemExit, match="split 'validation'"):  # which is of b alone
        speech.run(speech.asr_ctc.RECIPE, common)
    (folder / "validation_list.txt").write_text("yes/b_nohash_0.wav\nno/c_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("yes/c_nohash_0.wav\n")
    speech.run(speech.asr_ctc.RECIPE, [*common, "--each"])
    said = capsys.readouterr().out
    for name in ("mamba, mel, b", "mamba, mel, c", "mamba, mel"):
        assert f"| {name} |" in said
    results = speech.read_results(tmp_path / "out")
    assert [r["hold_out"] for r in results] == [["b"], ["c"]]
    assert len({r["clips"] for r in results}) == 2
    for result in results:
        assert result["percent"]["unseen"] is not None


def test_each_is_of_speakers_that_are_named(
    speech: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        speech.run(speech.asr_ctc.RECIPE, ["--each", "--steps", "1"])
    assert "--each is of the speakers of --hold-out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "audiomamba fetch sc09 data/sc09"),
        (["--front-end", "ears"], "front_end is 'ears'; it must be mel or waveform"),
        (["--conv-kernel", "4"], "conv_kernel is 4; it must be odd"),
        (["--fewest", "5", "--most", "4"], "fewest is 5, most 4"),
        (["--device", "foo"], "device is 'foo'; choose 'cpu', 'cuda' or 'cuda:1'"),
        (["--device", "mps"], "device is 'mps'; choose 'cpu', 'cuda' or 'cuda:1'"),
        (["--device", "cuda"], "but PyTorch sees 0 CUDA devices; choose another device, as 'cpu'"),
        (["--device", "cuda:5"], "device is 'cuda:5', but PyTorch sees 0 CUDA devices"),
        (["--d-model", "18"], "d_model is 18; it must be a multiple of 4, the Conformer's heads"),
        (["--d-model", "18", "--models", "mamba"], "audiomamba fetch sc09 data/sc09"),
        (["--smoke", "--out", "out", "--data", "data/sc09"], "there is no folder data/sc09"),
    ],
)
def test_mistakes_end_with_one_line(
    speech: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit) as stopped:
        speech.run(speech.asr_ctc.RECIPE, arguments)
    assert message in str(stopped.value.code)
    assert "\n" not in str(stopped.value.code)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore of it."),
            "error: CUDA out of memory. Tried to allocate 9 GiB; give a smaller --batch or "
            "--d-model",
        ),
        (ImportError("no module"), "error: no module"),
    ],
)
def test_what_fails_in_training_ends_with_one_line(
    speech: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fit(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(speech.speech, "fit", fit)
    common = ["--smoke", "--out", str(tmp_path), "--models", "mamba"]
    with pytest.raises(SystemExit) as stopped:
        speech.run(speech.spoken_digits.RECIPE, common)
    assert stopped.value.code == message


@pytest.mark.parametrize("recipe", ["asr_ctc", "spoken_digits"])
def test_what_is_missing_is_told_before_the_work(
    speech: Any, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio.models", None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arguments = ["--smoke", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"torchaudio's, .* leave conformer out of --models$"):
        speech.run(getattr(speech, recipe).RECIPE, arguments)
    assert not list(tmp_path.iterdir())


def test_fields_of_every_class_have_help(speech: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speech.run(speech.asr_ctc.RECIPE, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--fewest INT Clips of a string (default: 3)" in said
    assert "--steps INT Optimiser steps (default: 1500)" in said
