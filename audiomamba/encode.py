"""Features of audio files: the model that makes them, batches by length, files they go to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from audiomamba import audio, checkpoint
from audiomamba.arguments import check_device
from audiomamba.encoder import MambaEncoder
from audiomamba.features import log_mel
from audiomamba.files import replacing
from audiomamba.models.features import WaveformFeatures, encode_rows
from audiomamba.models.waveform import WaveformModel

ENCODER_RATE_HZ = 16000

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Extractor:
    """What makes features.

    Attributes:
        run: Maps waveforms (batch, samples) in [-1, 1] and their lengths (batch,) to features
            (batch, frames, d) and the frames of each row.
        sample_rate: Hz.
        device: Where `run` takes tensors.
    """

    run: Run
    sample_rate: int
    device: torch.device


def load(
    name: str | Path, *, layer: int | None = None, normalize: bool = False, device: str = "cpu"
) -> Extractor:
    """Load what makes features.

    Args:
        name: A waveform model or an encoder of log-mel features at 16 kHz: a shipped name, a folder
            or a Hugging Face id.
        layer: What this one puts out, from 1 on; None is the last, of an encoder after the norm, of
            a waveform model `WaveformFeatures`.
        normalize: As for `log_mel`, which an encoder reads.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If files are damaged, the device cannot be used, there is no such layer, or a
            waveform model is asked to normalize.
    """
    place = check_device(device)
    directory = checkpoint.find(name, "encoder", "model")
    if checkpoint.holds(directory, "encoder"):
        encoder = MambaEncoder.from_pretrained(directory).to(place)
        _check_layer(layer, encoder.config.n_layers)
        return Extractor(_of_encoder(encoder, layer, normalize), ENCODER_RATE_HZ, place)
    if normalize:
        raise ValueError(f"{name} is a model of waveforms, which are not normalized")
    network = checkpoint.load(directory).to(place)
    *outer, centre = network.config.tiers
    _check_layer(layer, 2 * sum(tier.n_layers for tier in outer) + centre.n_layers)
    run = WaveformFeatures(network) if layer is None else _of_block(network, layer)
    return Extractor(run, network.config.sample_rate, place)


def encode(
    extractor: Extractor, paths: Sequence[Path], seconds: Sequence[float], limit: float
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Make features of files, the short ones first.

    Args:
        extractor: What makes them.
        paths: Audio files.
        seconds: How long they are (`audio.check`).
        limit: Seconds of a batch, padding included; a file that is longer is a batch of its own.

    Yields:
        The place of a file in `paths`, and its features (frames, d).

    Raises:
        OSError, ValueError: As `audio.read`; once all others are done, if files are too short for a
            frame.
    """
    short = []
    for batch in batches(seconds, limit):
        waveforms = [
            torch.from_numpy(audio.read(paths[i], extractor.sample_rate)).to(extractor.device)
            for i in batch
        ]
        lengths = torch.tensor([len(wave) for wave in waveforms], device=extractor.device)
        with torch.inference_mode():
            features, counts = extractor.run(pad_sequence(waveforms, batch_first=True), lengths)
        for i, row, count in zip(batch, features.float().cpu(), counts.tolist(), strict=True):
            if count:
                yield i, row[:count].numpy()
            else:
                short.append(f"{paths[i]} ({seconds[i]:.3g} s)")
    if short:
        raise ValueError(
            f"too short for a frame, and left out: {', '.join(short)}; all other files are encoded"
        )


def batches(sizes: Sequence[float], limit: float) -> list[list[int]]:
    """Put what is of like size together, from small to large, at most `limit` with padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if groups and (len(groups[-1]) + 1) * sizes[i] <= limit:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def targets(
    paths: Sequence[Path],
    folder: Path,
    suffix: str,
    *,
    overwrite: bool,
    keep_folders: bool = False,
) -> list[Path]:
    """Return where the features of files go: their names with another suffix.

    Args:
        paths: The files.
        folder: Where all go.
        suffix: With its dot.
        overwrite: Whether what is there may be replaced.
        keep_folders: Keep, inside, the folders below the deepest that holds all files.

    Raises:
        FileExistsError: If one is there and may not be overwritten.
        ValueError: If two have the same name.
    """
    made: dict[Path, Path] = {}
    parents = [Path(os.path.abspath(path)).parent for path in paths]
    base = os.path.commonpath(parents) if keep_folders else ""
    for path, parent in zip(paths, parents, strict=True):
        below = parent.relative_to(base) if keep_folders else Path()
        target = folder / below / f"{path.stem}{suffix}"
        if target in made:
            raise ValueError(
                f"{made[target]} and {path} would both go to {target}; encode them into two "
                "folders, or keep theirs by --keep-folders"
            )
        if target.exists() and not overwrite:
            raise FileExistsError(
                f"{target} is there already; add --overwrite, or choose another --output-dir"
            )
        made[target] = path
    return list(made)


def write(path: Path, features: NDArray[np.float32], record: Mapping[str, str]) -> None:
    """Write features to an .npy file, or a .safetensors file that keeps the record, whole.

    Its folder is made if it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with audio.naming(path), replacing(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, features)
        else:
            file.write(save({"features": np.ascontiguousarray(features)}, dict(record)))


def _of_encoder(encoder: MambaEncoder, layer: int | None, normalize: bool) -> Run:
    def run(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, counts = log_mel(
            waveforms, lengths, n_mels=encoder.config.d_input, normalize=normalize
        )
        if layer is None:
            y: tuple[Tensor, Tensor] = encoder(features, counts)
            return y
        layers, counts = encoder.extract_features(features, counts, layer)
        return layers[-1], counts

    return run


def _of_block(network: WaveformModel, layer: int) -> Run:
    def run(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        tokens = encode_rows(network.config.tokenizer, waveforms, lengths)
        layers, counts = network.extract_features(tokens, lengths)
        return layers[layer - 1], counts[layer - 1]

    return run


def _check_layer(layer: int | None, layers: int) -> None:
    if layer is not None and not 1 <= layer <= layers:
        raise ValueError(f"--layer is {layer}; this model has layers 1 to {layers}")
