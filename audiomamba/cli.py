"""The command line: parses, calls the library, prints."""

from __future__ import annotations

import contextlib
import errno
import math
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import audiomamba

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from audiomamba.audio import Format
    from audiomamba.audiomodel import AudioModel
    from audiomamba.data import Split
    from audiomamba.tokenizer import Encoding

PROMPT_LIMIT_SECONDS = 600
LONGEST_SECONDS = 1e9  # far over any disk; its samples can be counted
INTERRUPTED = 130
COMPILING = "compiling for this machine; the next start finds it done"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `audiomamba`; exit with 0 if all went well, 1 on an error, 2 if misused, 130 on Ctrl-C.

    Args:
        arguments: Without the program's name; None takes them from the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(arguments or ["--help"], prog_name="audiomamba", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "audiomamba"
        code = _fail(f"{error.format_message().rstrip('.')}; see {where} --help", error.exit_code)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except click.Abort:
        code = INTERRUPTED
    except Exception as error:  # the edge of the program: a user reads one line
        if "--debug" in arguments:
            raise
        code = _fail(_one_line(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        remedy = {
            errno.ENOSPC: "; free some space or name another folder",
            errno.EDQUOT: "; free some of your quota or name another folder",
            errno.EFBIG: "; ask for less or name a folder that takes larger files",
            errno.EACCES: "; change its permissions or name another folder",
        }.get(error.errno or 0, "")
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}{remedy}"
    if isinstance(error, (ImportError, OSError, ValueError)):
        return str(error)
    return f"{type(error).__name__}: {error}; --debug tells where"


def _finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _seconds(*names: str, **options: Any) -> Callable[[Any], Any]:
    number = click.FloatRange(min=0, min_open=True, max=LONGEST_SECONDS)
    return click.option(*names, type=number, callback=_finite, metavar="FLOAT", **options)


_debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show where an error arose."
)
_device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
_model = click.option(
    "-m",
    "--model",
    "name",
    default="piano",
    show_default=True,
    help="A shipped model, a folder with config.json and model.safetensors (./NAME), or a Hugging "
    "Face id (OWNER/NAME).",
)
_overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there.")
_quiet = click.option("--quiet", is_flag=True, help="Print results only, and no progress.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(audiomamba.__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Raw audio, one sample at a time."""


@cli.command()
@_seconds("--seconds", default=10.0, show_default=True, help="Audio to make.")
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
    callback=_finite,
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
    callback=_finite,
    help="Draw from the fewest levels whose probabilities reach p only.",
)
@click.option(
    "--prompt",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Audio to continue, of any format, rate and channel count. The file made holds the "
    "prompt and then --seconds of continuation.",
)
@_seconds("--prompt-seconds", help="Use only the beginning of the prompt.")
@_model
@_device
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["wav", "flac", "ogg", "mp3"]),
    default="wav",
    show_default=True,
    help="Of the files.",
)
@click.option("--spectrogram", is_flag=True, help="Draw each file beside it, as a PNG.")
@_overwrite
@_quiet
@_debug
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
    paths = output.targets(folder, model.name, seed, num, file_format, overwrite=overwrite)
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
                for index, waveform in takes:
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


@cli.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--sample-rate",
    type=click.IntRange(min=1),
    default=16000,
    show_default=True,
    help="Hz; other rates are resampled.",
)
@click.option(
    "--encoding",
    type=click.Choice(["mu-law", "mu-law-sashimi", "linear"]),
    default="mu-law",
    show_default=True,
)
@click.option("--bits", type=click.IntRange(1, 16), default=8, show_default=True)
@click.option("--skip-bad", is_flag=True, help="Leave out unusable files instead of stopping.")
@_overwrite
@_quiet
@_debug
def prepare(
    directory: Path,
    out: Path,
    sample_rate: int,
    encoding: Encoding,
    bits: int,
    skip_bad: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Turn a folder of audio into tokens to train on.

    Every audio file under DIRECTORY becomes tokens in OUT/tokens.bin, listed in OUT/index.json.
    Subfolders train, validation and test are the splits; without them files are split 88, 6 and 6 %
    by position in natural order.
    """
    from audiomamba.data.prepare import prepare as prepare_folder
    from audiomamba.data.tokens import SPLITS
    from audiomamba.progress import FileBar
    from audiomamba.tokenizer import Tokenizer

    with FileBar(quiet=quiet) as bar:
        store = prepare_folder(
            directory,
            out.expanduser(),
            Tokenizer(encoding, bits),
            sample_rate=sample_rate,
            skip_bad=skip_bad,
            overwrite=overwrite,
            progress=bar.show,
        )
    for path, reason in store.skipped.items():
        click.echo(f"skipped {path}: {reason}", err=True)
    for file in store.files():
        if file.peak == 0:
            click.echo(f"note: {file.path} is silent", err=True)
    if not quiet:
        for split in SPLITS:
            files = store.files(split)
            hours = sum(file.samples for file in files) / sample_rate / 3600
            click.echo(f"{split:<10} {len(files):>6} files {hours:>8.2f} hours")
    click.echo(out.expanduser().absolute())


@cli.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Of prepared tokens.",
)
@_seconds("--seconds", help="Read only so much in all.  [default: everything]")
@_model
@_device
@_quiet
@_debug
def evaluate(
    path: Path, split: Split, seconds: float | None, name: str, device: str, quiet: bool
) -> None:
    """Measure how well a model predicts audio, in bits per sample (lower is better).

    PATH is an audio file or a folder that `audiomamba prepare` made.
    """
    model = audiomamba.load(name, device=device)
    if path.is_dir():
        bits = _evaluate_tokens(model, path, split, seconds, quiet=quiet)
    else:
        from audiomamba import audio

        bits = model.nll(audio.read(path, model.sample_rate, seconds=seconds))
    click.echo(f"{bits:.4f} bits per sample")


def _evaluate_tokens(
    model: AudioModel, path: Path, split: Split, seconds: float | None, *, quiet: bool
) -> float:
    from audiomamba.data import TokenStore
    from audiomamba.evaluate import evaluate as evaluate_tokens
    from audiomamba.progress import AudioBar

    store = TokenStore(path)
    total = sum(file.samples for file in store.files(split)) / store.sample_rate
    with AudioBar(min(total, seconds or math.inf), quiet=quiet) as bar:
        return evaluate_tokens(
            model.network,
            store,
            split,
            seconds=seconds,
            progress=lambda done, _: bar.update(done / store.sample_rate - bar.n),
        )


@cli.command()
@_debug
def doctor() -> None:
    """Tell what works on this machine, and how to get the rest."""
    from audiomamba.doctor import examine

    text, healthy = examine()
    click.echo(text)
    raise click.exceptions.Exit(0 if healthy else 1)
