"""`audiomamba encode`."""

from __future__ import annotations

from pathlib import Path

import click

from audiomamba.commands import options


@click.command()
@options.files
@click.option(
    "-o",
    "--output-dir",
    "--output_dir",
    metavar="OUT",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the features, made if it is not there.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["npy", "safetensors"]),
    default="npy",
    show_default=True,
    help="Of the files; safetensors says which model made them.",
)
@click.option(
    "--layer",
    type=click.IntRange(min=1),
    metavar="INTEGER",
    help="Take what this layer puts out, counted from 1.  [default: the model's features]",
)
@click.option(
    "--normalize",
    is_flag=True,
    help="Give an encoder mel bands of mean 0 and variance 1, if it was trained so.",
)
@click.option(
    "--keep-folders",
    is_flag=True,
    help="Keep the folders of the files, below the one that holds all, inside OUT.",
)
@options.seconds(
    "--batch-seconds",
    default=30.0,
    show_default=True,
    help="Audio encoded at once, padding included; memory grows with it and the longest file.",
)
@options.model
@options.device
@options.overwrite
@options.quiet
@options.debug
def encode(
    files: tuple[Path, ...],
    output_dir: Path,
    file_format: str,
    layer: int | None,
    normalize: bool,
    keep_folders: bool,
    batch_seconds: float,
    name: str,
    device: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write features of audio.

    Each FILE, of any format, rate and channel count, becomes an array (frames, features) of the
    same name, float32. A model that generates waveforms, as piano, gives what it makes of them on
    the way; a folder of an encoder (MambaEncoder.save_pretrained) is given log-mel features at
    16 kHz. Files are written as they are finished, short ones first; Ctrl-C keeps those.
    """
    from audiomamba import audio, output
    from audiomamba import encode as encoding
    from audiomamba.progress import AudioBar

    folder = output_dir.expanduser().absolute()
    targets = encoding.targets(
        files, folder, f".{file_format}", overwrite=overwrite, keep_folders=keep_folders
    )
    seconds = [audio.check(path) for path in files]
    extractor = encoding.load(name, layer=layer, normalize=normalize, device=device)
    output.check_folder(folder)
    record = {"model": name, "sample_rate": str(extractor.sample_rate)}
    if layer is not None:
        record["layer"] = str(layer)
    with AudioBar(sum(seconds), quiet=quiet) as bar:
        for i, features in encoding.encode(extractor, files, seconds, batch_seconds):
            encoding.write(targets[i], features, record)
            bar.update(seconds[i])
            bar.clear()
            click.echo(targets[i])
