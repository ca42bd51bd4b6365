"""What is downloaded or packed, and the names in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CONTENT = np.random.default_rng(0).bytes(10_000)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
