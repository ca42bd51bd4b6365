"""A synthetic recipe as a command: flags in; a table, results.json and results.png out."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from synthetic import Config, Draw, Training, accuracy, train

from audiomamba.files import replacing
from audiomamba.flags import (
    Parser,
    add_flags,
    add_switches,
    as_words,
    from_flags,
    parse,
    read_values,
)
from audiomamba.plot import figure_class
from audiomamba.provenance import device_name, provenance
from audiomamba.recipe import FAILURES, PICTURE, end, exit_as_stopped
from audiomamba.recipe_results import RESULTS, write_json
from audiomamba.train_folder import held

# A smoke run: a few steps that come by everything, of any preset made small.
SMOKE = {
    "d_model": 16,
    "n_heads": 2,
    "length": 64,
    "batch": 2,
    "steps": 4,
    "test_from": 64,
    "test_to": 128,
    "test_rows": 4,
    "test_chunk": 50,
    "validate_every": 2,
    "checkpoint_every": 2,
    "log_every": 1,
    "accelerator": "cpu",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A task, the models compared on it, and what is known of them.

    Attributes:
        doc: Description of the command.
        draw: Makes sequences.
        presets: Settings by name; the first is the default.
        paper: By preset, the paper's accuracy in percent at some lengths.
    """

    doc: str
    draw: Draw
    presets: Mapping[str, Config]
    paper: Mapping[str, Mapping[int, float]]


def run(recipe: Recipe, arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Read the flags, train, test at each length, print and write what came out.

    Returns:
        What is in results.json; None in any process but the first, or if the run was stopped.

    Raises:
        SystemExit: If it fails, with one line; if a signal has stopped it, with the status that a
            shell gives to the signal.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    first = Parser(add_help=False)
    default = next(iter(recipe.presets))
    first.add_argument(
        "--preset", choices=recipe.presets, default=default, help="defaults of all other flags"
    )
    add_switches(first)
    known = first.parse_known_args(arguments)[0]
    values = as_words(read_values(first, known.config))
    preset = first.parse_known_args([*values, *arguments])[0].preset
    parser = Parser(
        description=recipe.doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[first],
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add_flags(parser, recipe.presets[preset])
    flags = parse(parser, arguments, SMOKE)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        config = from_flags(flags, recipe.presets[preset])
        made = provenance(packages=["lightning"], arguments=arguments)  # before files may change
        module, trainer = train(config, recipe.draw, resume=flags.resume)
    except FAILURES as error:
        end(error, smaller="--batch or --length, or --test-batch or --test-chunk")
    if trainer.global_rank:
        return None
    if module.stopped:
        at = f"at step {trainer.global_step} of {config.steps}"
        print(f"stopped by {module.stopped} {at}; go on: add --resume")
        exit_as_stopped(module.stopped)
        return None
    try:
        with held(Path(config.out)):
            return test(recipe, config, preset, made, module, trainer)
    except FAILURES as error:
        end(error, smaller="--test-batch or --test-chunk")


def test(
    recipe: Recipe,
    config: Config,
    preset: str,
    made: Mapping[str, Any],
    module: Training,
    trainer: pl.Trainer,
) -> dict[str, Any]:
    """Test at each length, print and write what came out, and return it."""
    device = trainer.strategy.root_device
    network = module.network.to(device)

    print(f"\n{preset}: accuracy in % after {trainer.global_step} steps")
    print(f"{'length':>9} {'here':>6} {'paper':>6} {'seconds':>8}", flush=True)
    tested: list[dict[str, Any]] = []
    for length in config.test_lengths():
        began = time.monotonic()
        score = 100 * accuracy(network, config, recipe.draw, length)
        seconds = time.monotonic() - began
        paper = recipe.paper.get(preset, {}).get(length)
        tested.append({"length": length, "accuracy": score, "paper": paper, "seconds": seconds})
        known = "" if paper is None else f"{paper:.1f}"
        print(f"{length:>9} {score:>6.1f} {known:>6} {seconds:>8.1f}", flush=True)
    results = {
        "preset": preset,
        **made,
        "device": device_name(device),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": config.seed,
        "steps": trainer.global_step,
        "validation": [{"step": step, "accuracy": 100 * score} for step, score in module.history],
        "test": tested,
        "config": dataclasses.asdict(config),
    }
    out = Path(config.out)
    write_json(out / RESULTS, results)
    print(f"written: {out / RESULTS}")
    if importlib.util.find_spec("matplotlib") is not None:
        plot(results, out / PICTURE)
    return results


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy as training went, and against length beside the paper's, as a PNG."""
    figure = figure_class()(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    steps, scores = columns(results["validation"], "step", "accuracy")
    left.plot(steps, scores, marker=".")
    left.set(xlabel="step", ylabel=f"accuracy at length {results['config']['length']} (%)")
    for key, label, marker in (("paper", "paper", "x"), ("accuracy", results["preset"], ".")):
        lengths, scores = columns(results["test"], "length", key)
        if lengths:
            right.plot(lengths, scores, marker=marker, label=label)
    right.set_xscale("log", base=2)
    right.set(xlabel="length", ylabel="accuracy (%)", ylim=(-3, 103))
    right.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=100)


def columns(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[list[Any], list[Any]]:
    """Return two columns of a table, where the second has a value."""
    kept = [row for row in rows if row[y] is not None]
    return [row[x] for row in kept], [row[y] for row in kept]
