"""`audiomamba fetch`, `audiomamba prepare` and `audiomamba evaluate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

import audiomamba
from audiomamba.commands import options

if TYPE_CHECKING:
    from audiomamba.audiomodel import AudioModel
    from audiomamba.data import Split
    from audiomamba.tokenizer import Encoding


@click.command()
@click.argument("corpus", type=click.Choice(["sc09", "youtubemix", "beethoven"]))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@options.quiet
@options.debug
def fetch(corpus: str, folder: Path, quiet: bool) -> None:
    """Fetch a corpus into a new FOLDER, for `audiomamba prepare`.

    sc09: spoken digits, part of Google Speech Commands v0.02 (CC BY 4.0, 2.4 GB to fetch).

    youtubemix: four hours of piano, for academic use; the Hugging Face Hub asks for a login.

    beethoven: ten hours of piano; published results are of `prepare --encoding linear`.

    A download that broke off goes on when it is asked for again.
    """
    from audiomamba.data import corpora

    fetchers = {
        "sc09": corpora.fetch_sc09,
        "youtubemix": corpora.fetch_youtubemix,
        "beethoven": corpora.fetch_beethoven,
    }
    click.echo(fetchers[corpus](folder.expanduser().absolute(), progress=not quiet))


@click.command()
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
@click.option(
    "--only",
    metavar="NAMES",
    help="Take these subfolders and no others, such as zero,one,two.",
)
@click.option(
    "--speeds",
    metavar="FACTORS",
    default="1",
    show_default=True,
    help="Take training files at each of these speeds, such as 0.9,1,1.1.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out unusable files instead of stopping.")
@options.overwrite
@options.quiet
@options.debug
def prepare(
    directory: Path,
    out: Path,
    sample_rate: int,
    encoding: Encoding,
    bits: int,
    only: str | None,
    speeds: str,
    skip_bad: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Turn a folder of audio into tokens to train on.

    Every audio file under DIRECTORY becomes tokens in OUT/tokens.bin, listed in OUT/index.json.
    The splits are those of validation_list.txt and testing_list.txt (Speech Commands), or the
    subfolders train, validation and test; without either files are split 88, 6 and 6 % by position
    in natural order. Several folders of --only need one of the two.
    """
    from audiomamba.data.prepare import UnusableAudioError
    from audiomamba.data.prepare import prepare as prepare_folder
    from audiomamba.data.tokens import SPLITS
    from audiomamba.progress import FileBar
    from audiomamba.tokenizer import Tokenizer

    try:
        factors = [float(factor) for factor in speeds.split(",")]
    except ValueError:
        raise click.BadParameter(f"{speeds!r}: give numbers, such as 0.9,1,1.1") from None
    try:
        with FileBar(quiet=quiet) as bar:
            store = prepare_folder(
                directory,
                out.expanduser(),
                Tokenizer(encoding, bits),
                sample_rate=sample_rate,
                only=None if only is None else only.split(","),
                speeds=factors,
                skip_bad=skip_bad,
                overwrite=overwrite,
                progress=bar.show,
            )
    except UnusableAudioError as error:
        raise ValueError(f"{error}; --skip-bad leaves such files out") from error
    for path, reason in store.skipped.items():
        click.echo(f"skipped {path}: {reason}", err=True)
    for silent in dict.fromkeys(file.path for file in store.files() if file.peak == 0):
        click.echo(f"note: {silent} is silent", err=True)
    if not quiet:
        for split in SPLITS:
            files = store.files(split)
            hours = sum(file.samples for file in files) / sample_rate / 3600
            click.echo(f"{split:<10} {len(files):>6} files {hours:>8.2f} hours")
    click.echo(out.expanduser().absolute())


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Of prepared tokens.",
)
@options.seconds("--seconds", help="Read only so much in all.  [default: everything]")
@options.model
@options.device
@options.quiet
@options.debug
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
            progress=bar.show,
        )
