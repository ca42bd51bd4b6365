"""Which files are found, in which order, and for which split."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from audiomamba.data import TokenStore
from audiomamba.data.prepare import LISTS, assign_splits, find_audio, prepare, read_lists
from tests.data.audio_files import make


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


def test_words_without_lists_are_not_split_by_position(words: Path) -> None:
    for name in LISTS:
        (words / name).unlink()
    message = (
        r"words has no validation_list\.txt and no testing_list\.txt, .* folders of two, one would "
        r"be for one split alone; get the lists of Speech Commands, or .* into folders train"
    )
    with pytest.raises(ValueError, match=message):
        prepare(words, words.parent / "out", only=["two", "one"])
    assert not (words.parent / "out").exists()

    make(words, *(f"up/{i}.wav" for i in range(9)))
    assert prepare(words, words.parent / "up", only=["up"]).split_rule.startswith("by position")


def test_words_in_folders_of_the_splits_need_no_lists(words: Path) -> None:
    """What the message above says, and with `only` the splits themselves."""
    for name in LISTS:
        (words / name).unlink()
    for split, word in (("train", "one"), ("validation", "two"), ("test", "up")):
        (words / split).mkdir()
        (words / word).rename(words / split / word)
    assert prepare(words, words.parent / "out").split_rule == "by folder"
    store = prepare(words, words.parent / "two", only=["train", "test"])
    assert {file.path.split("/")[0] for file in store.files()} == {"train", "test"}
    with pytest.raises(ValueError, match="words has no audio in a folder one"):
        prepare(words, words.parent / "words", only=["one", "two"])


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
