"""Prepared tokens are read anywhere, and refused where they are damaged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiomamba.data import TokenStore
from audiomamba.data.prepare import prepare
from audiomamba.tokenizer import Tokenizer


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
