"""Clips of spoken words in memory, and utterances made of them.

Clips are kept as 16-bit samples and joined by numpy; features are made on the device, so that a GPU
waits for no file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba import audio
from audiomamba.data.prepare import LISTS, NOISE, assign_splits, find_audio, read_lists

RATE = 16000


@dataclass(frozen=True)
class Clips:
    """Recordings of words, one after the other, 16-bit at 16 kHz.

    Attributes:
        samples: Of all.
        starts: Where each begins, and where the last ends.
        labels: Of each, its place in `words`.
        words: In alphabetical order.
        splits: Of each: train, validation or test.
        speakers: Of each.
        speaker_counts: Of each, how many training clips its speaker has.
        digest: Of names, splits and samples.
    """

    samples: NDArray[np.int16]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    words: tuple[str, ...]
    splits: NDArray[np.str_]
    speakers: NDArray[np.str_]
    speaker_counts: NDArray[np.int64]
    digest: str

    def chosen(self, split: str) -> NDArray[np.int64]:
        """Return the indices of a split's clips; "seen" and "unseen" are the test's halves.

        They are those of speakers of whom there are training clips, and none.
        """
        if split in ("seen", "unseen"):
            seen = (self.speaker_counts > 0) == (split == "seen")
            return ((self.splits == "test") & seen).nonzero()[0]
        return (self.splits == split).nonzero()[0]

    def draw(self, random: np.random.Generator, number: int, even: float) -> NDArray[np.int64]:
        """Draw training clips; `even` 0 draws all clips alike, 1 all speakers alike."""
        chosen = self.chosen("train")
        weights = self.speaker_counts[chosen] ** -even
        return random.choice(chosen, number, p=weights / weights.sum())


def read_clips(
    folder: str | Path, words: Collection[str] | None = None, hold_out: Collection[str] = ()
) -> Clips:
    """Read a folder of words.

    Args:
        folder: WORD/SPEAKER_nohash_N.wav or .flac, and Speech Commands' lists, without which whole
            words would be for one split alone.
        words: None takes all there are.
        hold_out: Speakers whose clips are all for the test.

    Raises:
        FileNotFoundError: If there is no such folder; says how to get one.
        ValueError: If there are no lists, a word or a speaker is not there, or a split is empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; get the digits of Speech Commands by `audiomamba fetch "
            f"sc09 {folder}`, or give a folder with one of clips for each word by --data"
        )
    listed = read_lists(folder)
    found = find_audio(folder)
    if listed is None:
        folders = ", ".join(sorted({p.parts[0] for p in found if len(p.parts) > 1})[:4]) or "none"
        raise ValueError(
            f"{folder} has no {' and no '.join(LISTS)}: its folders ({folders}) are words, and "
            "split by position whole words would be for one split alone; lay it out as Speech "
            "Commands, WORD/SPEAKER_nohash_N.wav with the two lists, each line of which is the "
            "path of a clip (`audiomamba fetch sc09 FOLDER` gets such a folder); folders train, "
            "validation and test are not taken"
        )
    paths = [p for p in found if len(p.parts) == 2 and p.parts[0] != NOISE]
    names = sorted({p.parts[0] for p in paths} if words is None else set(words))
    paths = [p for p in paths if p.parts[0] in names]
    speakers = [p.stem.split("_nohash_")[0] for p in paths]
    splits = assign_splits(paths, listed)[0]
    splits = ["test" if s in hold_out else split for s, split in zip(speakers, splits, strict=True)]
    for what, wanted, there in (
        ("word", names, {p.parts[0] for p in paths}),
        ("speaker", hold_out, set(speakers)),
        ("split", ("train", "validation", "test"), set(splits)),
    ):
        missing = sorted(set(wanted) - there)
        if missing:
            raise ValueError(f"{folder} has no clip of the {what} {missing[0]!r}")
    training = Counter(s for s, split in zip(speakers, splits, strict=True) if split == "train")
    pieces = [(audio.read(folder / p, RATE) * 32767).round().astype(np.int16) for p in paths]
    lines = "".join(f"{p} {s} {len(x)}\n" for p, s, x in zip(paths, splits, pieces, strict=True))
    samples = np.concatenate(pieces)
    digest = hashlib.sha256(lines.encode())
    digest.update(samples.astype("<i2", copy=False).tobytes())
    return Clips(
        samples,
        np.cumsum([0, *map(len, pieces)]),
        np.array([names.index(p.parts[0]) for p in paths]),
        tuple(names),
        np.array(splits),
        np.array(speakers),
        np.array([training[speaker] for speaker in speakers]),
        digest.hexdigest(),
    )


class Batch(NamedTuple):
    """Utterances: waveform (batch, samples) and lengths (batch,) on the CPU, labels of each."""

    waveform: Tensor
    lengths: Tensor
    labels: list[NDArray[np.int64]]


def join(
    clips: Clips,
    rows: Sequence[NDArray[np.int64]],
    gaps: Sequence[NDArray[np.float64]],
    gain_db: float = 0.0,
    speed: float = 0.0,
    random: np.random.Generator | None = None,
) -> Batch:
    """Join clips to utterances.

    Args:
        clips: From which.
        rows: The clips of each utterance.
        gaps: Seconds of silence before, between and after them, one more than clips.
        gain_db: Each clip is up to so much louder or softer, by `random`.
        speed: Each clip is up to so much of itself faster or slower, its pitch with it.
        random: Generator; None changes nothing.
    """
    utterances = []
    for row, silences in zip(rows, gaps, strict=True):
        pieces = [np.zeros(round(silences[0] * RATE))]
        for clip, silence in zip(row, silences[1:], strict=True):
            piece = clips.samples[clips.starts[clip] : clips.starts[clip + 1]] / 32767
            if random is not None:
                gain = 10 ** (random.uniform(-gain_db, gain_db) / 20)
                times = np.arange(0, len(piece) - 1, 1 + random.uniform(-speed, speed))
                piece = gain * np.interp(times, np.arange(len(piece)), piece)
            pieces += [piece, np.zeros(round(silence * RATE))]
        utterances.append(np.concatenate(pieces).clip(-1, 1))
    waveform = np.zeros((len(rows), max(map(len, utterances))), np.float32)
    for i, utterance in enumerate(utterances):
        waveform[i, : len(utterance)] = utterance
    lengths = torch.tensor([len(x) for x in utterances])
    return Batch(torch.from_numpy(waveform), lengths, [clips.labels[row] for row in rows])
