from __future__ import annotations

import errno
import hashlib
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
import pytest
import soundfile

from audiomamba import audio
from audiomamba.data import TokenStore
from audiomamba.data.prepare import assign_splits, find_audio, prepare, read_lists
from audiomamba.tokenizer import Encoding, Tokenizer


def make(folder: Path, *names: str, samples: int = 901, rate: int = 16000) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, samples + seed)
        soundfile.write(path, noise, rate)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    make(folder, "train/b10.wav", "train/b9.flac", "train/deep/er/c.wav", "test/a.wav")
    make(folder, "validation/v.wav", rate=22050)
    (folder / "README.md").write_text("not audio")
    make(folder, "train/.hidden.wav", ".cache/x.wav")
    return folder


@pytest.mark.parametrize("bits", [1, 8, 9, 16])
@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_tokens_are_those_of_the_audio(music: Path, encoding: Encoding, bits: int) -> None:
    tokenizer = Tokenizer(encoding, bits)
    store = prepare(music, music.parent / "out", tokenizer, sample_rate=16000)
    assert store.tokenizer == tokenizer
    assert store.sample_rate == 16000
    assert [file.path for file in store.files()] == [
        "test/a.wav",
        "train/b9.flac",
        "train/b10.wav",
        "train/deep/er/c.wav",
        "validation/v.wav",
    ]
    for file in store.files():
        waveform = audio.read(music / file.path, 16000)
        clip = store.clip(file)
        assert clip.dtype == (np.uint8 if bits <= 8 else np.dtype("<u2"))
        assert np.array_equal(clip, tokenizer.encode(waveform))
        assert file.peak == pytest.approx(np.abs(waveform).max(), abs=1e-6)
        assert file.sha256 == hashlib.sha256((music / file.path).read_bytes()).hexdigest()


def test_training_files_are_taken_at_each_speed(music: Path) -> None:
    once = prepare(music, music.parent / "once")
    store = prepare(music, music.parent / "out", speeds=(1.25, 1.0))
    assert [(file.path, file.speed) for file in store.files("train")] == [
        (file.path, speed) for file in once.files("train") for speed in (1.25, 1.0)
    ]
    for split in ("validation", "test"):
        for mine, theirs in zip(store.files(split), once.files(split), strict=True):
            assert mine.speed == 1.0
            assert np.array_equal(store.clip(mine), once.clip(theirs))
    fast, plain = store.files("train")[:2]
    assert np.array_equal(store.clip(plain), once.clip(once.files("train")[0]))
    assert fast.samples == pytest.approx(plain.samples / 1.25, abs=1)
    spectra = [
        np.abs(np.fft.rfft(store.tokenizer.decode(store.clip(file)), n=16000))
        for file in (fast, plain)
    ]
    assert spectra[0].argmax() == pytest.approx(1.25 * spectra[1].argmax(), abs=2)


@pytest.mark.parametrize("speeds", [(), (1.0, 1.0), (0.0,), (float("nan"),), (1.0, 11.0)])
def test_bad_speeds_are_refused_before_any_work(music: Path, speeds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"speeds are \["):
        prepare(music, music.parent / "out", speeds=speeds)
    assert not (music.parent / "out").exists()


def test_pieces_are_read_anywhere_and_nowhere_else(music: Path) -> None:
    store = prepare(music, music.parent / "out")
    file = store.files("train")[1]
    piece = store.read(file, start=7, samples=100)
    assert np.array_equal(piece, store.clip(file)[7:107])
    piece[0] = 0  # a copy
    assert not store.clip(file).flags.writeable
    for start, samples in [(-1, 5), (0, file.samples + 1), (file.samples, 1), (3, -1)]:
        with pytest.raises(ValueError, match="reach outside its"):
            store.read(file, start, samples)
    with pytest.raises(ValueError, match="split is 'dev'; choose one of train, validation, test"):
        store.files("dev")  # type: ignore[arg-type]


def test_a_store_crosses_processes_without_its_tokens(music: Path) -> None:
    store = prepare(music, music.parent / "out")
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert again.files() == store.files()
    assert np.array_equal(again.clip(again.files()[2]), store.clip(store.files()[2]))


