"""What the speech recipes share: a plain training loop, and a command around it.

A recipe gives functions that draw a batch, tell its loss and test a network. A batch is a function
of (seed, step).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from speech_clips import Batch, Clips, read_clips
from speech_config import Config
from speech_models import Network, build, check_conformer, parameters
from torch import Tensor, nn
from tqdm import tqdm

from audiomamba.arguments import check_device
from audiomamba.files import replacing
from audiomamba.flags import Parser, add_flags, add_switches, from_flags, parse
from audiomamba.optim import parameter_groups, warmup_cosine
from audiomamba.plot import figure_class
from audiomamba.provenance import device_name, provenance
from audiomamba.recipe import FAILURES, PICTURE, end, make_tones
from audiomamba.recipe_results import RESULTS, append_result, read_results

TRAIN, TEST = 0, 1  # keep their random numbers apart
PLACES = ("data", "out", "device", "validate_every")  # do not make another run
SPLITS = ("validation", "test", "seen", "unseen")  # the last two: of test, by speakers
# A smoke run: a few steps that come by everything, of small models.
SMOKE = {
    "d_model": 16,
    "n_layers": 1,
    "conv_kernel": 3,
    "steps": 4,
    "batch": 2,
    "validate_every": 2,
    "device": "cpu",
    "seeds": [0],
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment.

    Attributes:
        doc: Description of the command.
        config: Its defaults.
        models: Those it compares.
        pool: Whether a network answers once for an utterance, or for each frame.
        outputs: How many answers there are, of the number of words.
        draw: Makes a batch of training clips.
        loss: Of logits and their counts of frames.
        test: Percentages of a network by name; "validation" and "test" are among them.
        measure: What they are percentages of.
        keep: Does something with a trained network; returns a line to print.
    """

    doc: str
    config: Config
    models: Sequence[str]
    pool: bool
    outputs: Callable[[int], int]
    draw: Callable[[Clips, Any, np.random.Generator], Batch]
    loss: Callable[[Tensor, Tensor, Batch], Tensor]
    test: Callable[[Network, Clips, Any, Sequence[str]], dict[str, Any]]
    measure: str
    keep: Callable[[Network, Clips, Any, Path], str] | None = None


def white_noise(waveform: Tensor, most: float, random: np.random.Generator) -> Tensor:
    """Return white noise for a waveform (batch, samples), of an amplitude of its own for each."""
    device = waveform.device
    generator = torch.Generator(device).manual_seed(int(random.integers(2**62)))
    level = torch.from_numpy(random.uniform(0, most, (len(waveform), 1))).float().to(device)
    return level * torch.randn(waveform.shape, device=device, generator=generator)


def spec_augment(config: Config, batch: int, random: np.random.Generator) -> Callable[..., Tensor]:
    """Return a function that hides bands and stretches of features, drawn now.

    Source: Park et al. 2019 (arXiv 1904.08779), SpecAugment.
    """
    drawn = torch.from_numpy(random.random((4, config.masks, batch, 1), dtype=np.float32))

    def hide(features: Tensor, lengths: Tensor) -> Tensor:
        wide, low, long, early = drawn.to(features.device)
        time, bands = features.shape[1:]
        frame = torch.arange(time, device=features.device)
        band = torch.arange(bands, device=features.device)
        wide, long = wide * config.mask_bands, long * config.mask_share * lengths[:, None]
        low, early = low * (bands - wide), early * (lengths[:, None] - long)
        rows = ((band >= low) & (band < low + wide)).any(0)[:, None, :]
        columns = ((frame >= early) & (frame < early + long)).any(0)[:, :, None]
        return features.masked_fill(rows | columns, 0.0)

    return hide


def batches(
    seed: int, steps: int, draw: Callable[[np.random.Generator], Batch]
) -> Iterator[tuple[Batch, np.random.Generator]]:
    """Yield the batch of each step and what else is drawn by; a thread is one batch ahead."""

    def make(step: int) -> tuple[Batch, np.random.Generator]:
        random = np.random.default_rng((seed, TRAIN, step))
        return draw(random), random

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(make, 0)
        for step in range(1, steps + 1):
            ready = following.result()
            if step < steps:
                following = pool.submit(make, step)
            yield ready


def pick_device(config: Config) -> torch.device:
    """Return the device that the config asks for; raise ValueError if it is not there."""
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return check_device(automatic if config.device == "auto" else config.device)


