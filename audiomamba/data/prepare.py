"""A folder of audio becomes one file of tokens and an index."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiomamba import audio
from audiomamba.data.tokens import INDEX, SPLITS, TOKENS, Split, TokenFile, TokenStore, write_index
from audiomamba.files import replacing, sha256, sweep
from audiomamba.tokenizer import Tokenizer

LISTS: dict[str, Split] = {"validation_list.txt": "validation", "testing_list.txt": "test"}
NOISE = "_background_noise_"


class UnusableAudioError(ValueError):
    """An audio file that cannot become tokens; the message names it."""


def prepare(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    sample_rate: int = 16000,
    only: Collection[str] | None = None,
    speeds: Sequence[float] = (1.0,),
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Turn every audio file under a folder into tokens.

    Writes `tokens.bin`, the levels of all files one after the other (uint8, or little-endian uint16
    above 8 bits), and `index.json`: sample rate, tokenizer, and for each file its path, split,
    offset, length, peak and sha256. The index is written last: a folder that has one is complete.
    The same audio gives the same bytes.

    Files named in validation_list.txt and testing_list.txt, where the folder has them, are those
    splits, and the rest is for training (Speech Commands). Otherwise subfolders named train,
    validation and test are the splits where there are any. Otherwise files are split by position in
    natural order, the first 88 % for training and 6 % each for validation and test (SaShiMi's rule,
    by which an added file moves others to another split).

    Args:
        directory: Searched with all its subfolders, linked ones too, except for hidden files and
            folders and Speech Commands' _background_noise_.
        out: The folder to write; made if it is not there.
        tokenizer: Defaults to 8-bit mu-law.
        sample_rate: Hz, of the tokens; other rates are resampled.
        only: Take these subfolders and no others, such as ten words of Speech Commands. Several
            are not split by position, by which whole words would be for one split alone.
        speeds: Training files are taken once at each of these speeds (0.9 is slower and lower), so
            that a small corpus says more; the others once, as they are. Three speeds, 0.9, 1 and
            1.1, are usual in speech recognition (Ko et al. 2015, "Audio augmentation for speech
            recognition").
        skip_bad: Leave out files that cannot be used, and list those in the index of which nothing
            is taken; one may be too short for a high speed alone.
        overwrite: Replace what `out` holds.
        progress: Called with (files done, files in all) after each file; copies count.

    Returns:
        The tokens, open for reading.

    Raises:
        FileNotFoundError: If the folder does not exist.
        FileExistsError: If `out` holds prepared tokens and `overwrite` is not given.
        OSError: If a folder cannot be searched, or `out` cannot be written.
        ValueError: If there is no audio, also in one of the folders asked for, a file is unusable
            (see `audiomamba.audio.read`), the splits are not clear (see `assign_splits`, and
            `only`), or speeds are out of range.
    """
    directory, out = Path(directory), Path(out)
    tokenizer = tokenizer or Tokenizer()
    if not speeds or len(set(speeds)) < len(speeds) or not all(0.1 <= x <= 10 for x in speeds):
        raise ValueError(f"speeds are {list(speeds)}; give at least one, each once, from 0.1 to 10")
    if (out / INDEX).exists() and not overwrite:
        raise FileExistsError(
            f"{out} already holds prepared tokens; replace them with --overwrite or name another "
            "folder"
        )
    paths = _choose(find_audio(directory), directory, only)
    listed = read_lists(directory)
    if listed is None and only is not None:
        _check_not_by_position(directory, only)
    splits, split_rule = assign_splits(paths, listed)
    jobs = [
        (path, split, speed)
        for path, split in zip(paths, splits, strict=True)
        for speed in (speeds if split == "train" else (1.0,))
    ]
    out.mkdir(parents=True, exist_ok=True)
    for name in (INDEX, TOKENS):
        sweep(out / name)
    with replacing(out / INDEX) as index:
        with replacing(out / TOKENS) as tokens:
            files: list[TokenFile] = []
            skipped: dict[PurePosixPath, str] = {}
            hashes: dict[PurePosixPath, str] = {}
            offset = 0
            for done, (path, split, speed) in enumerate(jobs, start=1):
                try:
                    with audio.naming(out / TOKENS):
                        pieces = _waveform(directory / path, tokenizer, sample_rate, speed)
                        samples, peak = _append(tokens, pieces, tokenizer)
                    if path not in hashes:
                        hashes[path] = sha256(directory / path)
                    file = TokenFile(
                        path=str(path),
                        split=split,
                        offset=offset,
                        samples=samples,
                        peak=round(peak, 6),
                        sha256=hashes[path],
                        speed=speed,
                    )
                    offset += samples
                    files.append(file)
                except UnusableAudioError as error:
                    if not skip_bad:
                        raise
                    skipped[path] = str(error)
                if progress is not None:
                    progress(done, len(jobs))
            if not files:
                raise ValueError(f"none of the {len(paths)} audio files in {directory} can be used")
            (out / INDEX).unlink(missing_ok=True)  # it does not describe what comes now
        write_index(
            index,
            files,
            tokenizer=tokenizer,
            sample_rate=sample_rate,
            split_rule=split_rule,
            skipped={str(path): skipped[path] for path in skipped if path not in hashes},
        )
    return TokenStore(out)


