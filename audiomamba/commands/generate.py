"""`audiomamba generate`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import audiomamba
from audiomamba.commands import generate_options, options
from audiomamba.commands.failure import telling_ctrl_c
from audiomamba.commands.generate_options import Flags
from audiomamba.commands.prompt import read_prompt, saved_prompts
from audiomamba.commands.raw import write_raw
from audiomamba.commands.takes import Order, Written, companions, write_takes

if TYPE_CHECKING:
    from audiomamba.audiomodel import AudioModel
    from audiomamba.guard import Guard
    from audiomamba.words import Judge

COMPILING = "compiling for this machine; the next start finds it done"
COMPILING_PROMPT = "compiling what reads prompts, for this machine; the next start finds it done"
SAMPLE_BYTES, RECORD_BYTES, PICTURE_BYTES = 2, 4096, 450_000  # as large as they get
STREAMED = {  # what has a meaning for samples that go to no file
    *("stream", "seconds", "num", "seed", "temperature", "top_k", "top_p", "name", "device"),
    *("weights", "prompt", "prompt_seconds", "without_prompt", "resume", "guard", "quiet", "debug"),
}


@click.command()
@generate_options.writing
@generate_options.drawing
@generate_options.going_on
@generate_options.where
@generate_options.showing
@options.overwrite
@options.quiet
@options.debug
def generate(**given: Any) -> None:
    """Make audio.

    Each file MODEL_SEED_INDEX.wav is written as soon as it is finished, with a JSON file of the
    same name beside it that holds what makes it again, and how likely the model finds it. Ctrl-C
    keeps the finished ones.
    """
    flags = Flags(**given)
    flags = replace(
        flags,
        rank=flags.rank or flags.keep is not None,
        output_dir=flags.output_dir.expanduser().absolute(),
        gallery=flags.gallery and flags.gallery.expanduser().absolute(),
    )
    _check_use(flags)
    from audiomamba import play

    with telling_ctrl_c(lambda: "nothing was written"):
        player = play.find_player(flags.file_format) if flags.play else ()
        _check_files(flags)
        model = audiomamba.load(flags.name, device=flags.device, weights=flags.weights)
        order = _plan(model, flags)
        paths = [] if flags.stream else _planned_paths(order, flags)
        order = _placed(order, flags)
        if not flags.stream:
            _check_room(order, flags)
    _say(f"seed {order.sampling['seed']}", flags, err=flags.stream)
    if flags.stream:
        write_raw(order)
        return
    written = write_takes(order, paths, flags)
    if flags.gallery:
        _show(flags.gallery, model, written)
        click.echo(flags.gallery)
    for one in written if flags.play else ():
        play.play(player, one.path)


def _check_files(flags: Flags) -> None:
    """Find what is wrong with files to read and to write before the model is loaded."""
    from audiomamba import audio, output, plot, saved_header

    if flags.spectrogram or flags.gallery:
        plot.figure_class()  # a missing matplotlib is told before the work
    if not flags.stream:
        output.check_folder(flags.output_dir)
    if flags.gallery:
        output.check_page(flags.gallery, overwrite=flags.overwrite)
    for prompt in flags.prompt:
        audio.check(prompt)
    if flags.resume is not None:
        saved_header.check(flags.resume)
    if flags.seed is not None and not flags.stream:  # else the names are not known yet
        _paths(flags.name, flags.seed, range(_count(flags)), flags)


def _planned_paths(order: Order, flags: Flags) -> list[Path]:
    """Return the names of the files to come, for which there is room but for their prompts."""
    _check_room(order, flags)
    numbers = order.num
    if order.judge is not None:
        from audiomamba.words import TRIES

        numbers *= TRIES  # of those that may be drawn
    indices = range(order.first, order.first + numbers)
    starts = [one.place.position for one in order.prompts]  # of what was saved: none is read yet
    return _paths(order.model.name, order.sampling["seed"], indices, flags, starts)


def _check_room(order: Order, flags: Flags) -> None:
    """Make sure that all files have room, with what they begin with and what is beside them."""
    from audiomamba import output, saved

    beside = RECORD_BYTES
    if flags.spectrogram:
        beside += PICTURE_BYTES
    if flags.save_state:
        beside += saved.size(order.model.network)
    files = flags.keep or order.num
    befores = sorted(len(one.before) for one in order.prompts if one.before is not None)
    samples = files * order.samples + sum(befores[-files:])
    output.check_space(flags.output_dir, SAMPLE_BYTES * samples + files * beside)


def _check_use(flags: Flags) -> None:
    """Refuse options that contradict one another."""
    if not flags.prompt:
        for name in ("prompt_seconds", "without_prompt"):
            if getattr(flags, name):
                raise click.UsageError(f"{_option(name)} needs --prompt")
    for name in ("prompt", "resume"):
        if flags.sure and given(flags, name):
            raise click.UsageError(f"--sure does not go with --{name}: words begin from silence")
    for name in ("seed", "temperature", "top_k", "top_p", "num", "prompt"):
        if flags.resume and given(flags, name):
            raise click.UsageError(
                f"{_option(name)} does not go with --resume: its file holds what that says"
            )
    if flags.gallery and flags.gallery.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"--gallery {flags.gallery} must end in .html or .htm")
    if flags.weights == "bfloat16" and flags.device == "cpu":
        raise click.UsageError(
            "--weights bfloat16 is for a GPU alone; add --device cuda, or leave it out"
        )
    if flags.stream and flags.guard == "warn":
        raise click.UsageError("--guard warn does not go with --stream; --guard rewind does")
    context = click.get_current_context()
    idle = [
        next(name for name in option.opts if name.startswith("--"))
        for option in context.command.params
        if option.name not in STREAMED
        and context.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT
    ]
    if flags.stream and idle:
        raise click.UsageError(f"--stream writes no file: it does not go with {', '.join(idle)}")
    count = _count(flags)
    if len(flags.prompt) > 1 and count != len(flags.prompt):
        raise click.UsageError(
            f"--num {count} is not how many --prompt there are, {len(flags.prompt)}; leave it out"
        )
    if flags.stream and count > 1:
        said = f"--num {count}" if flags.num else f"--prompt, given {count} times,"
        raise click.UsageError(f"{said} does not go with --stream: that is one stream")
    if flags.keep is not None and flags.keep > count:
        raise click.UsageError(f"--keep {flags.keep} is more than the {count} that are made")


def _count(flags: Flags) -> int:
    """Return how many files are asked for, but for what a file of --resume says."""
    return flags.num or len(flags.prompt) or 1


def given(flags: Flags, name: str) -> bool:
    """Return whether an option was given, be it as 0."""
    value = getattr(flags, name)
    return value is not None and value is not False and value != ()  # 0 equals False


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plan(model: AudioModel, flags: Flags) -> Order:
    """Return what is to be made, but for the prompt, which takes time to read."""
    from audiomamba import checkpoint, plot

    samples = round(flags.seconds * model.sample_rate)
    if not samples:
        raise click.UsageError(f"--seconds {flags.seconds} is less than a sample")
    if (flags.spectrogram or flags.gallery) and samples < plot.WINDOW:
        asked = "--spectrogram" if flags.spectrogram else "--gallery"
        raise click.UsageError(f"{asked} needs at least {plot.WINDOW} samples")
    folder_of_model = Path(flags.name).is_dir() and flags.name not in checkpoint.shipped()
    order = Order(
        model=model,
        samples=samples,
        num=_count(flags),
        sampling={
            "seed": secrets.randbelow(2**31) if flags.seed is None else flags.seed,
            "temperature": model.temperature if flags.temperature is None else flags.temperature,
            "top_k": flags.top_k,
            "top_p": flags.top_p,
        },
        guard=_guard(model, flags),
        judge=_judge(model, flags),
    )
    if flags.resume is not None:
        order = _resumed(order, flags.resume, guarded_as_saved=flags.guard is None)
    if flags.stream and order.num > 1:
        raise click.UsageError(f"--stream is one stream, and {flags.resume} holds {order.num}")
    record = {
        "model": str(Path(flags.name).absolute()) if folder_of_model else flags.name,
        "weights_sha256": model.weights_sha256,
        "seconds": samples / model.sample_rate,
        **order.sampling,
        "guard": None if order.guard is None else asdict(order.guard),
        "prompt": None,
        "engine": model.engine,
        "weights": model.weights or "float32",
        "device": flags.device,
    }
    return replace(order, record=record)


def _guard(model: AudioModel, flags: Flags) -> Guard | None:
    """Return what watches the likelihood: to warn alone, it does without what it cannot know."""
    mode = flags.guard or ("rewind" if model.guard else "off")
    if mode == "off" or (mode == "warn" and model.validation_bits is None):
        return None
    if model.validation_bits is None:
        raise ValueError(
            f"{flags.name} has no validation bits, from which a guard's limit follows; leave "
            "--guard rewind out, or give --guard warn, which then listens to the sound alone"
        )
    guard = model.default_guard()
    return guard if mode == "rewind" else replace(guard, tries=0)


def _judge(model: AudioModel, flags: Flags) -> Judge | None:
    """Return who chooses takes: of a model that asks for words those that may hold one."""
    if flags.sure == 0 or (flags.sure is None and model.words is None):
        return None
    from audiomamba.words import SECONDS, judge

    shortest, longest = SECONDS
    fits = shortest <= flags.seconds <= longest
    if flags.sure is None and (flags.prompt or flags.resume or flags.stream or not fits):
        _say(
            f"{model.name} asks for clear words, of {shortest:g} to {longest:g} s from silence; "
            "what this makes is not chosen",
            flags,
            err=True,
        )
        return None
    if not fits:
        raise click.UsageError(
            f"--sure is for takes of {shortest:g} to {longest:g} s, and --seconds is "
            f"{flags.seconds:g}"
        )
    return judge(model, flags.sure)


def _resumed(order: Order, path: Path, *, guarded_as_saved: bool) -> Order:
    """Return an order that goes on from a file of saved streams."""
    from audiomamba import saved

    begin = saved.read(path, order.model.network)
    order.model.weights = order.model.weights or begin.weights
    return replace(
        order,
        num=len(begin.places),
        first=begin.draw.first,
        sampling={"seed": begin.draw.seed, **asdict(begin.draw.sampling)},
        guard=begin.guard if guarded_as_saved else order.guard,
        prompts=saved_prompts(path, begin.places),
        resumed=begin,
    )


def _paths(
    name: str, seed: int, indices: range, flags: Flags, starts: Sequence[int] = ()
) -> list[Path]:
    """Return the names of the files to come, none of which is there."""
    from audiomamba import output

    return output.targets(
        flags.output_dir,
        name,
        seed,
        indices,
        flags.file_format,
        starts=starts,
        overwrite=flags.overwrite,
        beside=companions(flags),
    )


def _placed(order: Order, flags: Flags) -> Order:
    """Compile, and read the prompt: neither counts as making sound."""
    order.model.warm_up(lambda: _say(COMPILING, flags, err=True))
    # Which engine it is may turn out as it is opened.
    order = replace(order, record={**order.record, "engine": order.model.engine})
    read = {
        path: read_prompt(
            order.model,
            path,
            flags.prompt_seconds,
            hold=not flags.without_prompt,
            notify=lambda: _say(COMPILING_PROMPT, flags, err=True),
        )
        for path in dict.fromkeys(flags.prompt)
    }
    if not read:
        return order
    prompts = [read[path] for path in flags.prompt]  # one, or as many as files
    return replace(order, prompts=prompts * (order.num // len(prompts)))


def _show(path: Path, model: AudioModel, written: list[Written]) -> None:
    """Write the page of all files."""
    from audiomamba import audio, gallery, plot

    def draw(sound: Path) -> bytes:
        return plot.png(audio.read(sound, model.sample_rate), model.sample_rate)

    exhibits = [
        gallery.Exhibit(path=one.path, record=one.record, draw=partial(draw, one.path))
        for one in written
    ]
    gallery.write(path, f"Audio generated by {model.name}", exhibits)


def _say(text: str, flags: Flags, *, err: bool = False) -> None:
    if not flags.quiet:
        click.echo(text, err=err)