def fit(
    network: Network,
    config: Config,
    seed: int,
    draw: Callable[[np.random.Generator], Batch],
    loss: Callable[[Tensor, Tensor, Batch], Tensor],
    validate: Callable[[Network], float],
) -> list[dict[str, float]]:
    """Train a network in place.

    Args:
        network: On its device.
        config: Of the run.
        seed: Of every batch; dropout draws from PyTorch's global generator.
        draw: Makes a batch.
        loss: Of logits and their counts of frames.
        validate: A number to follow.

    Returns:
        What each validation found: step, loss since the last one, score.

    Raises:
        FloatingPointError: If the loss is no longer finite.
    """
    device = next(network.parameters()).device
    groups = parameter_groups(network, config.weight_decay)
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, config.learning_rate, (0.9, 0.98), fused=fused)
    history, began = [], time.monotonic()
    lately = torch.zeros((), device=device)
    drawn = batches(seed, config.steps, draw)
    bar = tqdm(drawn, total=config.steps, unit=" steps", leave=False, disable=None)
    for step, (batch, random) in enumerate(bar):
        waveform, lengths = batch.waveform.to(device), batch.lengths.to(device)
        waveform = waveform + white_noise(waveform, config.noise, random)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(step, config.steps, 0.1, 0.0)
        network.train()
        with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16-mixed"):
            outputs = network(waveform, lengths, spec_augment(config, len(waveform), random))
        value = loss(outputs[0].float(), outputs[1], batch)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
        lately += value.detach()
        done = step + 1
        if done % config.validate_every == 0 or done == config.steps:
            since = done - (history[-1]["step"] if history else 0)
            mean = float(lately) / since
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"the loss is no longer finite at step {done}; take a lower --learning-rate"
                )
            lately.zero_()
            network.eval()
            with torch.no_grad():
                history.append({"step": done, "loss": mean, "score": validate(network)})
            rate = done / (time.monotonic() - began)
            line = f"step {done}/{config.steps}  loss {mean:.4f}  score {history[-1]['score']:.4f}"
            tqdm.write(f"  {line}  {rate:.2f} steps/s", file=sys.stderr)
    return history


def run(recipe: Recipe, arguments: list[str] | None = None) -> None:
    """Read the flags; train and test each model with each seed that is not done; tell and draw."""
    parser = Parser(description=recipe.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=recipe.models, default=list(recipe.models))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--words", nargs="+", help="of --data; default is all that are there")
    add("--hold-out", nargs="+", default=[], metavar="SPEAKER", help="all of whose clips are test")
    add("--each", action="store_true", help="hold out one of them after the other, not all at once")
    add_switches(parser)
    add_flags(parser, recipe.config)
    parser.set_defaults(data=None)  # one that is given may be the default
    flags = parse(parser, arguments, SMOKE)
    tones = flags.smoke and flags.data is None
    if flags.data is None:
        flags.data = str(Path(flags.out) / "tones") if tones else recipe.config.data
    if flags.each and not (flags.hold_out or tones):
        parser.error("--each is of the speakers of --hold-out; name them")
    try:
        config = from_flags(flags, recipe.config)
        device = pick_device(config)  # what is missing is told before the work
        if "conformer" in flags.models:
            check_conformer(config)
        made = provenance(packages=["torchaudio"], arguments=arguments)  # before files may change
        if tones:
            make_tones(Path(config.data), ("one", "two", "three"))
            flags.hold_out = ["1"]
        digests = set()
        for held in [[one] for one in flags.hold_out] if flags.each else [flags.hold_out]:
            clips = read_clips(config.data, flags.words, held)
            digests.add(clips.digest)
            for name in flags.models:
                for seed in flags.seeds:
                    run_one(recipe, name, seed, config, clips, held, device, made)
        out = Path(config.out)
        same = settings(config).items() - {("front_end", config.front_end)}
        results = [x for x in read_results(out) if same <= x.items() and x["clips"] in digests]
        if not results:
            return
        print(table(results, recipe.measure))
        print(f"written: {out / RESULTS}")
        if importlib.util.find_spec("matplotlib") is not None:
            plot(results, recipe.measure, out / PICTURE)
    except FAILURES as error:
        end(error, smaller="--batch or --d-model")


