"""What a run of `audiomamba generate` leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

RATE = 16000
Run = Callable[..., tuple[int, str, str]]


def record(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.with_suffix(".json").read_text())
    return found
