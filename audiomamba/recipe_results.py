"""What recipes have found, in a file of JSON that several processes may add to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from audiomamba.files import replacing

RESULTS = "results.json"


def write_json(path: Path, values: Any) -> None:
    """Write a file of JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_results(out: Path) -> list[dict[str, Any]]:
    """Return the results in a folder, in the order in which they came; none if there is no file."""
    path = out / RESULTS
    results: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return results


def append_result(out: Path, result: Mapping[str, Any]) -> None:
    """Add a result to those that are in a folder now, whoever has put them there.

    Args:
        out: Made if it is not there; processes that share it wait for each other.
        result: Of values that JSON has.
    """
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / f".{RESULTS}.lock"):
        write_json(out / RESULTS, [*read_results(out), result])