def run_one(
    recipe: Recipe,
    model: str,
    seed: int,
    config: Config,
    clips: Clips,
    hold_out: Sequence[str],
    device: torch.device,
    made: Mapping[str, Any],
) -> None:
    """Train and test a model and add it to the results, unless it is there or being trained."""
    out = Path(config.out)
    about = {"model": model, "seed": seed, "clips": clips.digest, **settings(config)}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    one = hold_out if len(hold_out) == 1 else ()  # more may be too long for a name
    name = "-".join([model, config.front_end, str(seed), *one, digest])
    label = ", ".join([f"{model}, {config.front_end}, seed {seed}", *hold_out])
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / f".{digest}.lock", timeout=0):
            if any(about.items() <= result.items() for result in read_results(out)):
                print(f"{label}: is done")
                return
            print(label)
            found = train_one(recipe, model, seed, config, clips, device, out / name)
            named = {"run": digest, "hold_out": list(hold_out)}
            append_result(out, {**about, **named, **made, **found})
    except Timeout:
        print(f"{label}: another process trains it, and adds it to the results")


def train_one(
    recipe: Recipe,
    model: str,
    seed: int,
    config: Config,
    clips: Clips,
    device: torch.device,
    folder: Path,
) -> dict[str, Any]:
    """Train and test a model, keep it in a folder, and return what came of it."""
    torch.manual_seed(seed)
    network = build(model, config, recipe.outputs(len(clips.words)), pool=recipe.pool).to(device)
    count = parameters(network)
    print(f"  {count} parameters", flush=True)
    began = time.monotonic()
    history = fit(
        network,
        config,
        seed,
        lambda random: recipe.draw(clips, config, random),
        recipe.loss,
        lambda network: recipe.test(network, clips, config, ["validation"])["validation"],
    )
    seconds = time.monotonic() - began
    network.eval()
    with torch.no_grad():
        tested = recipe.test(network, clips, config, SPLITS)
    told = [f"{k} {v:.1f}" for k, v in tested.items() if v is not None]
    print(f"  {recipe.measure}, %: {', '.join(told)}", flush=True)
    if recipe.keep is not None:
        print(f"  {recipe.keep(network, clips, config, folder)}")
    return {
        "device": device_name(device),
        "parameters": count,
        "words": list(clips.words),
        "clips_of": {split: len(clips.chosen(split)) for split in SPLITS},
        "training_seconds": seconds,
        "history": history,
        "percent": tested,
    }


def settings(config: Config) -> dict[str, Any]:
    """Return what makes another run."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in PLACES}


def grouped(
    results: Sequence[Mapping[str, Any]], *, apart: bool = False
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the results of each front end and model; apart or together, whoever is held out."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        held = result["hold_out"] if apart else []
        name = ", ".join([result["model"], result["front_end"], *held])
        groups.setdefault(name, []).append(result)
    return groups


def table(results: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Return means over runs and their standard deviations, in Markdown."""
    names = list(dict.fromkeys(name for result in results for name in result["percent"]))
    head = ["model", "parameters", "runs", *names]
    lines = [f"{measure}, %: mean ± standard deviation over runs", "", row(head)]
    lines.append(row(["---"] * len(head)))
    one = len({tuple(result["hold_out"]) for result in results}) < 2
    groups = grouped(results) if one else grouped(results, apart=True) | grouped(results)
    for name, group in groups.items():
        cells = []
        for key in names:
            values = [r["percent"].get(key) for r in group]
            known = [v for v in values if v is not None]
            spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
            cells.append(f"{statistics.mean(known):.1f}{spread}" if known else "-")
        lines.append(row([name, str(group[0]["parameters"]), str(len(group)), *cells]))
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def plot(results: Sequence[Mapping[str, Any]], measure: str, path: Path) -> None:
    """Draw the validations of each run, thin, with their means, and the tests: a dot a run."""
    figure = figure_class()(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = grouped(results)
    for i, (name, group) in enumerate(groups.items()):
        scores: dict[int, list[float]] = {}
        for result in group:
            for x in result["history"]:
                scores.setdefault(x["step"], []).append(x["score"])
            course = [[x[key] for x in result["history"]] for key in ("step", "score")]
            left.plot(*course, color=f"C{i}", alpha=0.25, linewidth=1)
        means = [(step, statistics.mean(values)) for step, values in sorted(scores.items())]
        left.plot(*zip(*means, strict=True), ".-", color=f"C{i}", label=name)
        for marker, key, shift in (("o", "seen", -0.1), ("x", "unseen", 0.1)):
            values = [r["percent"][key] for r in group if r["percent"].get(key) is not None]
            places = [i + shift] * len(values)
            right.plot(places, values, marker, color=f"C{i}", label=key if not i else None)
    left.set(xlabel="step", ylabel=f"{measure}, validation (%)")
    right.set(ylabel=f"{measure}, test (%)")
    right.set_xticks(range(len(groups)), groups, rotation=30, ha="right", rotation_mode="anchor")
    left.legend(fontsize="small")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=100)
