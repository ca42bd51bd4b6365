"""`audiomamba classify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from audiomamba.commands import options


@click.command()
@options.files
@click.option(
    "-m",
    "--model",
    "name",
    default="digit_classifier",
    show_default=True,
    help="The shipped one, a folder, or a Hugging Face id (OWNER/NAME).",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on each line.")
@options.device
@options.debug
def classify(files: tuple[Path, ...], name: str, as_json: bool, device: str) -> None:
    """Tell which word each recording holds, such as a spoken digit.

    Prints the file, the word and its probability, a line each. Files that cannot be read or are too
    short are told when all others are done.
    """
    from audiomamba import audio
    from audiomamba.arguments import check_device
    from audiomamba.classifier import AudioClassifier

    place = check_device(device)
    classifier = AudioClassifier.from_pretrained(name).to(place)
    wrong = []
    for file in files:
        try:
            waveform = audio.read(file, classifier.config.sample_rate)
            word, probability = classifier.classify(waveform)
        except ValueError as error:
            text = str(error)
            wrong.append(text if str(file) in text else f"{file}: {text}")
            continue
        if as_json:
            click.echo(json.dumps({"file": str(file), "word": word, "probability": probability}))
        else:
            click.echo(f"{file}\t{word}\t{probability:.3f}")
    if wrong:
        raise ValueError("; ".join(wrong))