def test_the_same_audio_gives_the_same_bytes(music: Path) -> None:
    for out in ("one", "two"):
        prepare(music, music.parent / out)
    for name in ("tokens.bin", "index.json"):
        assert (music.parent / "one" / name).read_bytes() == (
            music.parent / "two" / name
        ).read_bytes()


def test_the_index_can_be_read_without_this_package(music: Path) -> None:
    prepare(music, music.parent / "out")
    index = json.loads((music.parent / "out/index.json").read_text())
    assert index["sample_rate"] == 16000
    assert index["tokenizer"] == {"encoding": "mu-law", "bits": 8}
    assert index["dtype"] == "|u1"
    assert index["split_rule"] == "by folder"
    assert index["totals"]["train"]["files"] == 3
    last = index["files"][-1]
    size = (music.parent / "out/tokens.bin").stat().st_size
    assert last["offset"] + last["samples"] == size
    assert sum(total["samples"] for total in index["totals"].values()) == size


def test_files_without_folders_are_split_by_position(tmp_path: Path) -> None:
    make(tmp_path / "music", *(f"{i}.wav" for i in range(1, 12)), samples=9)
    store = prepare(tmp_path / "music", tmp_path / "out")
    assert store.split_rule.startswith("by position in natural order: 88 %")
    assert [file.path for file in store.files("train")] == [f"{i}.wav" for i in range(1, 10)]
    assert [file.path for file in store.files("validation")] == ["10.wav"]
    assert [file.path for file in store.files("test")] == ["11.wav"]


@pytest.mark.parametrize(
    ("count", "expected"), [(241, (212, 14, 15)), (4328, (3808, 260, 260)), (9, (7, 1, 1))]
)
def test_positions_are_those_of_sashimi(count: int, expected: tuple[int, int, int]) -> None:
    splits, _ = assign_splits([PurePosixPath(f"{i}.wav") for i in range(count)])
    assert splits == sorted(splits, key=["train", "validation", "test"].index)
    assert tuple(splits.count(s) for s in ("train", "validation", "test")) == expected


def test_too_few_files_to_split_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    with pytest.raises(ValueError, match=r"1 audio files are too few .* folders named train"):
        prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["stray.wav", "dev/stray.wav"])
