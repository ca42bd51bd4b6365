"""Audio files: read as float32 mono at the rate asked for, written whole or not at all."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from audiomamba.files import replacing

Format = Literal["wav", "flac", "ogg", "mp3"]

SUFFIXES = frozenset(
    {
        ".aif",
        ".aiff",
        ".au",
        ".caf",
        ".flac",
        ".mp3",
        ".oga",
        ".ogg",
        ".opus",
        ".rf64",
        ".w64",
        ".wav",
    }
)

_CODECS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
_BLOCK = 1 << 16
_WAV_LIMIT_BYTES = (1 << 32) - 4096  # the header counts bytes in 32 bits
_BYTES = {"PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}
_LOUDEST = 2.0
_RATES_HZ = range(1000, 1_000_001)


def read(
    path: str | os.PathLike[str],
    sample_rate: int,
    *,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    speed: float = 1.0,
) -> NDArray[np.float32]:
    """Read an audio file as one channel at `sample_rate`.

    Channels are averaged; any other rate is resampled in high quality (soxr HQ). Peaks a little
    over full scale, which lossy codecs and resampling make, are clipped to [-1, 1].

    Args:
        path: Anything that libsndfile reads: WAV, FLAC, Ogg, Opus, MP3, AIFF, CAF and others.
        sample_rate: Hz.
        start_seconds: Where to begin.
        seconds: Return at most this much and read no more of the file than that takes; None for
            all.
        speed: Play the file so many times as fast, which moves its pitch as well.

    Returns:
        Samples in [-1, 1], (samples,).

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened.
        ValueError: If it is not audio, is damaged or cut short, says a rate outside 1 kHz to 1 MHz,
            holds no sample in the range asked for, a sample that is NaN or infinite, or a peak over
            2 (not scaled to [-1, 1]); or if an argument is out of range.
    """
    return np.concatenate(
        list(blocks(path, sample_rate, start_seconds=start_seconds, seconds=seconds, speed=speed))
    )


def blocks(
    path: str | os.PathLike[str],
    sample_rate: int,
    *,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    speed: float = 1.0,
) -> Iterator[NDArray[np.float32]]:
    """Read as `read` does, piece by piece, so that memory does not grow with the file.

    Yields:
        Consecutive pieces, at least one, none of them empty; together what `read` returns.

    Raises:
        OSError, ValueError: As `read`, at the piece where the fault is found.
    """
    if sample_rate < 1:
        raise ValueError(f"sample_rate is {sample_rate}; it must be positive, in Hz")
    if not 0 <= start_seconds < math.inf:
        raise ValueError(f"start_seconds is {start_seconds}; it must be 0 or more")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds}; it must be positive")
    if not 0.1 <= speed <= 10:
        raise ValueError(f"speed is {speed}; it must be from 0.1 to 10")
    wanted = math.inf if seconds is None else max(1, round(seconds * sample_rate))
    made = 0
    with _open(path) as file:
        start = round(start_seconds * file.samplerate)
        if file.frames <= start:
            raise ValueError(
                f"{path} lasts {file.frames / file.samplerate:.6g} s; "
                f"nothing to read from {start_seconds:.6g} s on"
            )
        for piece in _resampled(_mono(file, start, path), file.samplerate, sample_rate / speed):
            if len(piece):
                yield np.clip(piece[: int(min(len(piece), wanted - made))], -1, 1)
                made += len(piece)
            if made >= wanted:
                return
    if not made:
        raise ValueError(f"{path} is too short: no sample is left of it at {sample_rate} Hz")


def check(path: str | os.PathLike[str]) -> float:
    """Return how many seconds a file lasts, by its header.

    Raises:
        OSError, ValueError: What `read` finds wrong with it before its first sample.
    """
    with _open(path) as file:
        return float(file.frames / file.samplerate)


def write(
    path: str | os.PathLike[str],
    waveform: NDArray[np.floating[Any]],
    sample_rate: int,
    *,
    format: Format | None = None,
    subtype: str | None = None,
) -> None:
    """Write one channel of audio; `path` appears when the file is complete.

    Args:
        path: The file; an existing one is replaced.
        waveform: Samples in [-1, 1], (samples,).
        sample_rate: Hz.
        format: "wav", "flac", "ogg" (Vorbis) or "mp3"; None takes it from the suffix. A WAV file
            over 4 GB is written as RF64.
        subtype: libsndfile's name of the sample format, such as "PCM_16" (the default for WAV and
            FLAC), "PCM_24", "FLOAT" or "ULAW".

    Raises:
        OSError: If the file cannot be written, as on a full disk.
        ValueError: If the waveform is empty, not one-dimensional, not finite or outside [-1, 1], or
            the format cannot hold it.
    """
    path = Path(path)
    name = path.suffix[1:].lower() if format is None else format
    if name not in _CODECS:
        raise ValueError(
            f"{name!r} is no audio format; choose one of {', '.join(get_args(Format))}"
        )
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(
            f"the waveform has shape {waveform.shape}; it must be (samples,), not empty"
        )
    if not np.abs(waveform).max() <= 1:
        raise ValueError(
            f"the waveform peaks at {np.abs(waveform).max():.6g}; it must lie in [-1, 1]"
        )
    container, default = _CODECS[name]
    encoded = _encode(waveform, sample_rate, container, subtype or default)
    with naming(path), replacing(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def to_pcm16(waveform: NDArray[np.floating[Any]]) -> bytes:
    """Return samples in [-1, 1] as 16-bit little-endian numbers, those that `write` makes."""
    numbers = np.floor(waveform * np.float32(32768)).clip(-32768, 32767)
    return bytes(numbers.astype("<i2").tobytes())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError name `path` if it names no file, as that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[Any]:
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb"):  # the system's own reason, which libsndfile does not tell
        pass
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw
        raise ValueError(f"{path} is not audio that libsndfile reads: {_reason(error)}") from error
    with file:
        if file.samplerate not in _RATES_HZ:
            raise ValueError(
                f"{path} says its sample rate is {file.samplerate} Hz; mend its header"
            )
        _check_wav_is_whole(path)
        if not file.frames:
            raise ValueError(f"{path} is empty; nothing to read")
        yield file


def _check_wav_is_whole(path: str | os.PathLike[str]) -> None:
    """Compare what a WAV header says with the file; libsndfile reads what is there and is silent.

    Source: EBU Tech 3306 (RF64), 2009: chunks, and ds64 for sizes over 32 bits.
    """
    with open(path, "rb") as file:
        if file.read(12)[:4] not in (b"RIFF", b"RF64"):
            return
        long_size = 0
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            start = file.tell()
            if name == b"ds64" and size >= 16:
                long_size = struct.unpack("<8xQ", file.read(16))[0]
            elif name == b"data":
                if size == 0xFFFFFFFF:
                    size = long_size
                elif size & 0x7FFF0000 == 0x7FFF0000:  # of a stream, its length not yet known
                    size = 0
                there = file.seek(0, os.SEEK_END) - start
                if there < size:
                    raise ValueError(f"{path} is cut short: {there} of {size} bytes are there")
                return
            file.seek(start + size + size % 2)


def _mono(file: Any, start: int, path: object) -> Iterator[tuple[NDArray[np.float32], bool]]:
    """Yield (block averaged over channels, whether it is the last)."""
    done = start
    try:
        file.seek(start)
        while done < file.frames:
            block = file.read(_BLOCK, dtype="float32", always_2d=True)
            if not len(block):
                raise ValueError(f"{path} is cut short: {done} of {file.frames} samples are there")
            peak = float(np.abs(block).max())
            if not math.isfinite(peak):
                raise ValueError(f"{path} holds a sample that is NaN or infinite; repair the file")
            if peak > _LOUDEST:
                raise ValueError(f"{path} peaks at {peak:.6g}; scale its samples to [-1, 1]")
            done += len(block)
            yield block.mean(axis=1), done >= file.frames
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} is damaged: {_reason(error)}") from error


def _resampled(
    pieces: Iterator[tuple[NDArray[np.float32], bool]], rate: int, sample_rate: float
) -> Iterator[NDArray[np.float32]]:
    if rate == sample_rate:
        yield from (piece for piece, _ in pieces)
        return
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    for piece, last in pieces:
        yield stream.resample_chunk(piece, last=last)


def _encode(waveform: NDArray[Any], sample_rate: int, container: str, subtype: str) -> io.BytesIO:
    # In memory, because libsndfile does not report a full disk for every format.
    encoded = io.BytesIO()
    if container == "WAV" and _BYTES.get(subtype, 4) * len(waveform) > _WAV_LIMIT_BYTES:
        container = "RF64"
    try:
        with soundfile.SoundFile(encoded, "w", sample_rate, 1, subtype, format=container) as file:
            for start in range(0, len(waveform), _BLOCK):  # Vorbis overflows the stack on long ones
                file.write(waveform[start : start + _BLOCK])
    except (soundfile.SoundFileError, ValueError) as error:
        raise ValueError(
            f"{container} cannot hold {subtype} at {sample_rate} Hz: {_reason(error)}"
        ) from error
    return encoded


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", error))
    return text.removeprefix("Error : ").rstrip(".")
