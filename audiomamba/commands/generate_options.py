"""The options of `audiomamba generate`, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from audiomamba.commands import options

if TYPE_CHECKING:
    from audiomamba.audio import Format
    from audiomamba.engine.choice import Weights
    from audiomamba.generate import Batch

GuardMode = Literal["off", "warn", "rewind"]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The options as given; a name is that of the option."""

    seconds: float
    num: int | None
    output_dir: Path
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    prompt: tuple[Path, ...]
    prompt_seconds: float | None
    without_prompt: bool
    resume: Path | None
    save_state: bool
    name: str
    device: str
    weights: Weights | None
    batch_size: Batch
    file_format: Format
    spectrogram: bool
    gallery: Path | None
    rank: bool
    keep: int | None
    guard: GuardMode | None
    sure: float | None
    play: bool
    stream: bool
    overwrite: bool
    quiet: bool


class BatchSize(click.ParamType):  # type: ignore[type-arg]  # takes one in newer releases
    """A count, or "auto"."""

    name = "integer|auto"

    def convert(
        self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None
    ) -> Batch:
        """Return what was given as a number or as "auto"."""
        if value == "auto":
            return "auto"
        count: int = click.IntRange(min=1).convert(value, parameter, ctx)
        return count


def _all(*together: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(together):
            command = option(command)
        return command

    return add


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

drawing = _all(
    click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        metavar="INTEGER",
        help="Makes the same audio again on the same kind of CPU.  [default: at random, and "
        "printed]",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        metavar="FLOAT",
        callback=options.finite,
        help="Below 1 is tamer, above 1 wilder; 0 takes the likeliest level.  [default: the "
        "model's]",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(1, 2**31 - 1),
        metavar="INTEGER",
        help="Draw from the k likeliest levels only.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="FLOAT",
        callback=options.finite,
        help="Draw from the fewest levels whose probabilities reach p only.",
    ),
)

going_on = _all(
    click.option(
        "--prompt",
        type=_FILE,
        multiple=True,
        help="Audio to continue, of any format, rate and channel count. The file made holds the "
        "prompt and then --seconds of continuation. Given several times, file i continues prompt "
        "i.",
    ),
    options.seconds("--prompt-seconds", help="Use only the beginning of the prompt."),
    click.option(
        "--without-prompt",
        is_flag=True,
        help="Write the continuation alone; the prompt may then be of any length.",
    ),
    click.option(
        "--save-state",
        is_flag=True,
        help="Write beside each file, as .safetensors, what it takes to go on from its end.",
    ),
    click.option(
        "--resume",
        type=_FILE,
        help="Go on from a file of --save-state, without a guard as if it had not ended: with its "
        "seed, index and sampling.",
    ),
)

writing = _all(
    options.seconds("--seconds", default=10.0, show_default=True, help="Audio to make."),
    click.option(
        "-n",
        "--num",
        type=click.IntRange(min=1),
        metavar="INTEGER",
        help="Files to make. File i depends on the seed and i alone.  [default: 1]",
    ),
    click.option(
        "-o",
        "--output-dir",
        "--output_dir",
        type=click.Path(path_type=Path),
        default=".",
        help="Folder for the files, made if it is not there.  [default: the present one]",
    ),
)

showing = _all(
    click.option(
        "--format",
        "file_format",
        type=click.Choice(["wav", "flac", "ogg", "mp3"]),
        default="wav",
        show_default=True,
        help="Of the files.",
    ),
    click.option("--spectrogram", is_flag=True, help="Draw each file beside it, as a PNG."),
    click.option(
        "--gallery",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.html",
        help="Write one page with players, pictures and likelihoods of all files.",
    ),
    click.option(
        "--rank",
        is_flag=True,
        help="Sort by likelihood: the records say the rank, 1 the likeliest, and files are listed "
        "in this order.",
    ),
    click.option(
        "--keep",
        type=click.IntRange(min=1),
        metavar="K",
        help="Make --num files, keep the K likeliest; with --rank.",
    ),
    click.option(
        "--guard",
        type=click.Choice(get_args(GuardMode)),
        is_flag=False,
        flag_value="warn",
        help="warn: tell of noise, silence or one held tone in what was made; rewind: moreover go "
        "back a second from noise and draw anew, so that --stream is as late.  [default: "
        "off, or where a model asks for it to go back and to tell of nothing else; alone: warn, "
        "which goes back for no model]",
    ),
    click.option(
        "--sure",
        type=click.FloatRange(0, 1),
        metavar="FLOAT",
        callback=options.finite,
        help="Write takes in which the classifier that the model names is as sure of a word: from "
        "0, which writes all, to 1. For each at most eight are drawn, and the surest of eight is "
        "written anyway; names have the numbers of what was drawn. For takes of up to a second, "
        "without a prompt.  [default: the model's; digits 0.95]",
    ),
    click.option("--play", is_flag=True, help="Play the files when all are made."),
    click.option(
        "--stream",
        is_flag=True,
        help="Write no file, but samples as they are made to standard output: 16 bits, little "
        "endian, mono.",
    ),
)

where = _all(
    options.model,
    options.device,
    click.option(
        "--weights",
        type=click.Choice(["float32", "bfloat16"]),
        help="Type of the model's matrices; bfloat16, on a GPU alone, halves what is read for a "
        "sample.  [default: float32; with --resume its file's]",
    ),
    click.option(
        "--batch-size",
        type=BatchSize(),
        help="Files made side by side; auto: as the default, or as many as fit into memory if "
        "those are fewer.  [default: one a CPU core; 1024 on a GPU, fewer if very long]",
    ),
)
