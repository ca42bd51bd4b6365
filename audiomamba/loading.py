"""A name becomes a model."""

from __future__ import annotations

from pathlib import Path

import torch

from audiomamba import checkpoint
from audiomamba.arguments import check_device
from audiomamba.audiomodel import AudioModel
from audiomamba.engine.choice import Weights
from audiomamba.files import sha256


def load(
    name: str | Path, device: str | torch.device = "cpu", *, weights: Weights | None = None
) -> AudioModel:
    """Load a model.

    Args:
        name: A shipped name, a folder, or a Hugging Face id (owner/name).
        device: "cpu", "cuda", "cuda:1".
        weights: As for `AudioModel`.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the files are damaged, or the device or such weights cannot be used.
    """
    place = check_device(device)
    directory = checkpoint.find(name, "model")
    return AudioModel(
        checkpoint.load(directory).to(place),
        name=str(name),
        weights_sha256=sha256(directory / checkpoint.WEIGHTS),
        temperature=checkpoint.read_temperature(directory),
        weights=weights,
        validation_bits=checkpoint.read_validation_bits(directory),
        guard=checkpoint.read_guard(directory),
        words=checkpoint.read_words(directory),
    )
