"""Prepared audio: one memory-mapped file of tokens and an index of what is where."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from audiomamba.tokenizer import Tokenizer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

INDEX = "index.json"
TOKENS = "tokens.bin"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """What became of one audio file.

    Attributes:
        path: Relative to the folder that was prepared, with forward slashes.
        split: "train", "validation" or "test".
        offset: Tokens before its first in the token file.
        samples: Its length in tokens.
        peak: Largest absolute sample before quantisation, 0 to 1; 0 is a silent file.
        sha256: Of the audio file.
        speed: How many times as fast it was played; more than one copy of a file has each its own.
    """

    path: str
    split: Split
    offset: int
    samples: int
    peak: float
    sha256: str
    speed: float = 1.0


class TokenStore:
    """A prepared folder, open for reading.

    Attributes:
        directory: The folder.
        sample_rate: Hz.
        tokenizer: What made the tokens.
        split_rule: How files were assigned to splits, in words.
        skipped: Why each unusable file was left out, by its path.

    Example:
        >>> store = TokenStore("tokens/piano")  # doctest: +SKIP
        >>> for file in store.files("train"):  # doctest: +SKIP
        ...     tokens = store.read(file, start=0, samples=16000)
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Open a folder that `audiomamba.data.prepare` made.

        Raises:
            FileNotFoundError: If it holds no prepared tokens.
            ValueError: If the index is damaged, or does not match the size of the token file.
        """
        self.directory = Path(directory)
        index = _read_index(self.directory / INDEX)
        try:
            self.sample_rate = int(index["sample_rate"])
            self.tokenizer = Tokenizer(**index["tokenizer"])
            self.split_rule = str(index["split_rule"])
            self.skipped: dict[str, str] = dict(index["skipped"])
            self._files = tuple(TokenFile(**file) for file in index["files"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.directory / INDEX} is damaged: {error}") from error
        self._tokens = self._map()

    def files(self, split: Split | None = None) -> tuple[TokenFile, ...]:
        """Return the files of a split, or all of them, in natural order of their paths.

        Raises:
            ValueError: If the split is unknown.
        """
        if split is None:
            return self._files
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
        return tuple(file for file in self._files if file.split == split)

    def clip(self, file: TokenFile) -> NDArray[Any]:
        """Return all tokens of a file as a read-only view of the memory map, (samples,)."""
        return self._tokens[file.offset : file.offset + file.samples]

    def read(self, file: TokenFile, start: int, samples: int) -> NDArray[Any]:
        """Return a copy of a piece of a file, (samples,).

        Raises:
            ValueError: If the piece reaches outside the file.
        """
        if start < 0 or samples < 0 or start + samples > file.samples:
            raise ValueError(
                f"samples {start} to {start + samples} of {file.path} reach outside its "
                f"{file.samples}"
            )
        return np.array(self.clip(file)[start : start + samples])

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        # Worker processes map the file again: pickling a memory map would copy it.
        return TokenStore, (self.directory,)

    def _map(self) -> NDArray[Any]:
        path = self.directory / TOKENS
        end = 0
        for file in self._files:
            if file.offset != end or file.samples < 1:
                raise ValueError(f"{self.directory / INDEX} is damaged: {file.path} is misplaced")
            end += file.samples
        dtype = self.tokenizer.dtype
        there = path.stat().st_size if path.exists() else 0
        if there != end * dtype.itemsize or not end:
            raise ValueError(
                f"{path} holds {there} bytes and its index counts {end * dtype.itemsize}; "
                "prepare the folder again"
            )
        return np.memmap(path, dtype=dtype, mode="r")


def write_index(
    path: Path,
    files: list[TokenFile],
    *,
    tokenizer: Tokenizer,
    sample_rate: int,
    split_rule: str,
    skipped: dict[str, str],
) -> None:
    """Write the index of a token file.

    Args:
        path: The JSON file.
        files: In the order of their tokens.
        tokenizer: What made the tokens.
        sample_rate: Hz.
        split_rule: How files were assigned to splits, in words.
        skipped: Why each unusable file was left out, by its path.
    """
    totals = {
        split: {
            "files": sum(file.split == split for file in files),
            "samples": sum(file.samples for file in files if file.split == split),
        }
        for split in SPLITS
    }
    index = {
        "version": VERSION,
        "sample_rate": sample_rate,
        "tokenizer": dataclasses.asdict(tokenizer),
        "dtype": tokenizer.dtype.str,
        "split_rule": split_rule,
        "totals": totals,
        "skipped": skipped,
        "files": [dataclasses.asdict(file) for file in files],
    }
    path.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _read_index(path: Path) -> dict[str, Any]:
    if not path.exists():
        names = [x.name for x in path.parent.iterdir()] if path.parent.is_dir() else []
        there = any(not name.startswith(".") for name in names)  # others a killed command left
        make = f"{path.parent} TOKENS, and give TOKENS" if there else f"RECORDINGS {path.parent}"
        raise FileNotFoundError(
            f"{path.parent} holds no prepared tokens; make them: audiomamba prepare {make}"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(index, dict) or index.get("version") != VERSION:
        raise ValueError(f"{path} is not an index of version {VERSION}; prepare the folder again")
    return index
