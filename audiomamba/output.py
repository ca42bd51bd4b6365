"""Where generated audio goes: checked before the work, written with a record of how it was made."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from audiomamba import __version__, audio
from audiomamba.audio import Format
from audiomamba.files import replacing


def check_folder(folder: Path) -> None:
    """Make sure that files can be written into a folder, which is made if it is not there.

    Raises:
        OSError: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write into {folder} ({error.strerror}); name another folder with --output-dir"
        ) from error


def targets(
    folder: Path,
    model: str,
    seed: int,
    indices: Iterable[int],
    format: Format,
    *,
    starts: Sequence[int] = (),
    overwrite: bool,
    beside: tuple[str, ...] = (".json",),
) -> list[Path]:
    """Return the names of the files to come: MODEL_SEED_INDEX.FORMAT.

    What goes on at a sample of an earlier file, `starts` has that of each, is
    MODEL_SEED_INDEX_from_START.FORMAT, unless it is 0.

    Raises:
        FileExistsError: If one of them, or one beside it with a suffix in `beside`, is there and
            may not be overwritten.
    """
    stem = re.sub(r"[^\w.-]+", "-", model.rstrip("/").rsplit("/", 1)[-1]).strip(".") or "model"
    paths = [
        folder / f"{stem}_{seed}_{index}{f'_from_{start}' if start else ''}.{format}"
        for index, start in zip(indices, starts or repeat(0), strict=False)
    ]
    names = (path.with_suffix(end) for path in paths for end in (path.suffix, *beside))
    there = next((name for name in names if name.exists()), None)
    if there and not overwrite:
        raise FileExistsError(
            f"{there} is there already; add --overwrite, or choose another --seed or --output-dir"
        )
    return paths


def check_page(path: Path, *, overwrite: bool) -> None:
    """Make sure that a page can be written, and over none that is wanted.

    Raises:
        OSError: If it cannot.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} is there already; add --overwrite, or name another --gallery"
        )
    check_folder(path.parent)


def check_space(folder: Path, needed: int) -> None:
    """Make sure that a folder has room for so many bytes.

    Raises:
        OSError: If it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        has, takes = (tqdm.format_sizeof(size, "B") for size in (free, needed))
        raise OSError(
            f"{folder} has {has} free and the files take {takes}; "
            "free some space, name another folder with --output-dir, or ask for less"
        )


def record_path(path: Path) -> Path:
    """Return the name of the record beside an audio file."""
    return path.with_suffix(".json")


def write_take(
    path: Path,
    waveform: NDArray[np.floating[Any]],
    sample_rate: int,
    record: Mapping[str, Any],
    *,
    format: Format,
) -> dict[str, Any]:
    """Write audio, and beside it as JSON the record of how it was made.

    Args:
        path: The audio file, which appears last.
        waveform: Samples in [-1, 1], (samples,).
        sample_rate: Hz.
        record: What makes the same audio again; versions and what the file holds are added.
        format: As `audiomamba.audio.write`.

    Returns:
        The record as written.

    Raises:
        OSError: If either cannot be written. Neither then appears half-written.
    """
    values = {
        "file": path.name,
        "sample_rate": sample_rate,
        "samples": len(waveform),
        **record,
        "versions": versions(),
    }
    write_record(path, values)
    audio.write(path, waveform, sample_rate, format=format)
    return values


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write the record of an audio file, over the one it has."""
    there = record_path(path)
    with audio.naming(there), replacing(there) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions, and the CPU compiled for, on which the samples may depend."""
    from llvmlite import binding  # type: ignore[import-untyped]

    compiled_for = os.environ.get("NUMBA_CPU_NAME")
    return {
        "audiomamba": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": binding.get_host_cpu_name(),
        **({"NUMBA_CPU_NAME": compiled_for} if compiled_for else {}),
        **{name: metadata.version(name) for name in ("numba", "numpy", "torch")},
    }
