"""Files are played by what the system has for it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# A program and its options, and the formats that it plays.
PLAYERS: tuple[tuple[tuple[str, ...], frozenset[str]], ...] = (
    (
        ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
        frozenset({"wav", "flac", "ogg", "mp3"}),
    ),
    (("afplay",), frozenset({"wav", "flac", "mp3"})),
    (("paplay",), frozenset({"wav", "flac", "ogg"})),
    (("aplay", "-q"), frozenset({"wav"})),
)


def find_player(format: str) -> tuple[str, ...]:
    """Return the command that plays files of a format, without the file.

    Raises:
        FileNotFoundError: If no player is installed; the message says which would do.
    """
    able = [command for command, formats in PLAYERS if format in formats]
    for command in able:
        if shutil.which(command[0]):
            return command
    names = ", ".join(command[0] for command in able)
    raise FileNotFoundError(
        f"nothing here plays {format} files: none of {names} is installed; install ffmpeg, which "
        "brings ffplay, or leave --play out"
    )


def play(command: Sequence[str], path: Path) -> None:
    """Play a file to its end.

    Raises:
        OSError: If the player fails, as where there is no sound device.
    """
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(f"{command[0]} could not play {path}: {said}; the file is there")
