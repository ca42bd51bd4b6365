"""Flags of recipes: those of a dataclass, and values for them in a file or of a smoke run."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


class Parser(argparse.ArgumentParser):
    """Takes whole names of flags, and says in one line what is wrong, without the long usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"error: {' '.join(message.split())}; see {self.prog} --help\n")


def add_flags(parser: argparse._ActionsContainer, config: Any) -> None:
    """Add a flag for each field of a dataclass, with the config's values as defaults.

    A field `min_learning_rate: float` becomes `--min-learning-rate FLOAT`, a bool becomes a pair
    `--compile / --no-compile`, a tuple takes as many values as it has, and one that may be None the
    word "none". The help is the field's line under "Attributes:" in the docstring.

    Args:
        parser: Where to add them: a parser or a group of one.
        config: An instance of a dataclass.
    """
    hints = get_type_hints(type(config))
    helps: dict[str, str] = {}
    for base in reversed(type(config).__mro__):
        helps |= attribute_help(base)
    for field in dataclasses.fields(config):
        default = getattr(config, field.name)
        options: dict[str, Any] = {"default": default, "help": helps.get(field.name, "")}
        kind = hints[field.name]
        if optional := get_origin(kind) in (Union, types.UnionType):
            kind = next(arg for arg in get_args(kind) if arg is not type(None))
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is tuple:
            kinds = get_args(kind)
            options |= {"type": kinds[0], "nargs": len(kinds), "metavar": kinds[0].__name__.upper()}
        else:
            read = _or_none(kind) if optional else kind
            options |= {"type": read, "metavar": kind.__name__.upper()}
        if default is not None and kind is not bool and default != "":
            options["help"] += f" (default: {default})"
        options["help"] = options["help"].replace("%", "%%")
        parser.add_argument("--" + field.name.replace("_", "-"), **options)


def _or_none(kind: type[Any]) -> Callable[[str], Any]:
    """Return what reads a word as a kind, and "none", in whatever case, as None."""

    def read(word: str) -> Any:
        return None if word.lower() == "none" else kind(word)

    read.__name__ = kind.__name__  # which argparse puts into its errors
    return read


def from_flags(arguments: argparse.Namespace, config: Config) -> Config:
    """Return the config with the values of parsed flags.

    Raises:
        ValueError: If the config refuses a value.
    """
    values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # a dataclass
        value = getattr(arguments, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(config, **values)  # type: ignore[type-var]  # a dataclass


def attribute_help(cls: type[Any]) -> dict[str, str]:
    """Return what a class's docstring says of each attribute, on one line each."""
    section = re.search(r"^Attributes:\n((?:[ ]{4}.*\n?|\n)+)", inspect.getdoc(cls) or "", re.M)
    if section is None:
        return {}
    found = re.findall(r"^[ ]{4}(\w+): (.*(?:\n[ ]{8}.*)*)", section[1], re.M)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in found}


def add_switches(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all recipes have and `parse` heeds."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help='JSON of flags: {"batch": 8}; flags win'
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="try the recipe, tiny, on the CPU, without data, in a new folder; flags win, what a "
        "file says of length, steps, batch and place does not",
    )


def parse(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None = None,
    smoke: Mapping[str, Any] | None = None,
) -> argparse.Namespace:
    """Parse flags over those of the file that --config names.

    Args:
        parser: With the flags of `add_switches`.
        arguments: None takes those of the process.
        smoke: What a smoke run has where no flag says else, whatever the file says; its --out is
            a new temporary folder.

    Raises:
        SystemExit: If the file cannot be read, or holds what is no flag.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = parser.parse_args(arguments)
    small = {**(smoke or {}), "out": None} if flags.smoke else {}
    parser.set_defaults(**small)
    values = read_values(parser, flags.config)
    unknown = sorted(values.keys() - (vars(flags).keys() - {"config", "resume", "smoke"}))
    if unknown:
        parser.error(f"--config {flags.config} has {unknown[0]!r}, which no file can set")
    values = {name: value for name, value in values.items() if name not in small}
    flags = parser.parse_args([*as_words(values), *arguments])
    if flags.out is None:
        if getattr(flags, "devices", "1") not in ("1", "auto"):
            parser.error("--smoke on several devices needs --out, a folder that they share")
        flags.out = tempfile.mkdtemp(prefix="smoke-")
    return flags


def read_values(parser: argparse.ArgumentParser, file: Path | None) -> dict[str, Any]:
    """Return the values of flags in a JSON file, none without a file.

    Raises:
        SystemExit: If the file cannot be read, or holds something else.
    """
    if file is None:
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {file}: {error.strerror}")
    except ValueError as error:
        parser.error(f"--config {file} is no JSON: {error}")
    if not isinstance(values, dict):
        parser.error(f"--config {file} holds {values!r}; it must be an object of flags")
    return {name.replace("-", "_"): value for name, value in values.items()}


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Return values as words of a command line, so that they are checked as flags are.

    true and false are --flag and --no-flag; null is the default.
    """
    found = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            found += [f"--{flag}", *map(str, value)]
        elif value is not None:
            found.append(f"--{flag}={value}")
    return found
