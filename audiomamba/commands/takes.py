"""Takes are written as soon as they are made, ranked, and shown."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audiomamba.commands.failure import telling
from audiomamba.commands.generate_options import Flags
from audiomamba.commands.runaways import telling_runaways

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from audiomamba.audiomodel import AudioModel
    from audiomamba.commands.prompt import Prompt
    from audiomamba.engine.place import Place
    from audiomamba.guard import Guard
    from audiomamba.saved import Saved
    from audiomamba.session import Take
    from audiomamba.words import Judge


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made.

    Attributes:
        model: What makes it.
        samples: Of each file, without what it begins with.
        num: Files.
        first: Index of the first.
        sampling: Seed, temperature and cuts, as the model's methods take them.
        guard: When takes are taken back, or None.
        judge: Who chooses those that hold a word, or None.
        prompts: What each goes on from; none is silence.
        resumed: What they go on from, if that was saved.
        record: What the record of every file says.
    """

    model: AudioModel
    samples: int
    num: int
    first: int = 0
    sampling: dict[str, Any]
    guard: Guard | None = None
    judge: Judge | None = None
    prompts: Sequence[Prompt] = ()
    resumed: Saved | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def places(self) -> list[Place] | None:
        """What the model's methods take as prompts."""
        return [one.place for one in self.prompts] or None


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that is there, and its record."""

    path: Path
    record: dict[str, Any]
    beside: tuple[str, ...]  # endings of what was written with it

    @property
    def bits(self) -> float:
        """Minus its log-likelihood, in bits per sample."""
        return float(self.record["bits_per_sample"])


def write_takes(order: Order, paths: list[Path], flags: Flags) -> list[Written]:
    """Write each file as soon as its samples are made, and tell the speed.

    Returns:
        What was kept: by rank if that was asked for, else as finished.
    """
    from audiomamba.progress import AudioBar

    rate = order.model.sample_rate
    seconds = order.samples / rate
    made, drawn, began, written = 0, 0, time.perf_counter(), list[Written]()
    with AudioBar(order.num * seconds, quiet=flags.quiet) as bar:

        def so_far() -> str:
            bar.close()
            return _kept(made, order, written, flags)

        takes = _takes(order, flags, lambda delta: bar.update(delta / rate))
        with (
            telling(so_far),
            contextlib.closing(takes),  # an error here stops the takes that are being made
            telling_runaways(
                lambda i: paths[i - order.first].name, rate, bar.clear, hold=order.judge is not None
            ) as tell_runaway,
        ):
            for take, word in takes:
                path = paths[take.index - order.first]
                tell_runaway(take.index)
                made += 1
                drawn += word.get("drawn", 1)
                speed = made * seconds / (time.perf_counter() - began)
                if flags.keep and not _enters(written, take.bits_per_sample, flags.keep):
                    continue
                written.append(_write(order, take, word, path, round(speed, 3), flags, bar.clear))
                if flags.keep and len(written) > flags.keep:
                    _drop(written, max(written, key=lambda one: one.bits))
                if not flags.rank:
                    bar.clear()
                    _tell(written[-1])
    took = time.perf_counter() - began
    if flags.rank:
        written = _ranked(written, made)
        for one in written:
            _tell(one)
    if not flags.quiet:
        speed = made * seconds / took
        of = f" of {drawn * seconds:.1f} s drawn" if drawn > made else ""
        click.echo(
            f"{made * seconds:.1f} s of audio{of} in {took:.1f} s, {speed:.2f} times real time"
        )
    return written


def _takes(
    order: Order, flags: Flags, progress: Callable[[int], None]
) -> Generator[tuple[Take, dict[str, Any]], None, None]:
    """Make takes, each with what a judge says of it: nothing without one."""
    options: dict[str, Any] = {
        "samples": order.samples,
        "first": order.first,
        **order.sampling,
        "guard": order.guard or False,
        "batch": flags.batch_size,
        "progress": progress,
        "num": order.num,
    }
    if order.judge is None:
        takes = order.model.generate_each(prompt=order.places, **options)
        with contextlib.closing(takes):
            for take in takes:
                yield take, {}
        return
    from audiomamba.words import clear_takes

    said = {**asdict(order.judge.words), "classifier_sha256": order.judge.weights_sha256}
    chosen = clear_takes(order.model, order.judge, **options)
    with contextlib.closing(chosen):
        for take, heard, drawn in chosen:
            yield take, {**heard._asdict(), "drawn": drawn, **said}


def _tell(one: Written) -> None:
    """Print where a sound is, and its picture."""
    click.echo(one.path)
    if ".png" in one.beside:
        click.echo(one.path.with_suffix(".png"))


def _kept(made: int, order: Order, written: list[Written], flags: Flags) -> str:
    if flags.keep:
        return f"{made} of {order.num} files were made, the likeliest {len(written)} kept"
    return f"{len(written)} of {order.num} files are finished and kept"  # not the one under way


def _enters(written: list[Written], bits: float, keep: int) -> bool:
    """Say whether a take is among the likeliest so far."""
    return len(written) < keep or bits < max(one.bits for one in written)


def _drop(written: list[Written], worst: Written) -> None:
    """Remove a file and what was written with it."""
    for end in (worst.path.suffix, *worst.beside):
        worst.path.with_suffix(end).unlink(missing_ok=True)
    written.remove(worst)


def _ranked(written: list[Written], made: int) -> list[Written]:
    """Sort by likelihood, and let the records say so."""
    from audiomamba.output import write_record

    in_order = sorted(written, key=lambda one: one.bits)
    ranked = [
        replace(one, record={**one.record, "rank": rank, "ranked": made})
        for rank, one in enumerate(in_order, 1)
    ]
    for one in ranked:
        write_record(one.path, one.record)
    return ranked


def _write(
    order: Order,
    take: Take,
    word: dict[str, Any],
    path: Path,
    speed: float,
    flags: Flags,
    clear: Callable[[], None],
) -> Written:
    """Write a take and what was asked for beside it; all of it appears, the sound last, or none."""
    import numpy as np

    from audiomamba import plot
    from audiomamba.files import replacing_together
    from audiomamba.output import write_take

    rate = order.model.sample_rate
    prompt = order.prompts[take.index - order.first] if order.prompts else None
    whole = take.waveform
    if prompt is not None and prompt.before is not None:
        whole = np.concatenate([prompt.before, whole])
    record: dict[str, Any] = {
        **order.record,
        **({} if prompt is None else prompt.record),
        "index": take.index,
        "bits_per_sample": round(take.bits_per_sample, 6),
        "times_real_time": speed,
        **word,
    }
    if take.rewinds is not None:
        record["rewinds"] = take.rewinds._asdict()
    if flags.guard in ("warn", "rewind"):
        record["faults"] = _faults(take.waveform, rate, order.model.name)
    beside = companions(flags)
    with replacing_together([*(path.with_suffix(end) for end in beside), path]) as folder:
        here = folder / path.name
        record = write_take(here, whole, rate, record, format=flags.file_format)
        if flags.save_state:
            _save_state(order, take, here.with_suffix(".safetensors"))
        if flags.spectrogram:
            plot.spectrogram(whole, rate, here.with_suffix(".png"))
        for end in (".png", ".safetensors"):
            if flags.overwrite and end not in beside:  # of an older take of this name
                path.with_suffix(end).unlink(missing_ok=True)
    if word and word["probability"] < word["sure"]:
        clear()
        click.echo(
            f"warning: {path.name} is the clearest of {word['drawn']}, and {word['classifier']} is "
            f"not {word['sure']:g} sure of it: {word['word']}, {word['probability']:.3f}",
            err=True,
        )
    for fault in record.get("faults", ()):
        clear()
        click.echo(
            f"warning: {path.name} has {fault['kind']} from {fault['start']:g} s to "
            f"{fault['stop']:g} s of what was made",
            err=True,
        )
    return Written(path=path, record=record, beside=beside)


def companions(flags: Flags) -> tuple[str, ...]:
    """Return the endings of what is written beside a sound."""
    wanted = {".json": True, ".png": flags.spectrogram, ".safetensors": flags.save_state}
    return tuple(end for end, asked in wanted.items() if asked)


def _faults(waveform: NDArray[np.float32], rate: int, model: str) -> list[dict[str, Any]]:
    from audiomamba import drift

    if len(waveform) < max(rate, drift.FRAME):
        return []  # no fault is so short
    limits = drift.LIMITS_OF.get(model, drift.LIMITS)
    return [fault._asdict() for fault in drift.faults(drift.measure(waveform, rate), limits)]


def _save_state(order: Order, take: Take, path: Path) -> None:
    import math

    from audiomamba import saved
    from audiomamba.engine.place import Draw
    from audiomamba.sampling import Sampling

    cuts = {name: value for name, value in order.sampling.items() if name != "seed"}
    draw = Draw(sampling=Sampling(**cuts), seed=order.sampling["seed"], first=take.index)
    nats, made = take.bits_per_sample * math.log(2) * order.samples, order.samples
    if order.resumed is not None:
        nats += order.resumed.nats[take.index - order.first]
        made += order.resumed.made
    weights = order.model.weights or "float32"
    now = saved.Saved(
        draw=draw,
        places=[take.place],
        made=made,
        nats=[nats],
        weights=weights,
        guard=order.guard,
    )
    saved.write(path, order.model.network, now)