def test_a_file_beside_the_splits_is_refused(music: Path, name: str) -> None:
    make(music, name)
    with pytest.raises(ValueError, match=rf"{name} lies beside the folders train, validation"):
        prepare(music, music.parent / "out")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A corpus laid out like Speech Commands, of which one listed word is not here."""
    folder = tmp_path / "words"
    make(folder, *(f"{word}/{i}.wav" for word in ("one", "two", "up") for i in range(4)))
    make(folder, "_background_noise_/dishes.wav")
    (folder / "validation_list.txt").write_text("one/0.wav\nup/3.wav\ncat/9.wav\n")
    (folder / "testing_list.txt").write_text("two/1.wav\r\none/2.wav\r\n\r\n")
    return folder


def split_of(store: TokenStore) -> dict[str, str]:
    return {file.path: file.split for file in store.files() if file.split != "train"}


def test_lists_like_those_of_speech_commands_are_the_splits(words: Path) -> None:
    store = prepare(words, words.parent / "out")
    assert len(store.files()) == 12
    assert split_of(store) == {
        "one/0.wav": "validation",
        "one/2.wav": "test",
        "two/1.wav": "test",
        "up/3.wav": "validation",
    }
    index = json.loads((words.parent / "out/index.json").read_text())
    assert index["split_rule"].startswith("by validation_list.txt and testing_list.txt, the rest")


def test_some_folders_can_be_taken_alone(words: Path) -> None:
    store = prepare(words, words.parent / "out", only=["two", "one"])
    assert {file.path.split("/")[0] for file in store.files()} == {"one", "two"}
    assert split_of(store).keys() == {"one/0.wav", "one/2.wav", "two/1.wav"}
    for missing in ("three", "0.wav"):
        with pytest.raises(ValueError, match=f"words has no audio in a folder {missing}"):
            prepare(words, words.parent / "again", only=["one", missing])


def test_lists_come_before_folders_named_like_splits(words: Path) -> None:
    make(words, "test/1.wav")
    assert "test/1.wav" not in split_of(prepare(words, words.parent / "out"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("validation_list.txt", None, r"words has no validation_list.txt beside its other list"),
        ("testing_list.txt", None, r"words has no testing_list.txt beside its other list"),
        ("testing_list.txt", "up/3.wav", r"up/3.wav is in both lists of .*words"),
        ("testing_list.txt", "up/3.flac", r"up/3.flac is listed for test but is not there; get"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    words: Path, name: str, text: str | None, message: str
) -> None:
    (words / name).unlink()
    if text is not None:
        (words / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare(words, words.parent / "out")
    assert not (words.parent / "out").exists()


def test_a_folder_without_lists_has_none(tmp_path: Path) -> None:
    assert read_lists(tmp_path) is None


def test_numbers_sort_by_value(tmp_path: Path) -> None:
    make(tmp_path, "x10.wav", "x9.wav", "x9/1.wav", "a/2.WAV", "a/1.wav", samples=1)
    names = [str(path) for path in find_audio(tmp_path)]
    assert names == ["a/1.wav", "a/2.WAV", "x9.wav", "x9/1.wav", "x10.wav"]


def test_equal_numbers_sort_by_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "1.wav", "01.wav", "001.wav", samples=1)
    listed = sorted(tmp_path.iterdir())
    for order in (listed, listed[::-1]):
        monkeypatch.setattr(Path, "iterdir", lambda self, order=order: iter(order))
        assert [str(path) for path in find_audio(tmp_path)] == ["001.wav", "01.wav", "1.wav"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path / "music", "a/1.wav", samples=1)
    make(tmp_path / "elsewhere", "deep/2.wav", samples=1)
    (tmp_path / "music/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "music/a/up").symlink_to(tmp_path / "music")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "music/a")
    (tmp_path / "music/lost.wav").symlink_to(tmp_path / "nowhere.wav")
    names = [str(path) for path in find_audio(tmp_path / "music")]
    assert names == ["a/1.wav", "b/back/1.wav", "b/deep/2.wav", "lost.wav"]


def test_a_folder_that_cannot_be_searched_is_named(
    music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(PermissionError, match="train/deep"):
        prepare(music, music.parent / "out")


def break_file(path: Path, how: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "empty":
        soundfile.write(path, np.zeros(0), 16000)
    elif how == "text":
        path.write_text("no audio")
    elif how == "nan":
        soundfile.write(path, np.full(70_000, np.nan), 16000, subtype="FLOAT")
    elif how == "damaged":
        good = path.with_suffix(".flac")
        soundfile.write(good, np.random.default_rng(0).uniform(-1, 1, 200_000), 16000)
        path.write_bytes(good.read_bytes()[:200_000])
        good.unlink()
    elif how == "cut":
        soundfile.write(path, np.zeros(999), 16000)
        path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("how", ["empty", "text", "nan", "damaged", "cut"])
def test_a_bad_file_is_named_and_nothing_is_left(music: Path, how: str) -> None:
    break_file(music / "train/bad.wav", how)
    out = music.parent / "out"
    with pytest.raises(ValueError, match=r"train/bad\.wav (is|holds) "):
        prepare(music, out)
    assert not list(out.iterdir())


@pytest.mark.parametrize("how", ["empty", "text", "nan", "damaged", "cut"])
@pytest.mark.parametrize("bits", [8, 12])
def test_bad_files_can_be_skipped(music: Path, how: str, bits: int) -> None:
    tokenizer = Tokenizer(bits=bits)
    good = prepare(music, music.parent / "good", tokenizer)
    break_file(music / "train/bad.wav", how)
    store = prepare(music, music.parent / "out", tokenizer, skip_bad=True)
    assert store.files() == good.files()
    for file in store.files():
        assert np.array_equal(store.clip(file), good.clip(file))
    assert list(store.skipped) == ["train/bad.wav"]
    assert "bad.wav" in store.skipped["train/bad.wav"]


def test_a_file_usable_at_one_speed_is_taken_at_that_one_and_hashed_once(
    music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["audiomamba.data.prepare"]
    read, hashed = module._waveform, []

    def waveform(path: Path, tokenizer: Tokenizer, rate: int, speed: float) -> Any:
        if path.name == "b9.flac" and speed == 2.0:
            raise module.UnusableAudioError(f"{path} is too short")
        return read(path, tokenizer, rate, speed)

    def sha256(path: Path) -> str:
        hashed.append(path.name)
        return "0" * 64

    monkeypatch.setattr(module, "_waveform", waveform)
    monkeypatch.setattr(module, "sha256", sha256)
    break_file(music / "train/bad.wav", "text")
    store = prepare(music, music.parent / "out", speeds=(2.0, 1.0), skip_bad=True)
    assert [file.speed for file in store.files("train") if file.path == "train/b9.flac"] == [1.0]
    assert list(store.skipped) == ["train/bad.wav"]
    assert sorted(hashed) == sorted({Path(file.path).name for file in store.files()})


def test_nothing_but_bad_files_is_an_error(tmp_path: Path) -> None:
    break_file(tmp_path / "music/train/a.wav", "text")
    with pytest.raises(ValueError, match="none of the 1 audio files"):
        prepare(tmp_path / "music", tmp_path / "out", skip_bad=True)


def test_prepared_tokens_are_not_overwritten_unasked(music: Path) -> None:
    out = music.parent / "out"
    prepare(music, out)
    before = (out / "tokens.bin").read_bytes()
    with pytest.raises(FileExistsError, match=r"out already holds prepared tokens.*--overwrite"):
        prepare(music, out, Tokenizer("linear"))
    assert (out / "tokens.bin").read_bytes() == before
    store = prepare(music, out, Tokenizer("linear", 9), overwrite=True)
    assert TokenStore(out).tokenizer == store.tokenizer == Tokenizer("linear", 9)


def test_a_failed_overwrite_keeps_what_was_there(music: Path) -> None:
    out = music.parent / "out"
    prepare(music, out)
    before = [path.read_bytes() for path in sorted(out.iterdir())]
    break_file(music / "train/bad.wav", "text")
    with pytest.raises(ValueError, match=r"bad\.wav"):
        prepare(music, out, overwrite=True)
    assert [path.read_bytes() for path in sorted(out.iterdir())] == before


def test_a_full_disk_is_never_skipped(music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def encode(self: Tokenizer, waveform: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return waveform.astype(np.uint8)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    with pytest.raises(OSError, match=r"No space left on device: .*out/tokens\.bin'$"):
        prepare(music, music.parent / "out", skip_bad=True)
    assert not list((music.parent / "out").iterdir())


def test_progress_counts_every_file(music: Path) -> None:
    steps: list[tuple[int, int]] = []
    break_file(music / "train/bad.wav", "text")
    prepare(
        music,
        music.parent / "out",
        skip_bad=True,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(i, 6) for i in range(1, 7)]


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no audio; looked for \.aif"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path / "out")


def test_a_store_that_is_not_there_tells_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no prepared tokens; .* audiomamba prepare"):
        TokenStore(tmp_path)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_token_file_of_the_wrong_size_is_refused(music: Path, change: int, bits: int) -> None:
    out = music.parent / "out"
    prepare(music, out, Tokenizer(bits=bits))
    tokens = (out / "tokens.bin").read_bytes()
    (out / "tokens.bin").write_bytes(tokens[:change] if change < 0 else tokens + b"x")
    with pytest.raises(ValueError, match=rf"holds {len(tokens) + change} bytes .* {len(tokens)};"):
        TokenStore(out)


def test_a_missing_token_file_is_refused(music: Path) -> None:
    prepare(music, music.parent / "out")
    (music.parent / "out/tokens.bin").unlink()
    with pytest.raises(ValueError, match=r"tokens\.bin holds 0 bytes"):
        TokenStore(music.parent / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is damaged: "),
        (lambda text: "[]", "is not an index of version 1"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "not an index of version 1"),
        (lambda text: text.replace('"sample_rate"', '"rate"'), "is damaged: 'sample_rate'"),
        (lambda text: text.replace('"peak"', '"top"'), "is damaged: .*'top'"),
        (lambda text: text.replace('"offset": 0', '"offset": 1'), "test/a.wav is misplaced"),
        (lambda text: text.replace('"mu-law"', '"a-law"'), "encoding is 'a-law'"),
    ],
)
def test_a_damaged_index_is_refused(music: Path, change: Any, message: str) -> None:
    index = music.parent / "out/index.json"
    prepare(music, index.parent)
    index.write_text(change(index.read_text()))
    with pytest.raises(ValueError, match=message):
        TokenStore(index.parent)
