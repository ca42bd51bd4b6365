"""Progress on standard error, for people: nothing when it is not a terminal."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class AudioBar(tqdm):  # type: ignore[misc]  # tqdm carries no types
    """A progress bar that counts seconds of audio and tells how many times real time they take.

    Args:
        seconds: Audio to make.
        quiet: Show nothing even on a terminal.
    """

    def __init__(self, seconds: float, *, quiet: bool = False) -> None:
        super().__init__(
            total=seconds,
            disable=quiet or not sys.stderr.isatty(),
            leave=False,
            bar_format="{percentage:3.0f}% |{bar}| {n:.1f} of {total:.1f} s, {real_time}, "
            "{remaining} left",
        )

    def show(self, done: int, total: int) -> None:
        """Move to `done` of `total` samples, which are all the seconds there are."""
        self.update(self.total * done / total - self.n)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `bar_format` may name."""
        values: dict[str, Any] = super().format_dict
        rate = values["rate"] or values["n"] / max(values["elapsed"], 1e-9)
        return {**values, "real_time": f"{rate:.2f} times real time"}


class FileBar(tqdm):  # type: ignore[misc]
    """A progress bar that counts files."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(unit=" files", disable=quiet or not sys.stderr.isatty(), leave=False)

    def show(self, done: int, total: int) -> None:
        """Move to `done` of `total` files."""
        self.total = total
        self.update(done - self.n)
