r"""How the loss falls as clips grow longer, at a constant number of samples a step.

    python recipes/length_scaling.py --data FOLDER --steps 20000                # hours on a GPU
    python recipes/length_scaling.py --data FOLDER --samples 8192 --lengths 1024 4096 \
        --models s4-mlp --steps 20 --out runs/try                               # on a CPU, a minute
    python recipes/length_scaling.py --smoke          # tiny, without data: does everything work?

FOLDER is as in recipes/youtubemix.py. Every model of --models is trained at every length of
--lengths, with --samples / length clips a step on each device, and tested on whole clips. What is
done is kept in OUT/results.json and not done again: the same command goes on where it was stopped,
also in the middle of a run, on as many devices and in the same precision. Several may share one
OUT, each with other --models or --lengths. It shows bits per sample against length in
OUT/length_scaling.png, with the points of the Mamba paper (Gu & Dao 2023, arXiv 2312.00752, figure
7 and table 14), which are of other data. `--smoke` trains every model small, at two lengths.

The paper trains 200,000 steps at eight lengths; loss falls up to 479232 samples, half a minute. It
does not say on what it tests. S4's loader cuts test data as it does training data, which would give
models of short clips a short past; here all have that of a whole clip.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

from audiomamba.data.batches import check_length, long_enough
from audiomamba.data.corpora import fetch_youtubemix
from audiomamba.data.tokens import INDEX, TokenStore
from audiomamba.files import replacing, sha256
from audiomamba.flags import Parser, add_flags, add_switches, from_flags, parse
from audiomamba.provenance import provenance
from audiomamba.recipe import (
    FAILURES,
    SMALL,
    SMOKE,
    Recipe,
    Shape,
    end,
    exit_as_stopped,
    result,
    with_data,
    with_tones,
)
from audiomamba.recipe_results import append_result, read_results
from audiomamba.train_config import TrainConfig

LENGTHS = (8192, 16384, 30720, 61440, 120832, 239616, 479232, 958464)
MODELS = {
    "s4-mlp": Shape(outer="s4", centre="s4"),
    "mamba-complex": Shape(outer="mamba-complex", centre="mamba-complex"),
    "mamba-s4-outside": Shape(outer="mamba-s4", centre="mamba-complex"),
}
# Figure 7, bits per sample of YouTubeMix at LENGTHS.
PAPER = {
    "s4-mlp": (1.4672, 1.4247, 1.4051, 1.3779, 1.3677, 1.3581, 1.3495, 1.3513),
    "mamba-complex": (1.4321, 1.3899, 1.3687, 1.3385, 1.3246, 1.3173, 1.3069, 1.3108),
}
PICTURE = "length_scaling.png"
# What changes no result, and may be another when a sweep goes on.
ASIDE = {
    *("data", "out", "wandb", "max_minutes", "log_every", "checkpoint_every", "validate_every"),
    *("validation_seconds", "validation_batch", "listen_every", "listen_seconds"),
    *("accelerator", "compile", "activation_checkpointing", "cuda_graph"),
    *("devices", "nodes"),  # what comes of them is the number of processes
}
RECIPE = Recipe(
    description=__doc__ or "",
    presets=MODELS,
    train=TrainConfig(out="runs/length_scaling", validate_every=10**9),
    fetch=fetch_youtubemix,
    data="data/youtubemix",
)


def main(arguments: list[str] | None = None) -> None:
    """Train and test what is not done yet, then draw."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), metavar="SAMPLES")
    parser.add_argument(
        "--samples", type=int, default=958464, help="a step, of all clips (default: 958464)"
    )
    parser.add_argument(
        "--test-seconds", type=float, help="audio that is tested; default is all of it"
    )
    add_switches(parser)
    add_flags(parser, RECIPE.train)
    flags = parse(parser, arguments, {**SMOKE, "lengths": [1024, 2048], "samples": 4096})
    models = MODELS
    if flags.smoke:
        models = {name: dataclasses.replace(shape, **SMALL) for name, shape in MODELS.items()}
    if (flags.length, flags.batch) != (RECIPE.train.length, RECIPE.train.batch):
        parser.error("--length and --batch follow from --lengths and --samples; give those")
    try:
        # Which sets lightning's level, before this does.
        from audiomamba.train import count_processes, train
        from audiomamba.train_module import choose_precision
    except ModuleNotFoundError as error:
        raise SystemExit(str(error)) from None
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Before hours in which the files may change.
    made = provenance(packages=["lightning", "triton"], arguments=arguments)
    try:
        base = from_flags(flags, RECIPE.train)
        base = dataclasses.replace(base, precision=choose_precision(base))
        processes = count_processes(base)
        out = Path(base.out)
        recipe = with_tones(RECIPE, base.out) if flags.smoke else RECIPE
        base, store = with_data(recipe, base, models[flags.models[0]].config())
        for length in flags.lengths:  # before hours of work
            check_length(length, models[flags.models[0]].config().period)
            long_enough(store, "train", length)
        if not store.files("test"):
            raise ValueError(f"{store.directory} has no test clips")
        began, where = time.monotonic(), f"-{base.precision}-{processes}"
        for length in flags.lengths:
            for name in flags.models:
                minutes = base.max_minutes  # of the whole sweep
                if minutes is not None:
                    minutes = max(1e-9, minutes - (time.monotonic() - began) / 60)
                one = dataclasses.replace(
                    base,
                    max_minutes=minutes,
                    out=str(out / f"{name}-{length}-{base.steps}-{base.seed}{where}"),
                    length=length,
                    batch=max(1, round(flags.samples / length)),
                )
                about = describe(name, models[name], one, processes, store, flags.test_seconds)
                if any(about.items() <= result.items() for result in read_results(out)):
                    sys.stdout.write(f"{name} at {length} is done\n")
                    continue
                if not run(train, models[name], about, one, store, out, made):
                    return
                draw(read_results(out), about, out / PICTURE)
        draw(read_results(out), about, out / PICTURE)  # also where all was done
        sys.stdout.write(f"results: {out.resolve()}\n")
    except FAILURES as error:
        end(error)


