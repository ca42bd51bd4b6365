"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

LONGEST_SECONDS = 1e9  # far over any disk; its samples can be counted


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse infinity and NaN, which click's numbers let through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def seconds(*names: str, **options: Any) -> Callable[[Any], Any]:
    """Return an option that takes a positive length of audio."""
    number = click.FloatRange(min=0, min_open=True, max=LONGEST_SECONDS)
    return click.option(*names, type=number, callback=finite, metavar="FLOAT", **options)


debug = click.option("--debug", is_flag=True, expose_value=False, help="Show where an error arose.")
files = click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
model = click.option(
    "-m",
    "--model",
    "name",
    default="piano",
    show_default=True,
    help="A shipped model, a folder with config.json and model.safetensors (./NAME), or a Hugging "
    "Face id (OWNER/NAME).",
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there.")
quiet = click.option("--quiet", is_flag=True, help="Print results only, and no progress.")
