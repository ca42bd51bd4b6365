"""Files on disk: they appear whole or not at all, and are known by their hash."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name in the same folder that becomes `path` when the block succeeds.

    Args:
        path: The final name. What it holds stays untouched until the end; an exception, Ctrl-C
            included, leaves it so and removes the temporary file.

    Yields:
        The temporary name, hidden and unique to this process.

    Example:
        >>> with replacing("index.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    temporary = part_of(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return a hidden name in the same folder that tells the machine and the process."""
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.part")


def sweep(path: Path) -> None:
    """Remove the files and folders named by `part_of` that killed processes have left.

    To be called before this process has any of the path. What another machine left in a shared
    folder stays: whether its processes live cannot be told from here.
    """
    for part in path.parent.glob(f".{glob.escape(path.name)}.{_machine()}.*.part"):
        process = part.name.split(".")[-2]
        if not process.isdecimal() or _lives_elsewhere(int(process)):
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _machine() -> str:
    """Return a short name of this machine, of no odd characters."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _lives_elsewhere(process: int) -> bool:
    """Return whether a number may be another live process's, of this machine."""
    if process == os.getpid():
        return False  # in a container it often is the number of the one before, too
    if os.name != "posix":
        return True  # the signal would not ask but kill
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[Path]:
    """Give a folder for files that become `paths`, of the same names, when the block succeeds.

    Args:
        paths: The final names, all in one folder, in the order in which they appear. An exception,
            Ctrl-C included, leaves what they hold, or nothing of what was made in the block.

    Yields:
        A folder, hidden and unique, which is removed at the end. An OSError that names a file in it
        names the final one instead.
    """
    folder = paths[0].parent
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as made:
        try:
            yield Path(made)
            _publish(Path(made), paths)
        except OSError as error:
            if error.filename is not None and Path(error.filename).parent == Path(made):
                error.filename = str(folder / Path(error.filename).name)
            raise


def _publish(made: Path, paths: Sequence[Path]) -> None:
    try:
        for path in paths:
            os.replace(made / path.name, path)
    except BaseException:
        for path in paths:
            if not (made / path.name).exists():
                path.unlink(missing_ok=True)
        raise


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