def describe(
    name: str,
    shape: Shape,
    config: TrainConfig,
    processes: int,
    store: TokenStore,
    test_seconds: float | None,
) -> dict[str, Any]:
    """Return what makes a result this one: the model, how it is trained, and on what.

    Of a config whose precision is not "auto", which is another on another machine.
    """
    settings = {**vars(shape), **{k: v for k, v in vars(config).items() if k not in ASIDE}}
    settings = json.loads(json.dumps(settings))  # as they will be read again
    data = sha256(store.directory / INDEX)
    about = {"model": name, "data": data, "test_seconds": test_seconds, "processes": processes}
    return about | settings


def run(
    train: Any,
    shape: Shape,
    about: dict[str, Any],
    config: TrainConfig,
    store: TokenStore,
    out: Path,
    made: dict[str, Any],
) -> bool:
    """Train one model at one length, test it, and add it to the results; False if stopped."""
    model = dataclasses.replace(
        shape.config(), tokenizer=store.tokenizer, sample_rate=store.sample_rate
    )
    torch._dynamo.reset()  # it counts what it compiles, and stops at eight
    outcome = train(model, config, resume=Path(config.out).exists())
    if outcome.stopped:
        sys.stdout.write(f"stopped by {outcome.stopped}; the same command goes on\n")
        exit_as_stopped(outcome.stopped)
        return False
    if outcome.rank:
        return True
    found = result(made, outcome, config, store, test_seconds=about["test_seconds"])
    sys.stdout.write(f"{about['model']}, {config.batch} clips of {config.length} samples: ")
    sys.stdout.write(f"test {found['test_bits_per_sample']:.4f} bits per sample\n")
    del found["training"]  # it is in `about`
    append_result(out, about | found)
    return True


def draw(results: list[dict[str, Any]], about: dict[str, Any], path: Path) -> None:
    """Draw bits per sample against length, one line a model, beside the paper's.

    Of results that differ from `about` in model, length and batch alone.
    """
    free = {"model", "outer", "centre", "length", "batch"}
    same = {k: v for k, v in about.items() if k not in free}.items()
    results = [result for result in results if same <= result.items()]
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    for i, name in enumerate(MODELS):
        mine = sorted(
            (r["length"], r["test_bits_per_sample"]) for r in results if r["model"] == name
        )
        if mine:
            axes.plot(*zip(*mine, strict=True), "o-", color=f"C{i}", label=name)
        if name in PAPER:
            axes.plot(
                LENGTHS, PAPER[name], "x:", color=f"C{i}", label=f"{name}, paper (YouTubeMix)"
            )
    axes.set(xlabel="length of training clips, samples", ylabel="bits per sample, test")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as part:
        figure.savefig(part, dpi=120, bbox_inches="tight", format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
