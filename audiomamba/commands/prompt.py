"""A prompt or a saved state becomes the place that generation goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from audiomamba.audiomodel import AudioModel
    from audiomamba.engine.place import Place

PROMPT_LIMIT_SECONDS = 600  # of what a file begins with, held in memory


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a file goes on from.

    Attributes:
        place: What generation goes on from.
        before: What the file begins with, float32 (samples,), or None.
        record: What the file's record says of it.
    """

    place: Place
    before: NDArray[np.float32] | None
    record: dict[str, Any]


def read_prompt(
    model: AudioModel,
    path: Path,
    seconds: float | None,
    *,
    hold: bool,
    notify: Callable[[], None],
) -> Prompt:
    """Read a file piece by piece.

    Args:
        model: What goes on from it.
        path: Audio of any kind.
        seconds: Of its beginning; None is all.
        hold: Whether the files made begin with it.
        notify: Called once if code must be compiled.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no audio, or too long to be held.
    """
    import numpy as np

    from audiomamba import audio
    from audiomamba.files import sha256

    rate, held, count, silent = model.sample_rate, [], 0, True

    def pieces() -> Iterator[NDArray[np.float32]]:
        nonlocal count, silent
        for piece in audio.blocks(path, rate, seconds=seconds):
            count += len(piece)
            silent = silent and not piece.any()
            if hold and seconds is None and count > PROMPT_LIMIT_SECONDS * rate:
                raise ValueError(
                    f"the prompt {path} is longer than {PROMPT_LIMIT_SECONDS} s; say how much of "
                    "it to use with --prompt-seconds, or add --without-prompt, and the file made "
                    "does not begin with it"
                )
            if hold:
                held.append(piece)
            yield piece

    place = model.read(pieces(), notify)
    length = count / rate
    if seconds is not None and count < round(seconds * rate):
        click.echo(
            f"note: the prompt {path.name} lasts {length:.6g} s; all of it is used", err=True
        )
    if silent:
        click.echo(f"note: the prompt {path.name} is silent", err=True)
    return Prompt(
        place=place,
        before=np.concatenate(held) if hold else None,
        record={
            "prompt": {
                "file": str(path.absolute()),
                "sha256": sha256(path),
                "seconds": length,
                "in_file": hold,
            }
        },
    )


def saved_prompts(path: Path, places: Sequence[Place]) -> list[Prompt]:
    """Return what goes on from a file of saved streams, one a stream."""
    from audiomamba.files import sha256

    file = {"file": str(path.absolute()), "sha256": sha256(path)}
    return [
        Prompt(place=one, before=None, record={"resumed": {**file, "samples": one.position}})
        for one in places
    ]
