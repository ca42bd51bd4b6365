"""How a run's bits per sample fell, read back from its logs, and as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from audiomamba.files import replacing
from audiomamba.plot import figure_class

NAMES = ("train", "validation")
Curve = list[tuple[int, float]]  # steps, and bits per sample there


def read_curves(out: str | Path) -> dict[str, Curve]:
    """Return bits per sample in training and validation, by step, of a run's folder.

    Where a run went on from a checkpoint, or was started anew, the later leg counts from there on.

    Returns:
        Curves by name, "train" and "validation".
    """
    tables = Path(out).glob("logs/version_*/metrics.csv")
    curves: dict[str, dict[int, float]] = {name: {} for name in NAMES}
    for table in sorted(tables, key=lambda path: int(path.parent.name.split("_")[1])):
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            first = min((int(row["step"]) for row in rows), default=math.inf)
            for name, curve in curves.items():
                curves[name] = {step: bits for step, bits in curve.items() if step < first}
            for row in rows:
                for name in NAMES:
                    if row.get(f"{name}/bits_per_sample"):
                        curves[name][int(row["step"])] = float(row[f"{name}/bits_per_sample"])
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: str | Path) -> None:
    """Draw bits per sample against steps, and write a PNG.

    Args:
        curves: By name, of steps and bits per sample.
        path: The file; it appears whole or not at all.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    figure = figure_class()(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    known = {name: curve for name, curve in curves.items() if curve}
    for name, curve in known.items():
        steps, bits = zip(*curve, strict=True)
        axes.plot(steps, bits, marker="." if len(curve) < 30 else "", linewidth=1, label=name)
    axes.set(xlabel="step", ylabel="bits per sample")
    if known:
        last = [bits for curve in known.values() for _, bits in curve[len(curve) // 10 :]]
        axes.set_ylim(min(last) - 0.1, max(last) + 0.1)  # the first steps would flatten the rest
        axes.legend()
    axes.grid(alpha=0.3)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=100)
