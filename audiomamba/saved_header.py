"""Whether a file holds saved streams: told in a moment, without PyTorch."""

from __future__ import annotations

from pathlib import Path

import safetensors
from safetensors import safe_open

KIND = "audiomamba streams"
FORMAT = f"{KIND} 1"
SUFFIX = ".safetensors"


def check(path: str | Path) -> None:
    """Look at the beginning of a file of saved streams.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, is cut off or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name one that holds saved streams")
    try:
        with safe_open(path, "np") as file:
            found = (file.metadata() or {}).get("format")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or holds no saved streams ({error}){_beside(path)}"
        ) from error
    if found is None or not found.startswith(KIND):
        raise ValueError(f"{path} holds other tensors; give a file of --save-state or Session.save")
    if found != FORMAT:
        raise ValueError(
            f"{path} is of the format {found!r}, and this version of audiomamba reads {FORMAT!r}; "
            "go on with the version that wrote it"
        )


def _beside(path: Path) -> str:
    """Name the file that was meant where its record or its sound was given."""
    state = path.with_suffix(SUFFIX)
    return f"; give {state}" if state != path and state.is_file() else ""
