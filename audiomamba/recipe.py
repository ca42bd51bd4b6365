"""What the training recipes share: the shape of a model by names, flags, data, last words."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from filelock import FileLock

from audiomamba import checkpoint
from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.data.batches import check_length
from audiomamba.data.tokens import INDEX, TokenStore
from audiomamba.evaluate import evaluate
from audiomamba.files import sha256
from audiomamba.flags import Parser, add_flags, add_switches, from_flags, parse
from audiomamba.models.waveform import WaveformModel
from audiomamba.progress import AudioBar
from audiomamba.provenance import device_name, provenance
from audiomamba.recipe_results import RESULTS, write_json
from audiomamba.train_config import TrainConfig, without_places
from audiomamba.train_curve import plot_curves, read_curves
from audiomamba.train_folder import DATA, check_folder, recorded

if TYPE_CHECKING:
    from audiomamba.train import Outcome

FAILURES = (
    *(OSError, ValueError, FloatingPointError, ImportError, torch.OutOfMemoryError),
    KeyboardInterrupt,  # before the training heeds it, and after
)
PICTURE = "results.png"
SOURCE = "source.txt"  # of which folder the tokens of a run are

# A smoke run: a few steps that come by everything, of any preset made small.
SMOKE = {
    "steps": 4,
    "validate_every": 2,
    "checkpoint_every": 2,
    "log_every": 1,
    "listen_every": 2,
    "listen_seconds": 0.1,
    "accelerator": "cpu",
    "devices": "1",
}
SMALL = {"width": 16, "blocks": 1}

# The blocks that the Mamba paper compares (table 5, figure 10), by its names.
TIERS = {
    "mamba": Tier(mixer="s6"),
    "mamba-complex": Tier(mixer="s6", complex=True),
    "mamba-s4": Tier(mixer="lti", complex=True),
    "s4": Tier(mixer="s4", d_state=64),
    "mha": Tier(mixer="attention", expand=1),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A U-Net of one kind of block outside and one inside.

    Attributes:
        width: Of the outermost tier; it doubles with every tier.
        blocks: On each path through a tier.
        pools: Samples that become a frame of the second tier, and frames of that one of the centre.
        outer: Blocks of the outer tiers: mamba, mamba-complex, mamba-s4, s4 (S4 + MLP) or mha
            (attention + MLP).
        centre: Blocks of the centre, as for outer.
    """

    width: int = 64
    blocks: int = 3
    pools: tuple[int, int] = (16, 16)
    outer: str = "mamba-s4"
    centre: str = "mamba-complex"

    def __post_init__(self) -> None:
        for name in ("outer", "centre"):
            if getattr(self, name) not in TIERS:
                known = ", ".join(TIERS)
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {known}")

    def config(self) -> ModelConfig:
        """Return the model, with the default tokenizer."""
        return unet(self.width, self.blocks, self.pools, TIERS[self.outer], TIERS[self.centre])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment.

    Attributes:
        description: For --help.
        presets: Shapes by name, the default first.
        train: How the default is trained.
        fetch: Puts the recordings into a folder that does not exist.
        data: That folder.
        only: The subfolders of the data to take; None takes all.
    """

    description: str
    presets: Mapping[str, Shape]
    train: TrainConfig
    fetch: Callable[[Path], Any]
    data: str
    only: Collection[str] | None = None


def run(recipe: Recipe, arguments: list[str] | None = None) -> None:
    """Read flags, prepare the data, train, say where the model is."""
    try:
        from audiomamba.train import train
    except ModuleNotFoundError as error:
        raise SystemExit(str(error)) from None
    parser = make_parser(recipe)
    flags = parse(parser, arguments, {**SMOKE, **SMALL, "batch": 2, "length": 1024})
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        config = from_flags(flags, recipe.train)
        shape = recipe.presets[flags.preset]
        given = {name: getattr(flags, name, None) for name in vars(shape)}
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        model = dataclasses.replace(shape, **{k: v for k, v in given.items() if v is not None})
        check_folder(Path(config.out), resume=flags.resume)
        if flags.resume and not config.data:
            config = dataclasses.replace(config, data=data_of_run(Path(config.out)))
        check_length(config.length, model.config().period)
        recipe = with_tones(recipe, config.out) if flags.smoke else recipe
        config, store = with_data(recipe, config, model.config())
        whole = dataclasses.replace(
            model.config(), tokenizer=store.tokenizer, sample_rate=store.sample_rate
        )
        # Before hours in which the files may change.
        made = provenance(packages=["lightning", "triton"], arguments=arguments)
        outcome = train(whole, config, resume=flags.resume)
        if outcome.rank:
            return
        said = f"step {outcome.step} of {config.steps}"
        if outcome.bits_per_sample is not None:
            said += f", validation {outcome.bits_per_sample:.4f} bits per sample"
        sys.stdout.write(f"{said}\n")
        if not outcome.stopped:
            found = result(made, outcome, config, store)
            curves = read_curves(config.out)
            results = {"preset": flags.preset, **found, "validation": curves["validation"]}
            write_json(Path(config.out) / RESULTS, results)
            if importlib.util.find_spec("matplotlib") is not None:
                label = "train, with silence" if config.learn_silence else "train"
                names = {"train": label, "validation": "validation"}
                plot_curves({names[k]: v for k, v in curves.items()}, Path(config.out) / PICTURE)
            if results["test_bits_per_sample"] is not None:
                sys.stdout.write(f"test {results['test_bits_per_sample']:.4f} bits per sample\n")
    except FAILURES as error:
        end(error)
    if outcome.stopped:
        sys.stdout.write(f"stopped by {outcome.stopped}; go on: the same command with --resume\n")
    sys.stdout.write(f"listen: audiomamba generate -m {Path(config.out).resolve()}\n")
    exit_as_stopped(outcome.stopped)


def end(
    error: BaseException, smaller: str = "--batch or --length, or --activation-checkpointing"
) -> NoReturn:
    """Exit with one line that says what failed, one of `FAILURES`, and on a full GPU what to do."""
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        raise SystemExit(128 + signal.SIGINT) from None
    reason = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        reason = reason.splitlines()[0].rstrip(".")
        reason += f"; give a smaller {smaller}"
    raise SystemExit(f"error: {reason}") from None


def exit_as_stopped(why: str | None) -> None:
    """Exit with the status that a shell gives to a signal, if one has stopped the run."""
    if why is not None and why in signal.Signals.__members__:
        raise SystemExit(128 + signal.Signals[why])


def make_parser(recipe: Recipe) -> Parser:
    """Return the parser of a recipe's flags: one for each field of its configs."""
    parser = Parser(
        description=recipe.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first = next(iter(recipe.presets))
    parser.add_argument(
        "--preset", choices=recipe.presets, default=first, help=f"shape (default: {first})"
    )
    add_switches(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, or begin it where there is none",
    )
    add_flags(parser.add_argument_group("training"), recipe.train)
    shape = recipe.presets[first]
    add_flags(parser.add_argument_group("model, where it differs from the preset"), shape)
    parser.set_defaults(**dict.fromkeys(vars(shape)))
    return parser


def result(
    made: Mapping[str, Any],
    outcome: Outcome,
    config: TrainConfig,
    store: TokenStore,
    *,
    test_seconds: float | None = None,
) -> dict[str, Any]:
    """Return what came of a run that has ended, and what made it; for its first process.

    The model is the averaged one, as it is in the run's folder. Where there is no test split its
    bits per sample are None.

    Args:
        made: The `provenance` of when the run, or its last leg, was started.
        outcome: How the run ended.
        config: Of the run.
        store: Its tokens.
        test_seconds: Audio that is tested, as in `evaluate`; None is all.
    """
    network = checkpoint.load(config.out).to(outcome.device)
    return {
        **made,
        "device": device_name(outcome.device),
        "data": sha256(store.directory / INDEX),
        "processes": outcome.processes,
        "training": without_places(config),
        "seed": config.seed,
        "steps": outcome.step,
        "samples": outcome.samples,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "validation_bits_per_sample": outcome.bits_per_sample,
        "test_seconds": test_seconds,
        "test_bits_per_sample": _test(network, store, test_seconds),
    }


def _test(network: WaveformModel, store: TokenStore, seconds: float | None) -> float | None:
    """Return bits per sample of the test split, None where there is none."""
    files = store.files("test")
    if not files:
        return None
    there = sum(file.samples for file in files) / store.sample_rate
    sys.stderr.write(f"testing: {min(there, seconds or there):.3g} s, {len(files)} clips\n")
    with AudioBar(min(there, seconds or there)) as bar:
        return evaluate(network, store, "test", seconds=seconds, progress=bar.show)


def with_tones(recipe: Recipe, out: str) -> Recipe:
    """Return the recipe with tones in OUT/data/tones in place of its recordings."""
    folder = Path(out) / DATA / "tones"
    return dataclasses.replace(
        recipe, data=str(folder), fetch=partial(make_tones, words=recipe.only or ())
    )


def make_tones(folder: Path, words: Collection[str] = ()) -> None:
    """Make a folder of decaying tones, half a second each.

    Args:
        folder: Made.
        words: Folders in it, with lists as Speech Commands has them; without any it is nine files.
    """
    from audiomamba import audio  # as in with_data
    from audiomamba.data.prepare import LISTS

    names = [f"{word}/{i}.wav" for word in words for i in range(3)]
    names = names or [f"{i}.wav" for i in range(9)]
    time = np.arange(8000) / 16000
    for i, name in enumerate(names):
        tone = 0.5 * np.sin(2 * np.pi * 110 * (1 + i % 9) * time) * np.exp(-4 * time)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        audio.write(folder / name, tone, 16000)
    for i, file in enumerate(LISTS if words else ()):
        lines = "".join(f"{word}/{i}.wav\n" for word in words)
        (folder / file).write_text(lines, encoding="utf-8")


def with_data(
    recipe: Recipe, config: TrainConfig, model: ModelConfig
) -> tuple[TrainConfig, TokenStore]:
    """Find or fetch the recordings, prepare them once, and return their tokens.

    `config.data` may be tokens, or a folder of audio, which is prepared into OUT/data. Without it
    the recordings are fetched into `recipe.data`. Of processes that are started together, the first
    does it and the others wait.
    """
    data, out = Path(config.data or recipe.data), Path(config.out) / DATA
    if (data / INDEX).exists():
        return dataclasses.replace(config, data=str(data)), TokenStore(data)
    if config.data and not data.is_dir():
        raise FileNotFoundError(f"there is no folder {data}")
    if not (out / INDEX).exists():
        from audiomamba.data.prepare import prepare  # reads audio; tokens alone need none of it

        if not config.data and not data.exists():
            with _alone(data):
                if not data.exists():
                    sys.stderr.write(f"getting the recordings into {data}\n")
                    _fetch(recipe, data)
        with _alone(out):
            if not (out / INDEX).exists():
                sys.stderr.write(f"preparing {data} into {out}\n")
                prepare(data, out, model.tokenizer, sample_rate=model.sample_rate, only=recipe.only)
                (out / SOURCE).write_text(str(data.resolve()), encoding="utf-8")
    source = (out / SOURCE).read_text("utf-8") if (out / SOURCE).exists() else None
    if source is not None and source != str(data.resolve()):
        raise ValueError(
            f"{out} was prepared from {source}, and not from {data}; give another --out"
        )
    return dataclasses.replace(config, data=str(out)), TokenStore(out)


def _fetch(recipe: Recipe, data: Path) -> None:
    try:
        recipe.fetch(data)
    except OSError as error:
        raise OSError(f"{error}; or give a folder of recordings by --data FOLDER") from error


def data_of_run(out: Path) -> str:
    """Return the tokens that the run in a folder is of, "" if there is no run yet."""
    if (out / DATA / INDEX).exists():
        return str(out / DATA)
    return str(recorded(out).get("train", {}).get("data", ""))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes out while a path is made."""
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock):
            yield
    except BaseException:
        lock.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):  # another process has put something there
                parent.rmdir()
        raise
