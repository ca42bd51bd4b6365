"""Files on disk: they appear whole or not at all, and are known by their hash."""

from __future__ import annotations

import hashlib
import os
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
