"""`audiomamba generate`."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import audiomamba
from audiomamba.commands import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from audiomamba.audio import Format
    from audiomamba.audiomodel import AudioModel

PROMPT_LIMIT_SECONDS = 600
INTERRUPTED = 130
COMPILING = "compiling for this machine; the next start finds it done"


@click.command()
@options.seconds("--seconds", default=10.0, show_default=True, help="Audio to make.")
@click.option(
    "-n",
    "--num",
    type=click.IntRange(min=1),
    metavar="INTEGER",
    default=1,
    show_default=True,
    help="Files to make. File i depends on the seed and i alone.",
)
@click.option(
    "-o",
    "--output-dir",
    "--output_dir",
    type=click.Path(path_type=Path),
    default=".",
    help="Folder for the files, made if it is not there.  [default: the present one]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    metavar="INTEGER",
    help="Makes the same audio again on the same kind of CPU.  [default: at random, and printed]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    metavar="FLOAT",
    callback=options.finite,
    help="Below 1 is tamer, above 1 wilder; 0 takes the likeliest level.  [default: the model's]",
)
@click.option(
    "--top-k",
    type=click.IntRange(1, 2**31 - 1),
    metavar="INTEGER",
    help="Draw from the k likeliest levels only.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="FLOAT",
    callback=options.finite,
    help="Draw from the fewest levels whose probabilities reach p only.",
)
@click.option(
    "--prompt",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Audio to continue, of any format, rate and channel count. The file made holds the "
    "prompt and then --seconds of continuation.",
)
@options.seconds("--prompt-seconds", help="Use only the beginning of the prompt.")
@options.model
@options.device
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["wav", "flac", "ogg", "mp3"]),
    default="wav",
    show_default=True,
    help="Of the files.",
)
@click.option("--spectrogram", is_flag=True, help="Draw each file beside it, as a PNG.")
@options.overwrite
@options.quiet
@options.debug
def generate(
    seconds: float,
    num: int,
    output_dir: Path,
    seed: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    prompt: Path | None,
    prompt_seconds: float | None,
    name: str,
    device: str,
    file_format: Format,
    spectrogram: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Make audio.

    Each file MODEL_SEED_INDEX.wav is written as soon as it is finished, with a JSON file of the
    same name beside it that holds what makes it again. Ctrl-C keeps the finished ones.
    """
    if prompt_seconds is not None and prompt is None:
        raise click.UsageError("--prompt-seconds needs --prompt")
    from audiomamba import audio, checkpoint, output, plot
    from audiomamba.files import sha256

    if spectrogram:
        plot.figure_class()  # a missing matplotlib is told before the work
    folder = output_dir.expanduser().absolute()
    output.check_folder(folder)
    if prompt is not None:
        audio.check(prompt)
    model = audiomamba.load(name, device=device)
    seed = secrets.randbelow(2**31) if seed is None else seed
    samples = round(seconds * model.sample_rate)
    if not samples:
        raise click.UsageError(f"--seconds {seconds} is less than a sample")
    start = _read_prompt(prompt, prompt_seconds, model.sample_rate)
    output.check_space(folder, num * (samples + (0 if start is None else len(start))))
    if spectrogram and samples < plot.WINDOW:
        raise click.UsageError(f"--spectrogram needs at least {plot.WINDOW} samples")
    beside = (".json", ".png") if spectrogram else (".json",)
    paths = output.targets(
        folder, model.name, seed, num, file_format, overwrite=overwrite, beside=beside
    )
    temperature = model.temperature if temperature is None else temperature
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    folder_of_model = Path(name).is_dir() and name not in checkpoint.shipped()
    record: dict[str, Any] = {
        "model": str(Path(name).absolute()) if folder_of_model else name,
        "weights_sha256": model.weights_sha256,
        "seed": seed,
        "seconds": samples / model.sample_rate,
        **sampling,
        "prompt": None,
        "engine": model.engine,
        "device": device,
    }
    if prompt is not None and start is not None:
        record["prompt"] = {
            "file": str(prompt.absolute()),
            "sha256": sha256(prompt),
            "seconds": len(start) / model.sample_rate,
        }
    if not quiet:
        click.echo(f"seed {seed}")
    _write_takes(model, paths, file_format, samples, start, sampling, record, spectrogram, quiet)


def _write_takes(
    model: AudioModel,
    paths: list[Path],
    file_format: Format,
    samples: int,
    start: NDArray[np.float32] | None,
    sampling: dict[str, Any],
    record: dict[str, Any],
    spectrogram: bool,
    quiet: bool,
) -> None:
    """Write each file as soon as its samples are made, and tell the speed."""
    import numpy as np

    from audiomamba import plot
    from audiomamba.output import write_take
    from audiomamba.progress import AudioBar

    model.warm_up(lambda: None if quiet else click.echo(COMPILING, err=True))
    seconds = samples / model.sample_rate
    made, began = 0, time.perf_counter()
    with AudioBar(len(paths) * seconds, quiet=quiet) as bar:
        takes = model.generate_each(
            samples=samples,
            num=len(paths),
            seed=record["seed"],
            **sampling,
            prompt=start,
            progress=lambda delta: bar.update(delta / model.sample_rate),
        )
        try:
            with contextlib.closing(takes):  # an error here stops the takes that are being made
                for take in takes:
                    index, waveform = take.index, take.waveform
                    speed = (made + 1) * seconds / (time.perf_counter() - began)
                    whole = waveform if start is None else np.concatenate([start, waveform])
                    write_take(
                        paths[index],
                        whole,
                        model.sample_rate,
                        {**record, "index": index, "times_real_time": round(speed, 3)},
                        format=file_format,
                    )
                    if spectrogram:
                        plot.spectrogram(whole, model.sample_rate, paths[index].with_suffix(".png"))
                    made += 1
                    bar.clear()
                    click.echo(paths[index])
        except KeyboardInterrupt:
            bar.close()
            click.echo(f"interrupted: {made} of {len(paths)} files are finished and kept", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
    if not quiet:
        took = time.perf_counter() - began
        speed = made * seconds / took
        click.echo(f"{made * seconds:.1f} s of audio in {took:.1f} s, {speed:.2f} times real time")


def _read_prompt(
    path: Path | None, seconds: float | None, sample_rate: int
) -> NDArray[np.float32] | None:
    if path is None:
        return None
    from audiomamba import audio

    limit = PROMPT_LIMIT_SECONDS + 1 if seconds is None else seconds
    waveform = audio.read(path, sample_rate, seconds=limit)
    length = len(waveform) / sample_rate
    if seconds is None and length > PROMPT_LIMIT_SECONDS:
        raise ValueError(
            f"the prompt {path} is longer than {PROMPT_LIMIT_SECONDS} s; "
            "say how much of it to use with --prompt-seconds"
        )
    if seconds is not None and len(waveform) < round(seconds * sample_rate):
        click.echo(f"note: the prompt lasts {length:.6g} s; all of it is used", err=True)
    if not waveform.any():
        click.echo("note: the prompt is silent", err=True)
    return waveform