def find_audio(directory: Path) -> list[PurePosixPath]:
    """Return the audio files under a folder, relative to it, in natural order (2 before 10).

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If it, or a folder in it, cannot be searched.
        ValueError: If it holds no audio.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory}")
    paths = [PurePosixPath(path.relative_to(directory).as_posix()) for path in _search(directory)]
    if not paths:
        suffixes = ", ".join(sorted(audio.SUFFIXES))
        raise ValueError(f"{directory} holds no audio; looked for {suffixes}")
    return sorted(paths, key=lambda path: (natural(path), str(path)))


def _search(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link back up
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _search(path, (*above, real))
        elif path.suffix.lower() in audio.SUFFIXES and (path.is_file() or path.is_symlink()):
            yield path


def natural(path: PurePosixPath) -> list[Any]:
    """Return a sort key by which runs of digits compare as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def _choose(
    paths: list[PurePosixPath], directory: Path, only: Collection[str] | None
) -> list[PurePosixPath]:
    if only is None:
        return [path for path in paths if path.parts[0] != NOISE]
    missing = sorted(set(only) - {path.parts[0] for path in paths if len(path.parts) > 1})
    if missing:
        raise ValueError(f"{directory} has no audio in a folder {missing[0]}")
    return [path for path in paths if path.parts[0] in only]


def _check_not_by_position(directory: Path, only: Collection[str]) -> None:
    if len(set(only)) > 1 and not set(only) & set(SPLITS):
        raise ValueError(
            f"{directory} has no {' and no '.join(LISTS)}, and split by position whole folders of "
            f"{', '.join(only)} would be for one split alone; get the lists of Speech Commands, or "
            "put the clips into folders train, validation and test, make tokens of those "
            "(audiomamba prepare FOLDER TOKENS, without --only) and train on TOKENS"
        )


def read_lists(directory: Path) -> dict[PurePosixPath, Split] | None:
    """Return the split of each file in the lists of Speech Commands, None if there are no lists.

    Raises:
        ValueError: If one of the two lists is missing, or both name a file.
    """
    missing = [name for name in LISTS if not (directory / name).is_file()]
    if len(missing) == len(LISTS):
        return None
    if missing:
        raise ValueError(f"{directory} has no {missing[0]} beside its other list; add it")
    listed: dict[PurePosixPath, Split] = {}
    for name, split in LISTS.items():
        for line in filter(None, (directory / name).read_text(encoding="utf-8").splitlines()):
            path = PurePosixPath(line)
            if listed.setdefault(path, split) != split:
                raise ValueError(f"{path} is in both lists of {directory}; take it out of one")
    return listed


def assign_splits(
    paths: list[PurePosixPath], listed: Mapping[PurePosixPath, Split] | None = None
) -> tuple[list[Split], str]:
    """Return the split of each file, and the rule in words.

    Args:
        paths: Relative to the prepared folder, in natural order.
        listed: What lists say of files (see `read_lists`); of folders that hold none of the paths
            they may name any file.

    Raises:
        ValueError: If a listed file is not there, a file lies beside the folders of the splits, or
            there are neither lists nor such folders and too few files to divide.

    Source: fractions and rounding of SaShiMi (state-spaces/s4, configs/dataset/youtubemix.yaml).
    """
    if listed is not None:
        there, folders = set(paths), {path.parent for path in paths}
        lost = [path for path in listed if path not in there and path.parent in folders]
        if lost:
            raise ValueError(
                f"{lost[0]} is listed for {listed[lost[0]]} but is not there; "
                "get it back, or correct the list"
            )
        rule = f"by {' and '.join(LISTS)}, the rest for training"
        return [listed.get(path, "train") for path in paths], rule
    if any(path.parts[0] in SPLITS for path in paths):
        outside = [path for path in paths if path.parts[0] not in SPLITS]
        if outside:
            raise ValueError(
                f"{outside[0]} lies beside the folders train, validation and test; "
                "move it into one of them"
            )
        return [SPLITS[SPLITS.index(path.parts[0])] for path in paths], "by folder"
    count = len(paths)
    train, validation = int(0.88 * count), int(0.94 * count)
    if not 0 < train < validation < count:
        raise ValueError(
            f"{count} audio files are too few to split by position, nine are needed; or put them "
            "into folders named train, validation and test"
        )
    counts = (train, validation - train, count - validation)
    splits = [split for split, n in zip(SPLITS, counts, strict=True) for _ in range(n)]
    return splits, "by position in natural order: 88 % train, 6 % validation, 6 % test"


def _append(
    tokens: Path, pieces: Iterator[NDArray[np.float32]], tokenizer: Tokenizer
) -> tuple[int, float]:
    """Append the tokens of a waveform, and return how many and its peak; of a bad one none stay."""
    samples, peak = 0, 0.0
    with open(tokens, "ab") as stream:
        start = stream.tell()
        try:
            for piece in pieces:
                stream.write(tokenizer.encode(piece).tobytes())
                samples += len(piece)
                peak = max(peak, float(np.abs(piece).max()))
        except UnusableAudioError:
            stream.truncate(start)
            raise
    return samples, peak


def _waveform(
    path: Path, tokenizer: Tokenizer, sample_rate: int, speed: float
) -> Iterator[NDArray[np.float32]]:
    try:
        if tokenizer.encoding == "mu-law-sashimi":  # scales by the whole clip
            yield audio.read(path, sample_rate, speed=speed)
        else:
            yield from audio.blocks(path, sample_rate, speed=speed)
    except (OSError, ValueError) as error:
        raise UnusableAudioError(str(error)) from error
