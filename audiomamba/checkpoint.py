"""Models on disk: config.json beside model.safetensors; shipped, in a folder, or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from audiomamba.config import ModelConfig, Words, checked
from audiomamba.files import replacing
from audiomamba.models.waveform import WaveformModel

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHIPPED = Path(__file__).parent / "weights"
Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)
KINDS = {  # what stands in a config.json beside "format": what it is, and the command that takes it
    "model": ("model of waveforms", "generate"),
    "encoder": ("encoder", "encode"),
    "classifier": ("classifier", "classify"),
}
TRANSFORMERS_ENCODER = "audiomamba_encoder"  # the model_type of adapters/for_transformers.py
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def save(
    directory: str | Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    guard: bool = False,
    words: Words | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors, each to a temporary name first.

    Args:
        directory: Made if it does not exist.
        config: What defines the model.
        weights: The state dict of a `WaveformModel`.
        dtype: Stored type; float16 halves the file and costs less than the rounding to 256 levels.
        temperature: What `generate` takes where none is given.
        guard: Whether `generate` guards it from noise where nothing is said of it; needs validation
            bits in `training`.
        words: Of which takes `audiomamba generate` writes the files; None is all.
        training: Plain values to keep in the config under "training" (steps, data, scores), of
            which loading reads "validation_bits_per_sample" alone.
    """
    values = {
        "model": config.to_dict(),
        "generation": {
            "temperature": temperature,
            "guard": guard,
            "words": None if words is None else asdict(words),
        },
        "training": training or {},
    }
    write(directory, values, weights, dtype)


def write(
    directory: str | Path, values: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Write a folder of plain values and of weights as `dtype`; see `save`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} is not finite as {dtype}; training diverged, or use float32")
    values = {"format": FORMAT, **values}
    with replacing(directory / WEIGHTS) as part:
        part.write_bytes(serialize(tensors))
    with replacing(directory / CONFIG) as part:
        part.write_text(json.dumps(values, indent=2) + "\n")


def load(directory: str | Path) -> WaveformModel:
    """Build the model of a folder, on the CPU, in float32, in evaluation mode.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the config or the weights are damaged, or do not belong together (the first
            differing key is named).
    """
    directory = Path(directory)
    config = read_config(directory)
    return restore(directory, lambda: WaveformModel(config))


def restore(directory: Path, build: Callable[[], Model]) -> Model:
    """Build a model and give it the weights of a folder, as `load` does; raises as `load`."""
    path = directory / WEIGHTS
    try:
        weights = load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); copy or export it again"
        ) from error
    with torch.device("meta"):
        model = build()
    expected = model.state_dict()
    for key in [*expected, *weights]:
        if key not in weights or key not in expected:
            where, what = (CONFIG, WEIGHTS) if key not in weights else (WEIGHTS, CONFIG)
            raise ValueError(
                f"{directory}: {key!r} is in {where} but not in {what}; they are not of one model"
            )
        if weights[key].shape != expected[key].shape:
            raise ValueError(
                f"{directory}: {key!r} is {tuple(expected[key].shape)} by {CONFIG} but "
                f"{tuple(weights[key].shape)} in {WEIGHTS}; they are not of one model"
            )
        if not (weights[key].is_floating_point() and weights[key].isfinite().all()):
            raise ValueError(
                f"{directory}: {key!r} in {WEIGHTS} is {weights[key].dtype} or not finite; it must "
                "hold finite floating-point numbers"
            )
    model.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    return model.eval()


def read_config(directory: Path) -> ModelConfig:
    """Read what defines a folder's model; raises as `load`."""
    return read(directory, "model", ModelConfig.from_dict)


def read(directory: Path, key: str, build: Callable[[Any], Config]) -> Config:
    """Build what stands under a key of a folder's config.json; raises as `load`."""
    values = _read(directory)
    if "format" in values and key not in values:
        raise ValueError(_of_another_kind(directory, key, values))
    try:
        if "format" not in values:
            raise ValueError(f"it says no format{_hint_of_transformers(values)}")
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, this version reads {FORMAT}")
        return build(values[key])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{directory / CONFIG} is not a model's config: {error}") from error


def _of_another_kind(directory: Path, key: str, values: dict[str, Any]) -> str:
    """Return what is said of a model that is of no use where it was given."""
    wanted, names = KINDS[key][0], ", ".join(shipped(key))
    other = next((kind for kind in KINDS if kind in values), None)
    if other is None:
        return f"{directory / CONFIG} holds no {wanted}, but {', '.join(values)}"
    what, command = KINDS[other]
    return (
        f"{directory.name if directory.parent == SHIPPED else directory} is no {wanted}, but "
        f"{'an' if what[0] in 'aeiou' else 'a'} {what}, for `audiomamba {command}`"
        + (f"; a {wanted} that ships: {names}" if names else "")
    )


def _hint_of_transformers(values: dict[str, Any]) -> str:
    if values.get("model_type") == TRANSFORMERS_ENCODER:
        return (
            ": it is a Transformers folder; in Python, AudiomambaEncoderModel (of "
            "audiomamba.adapters.for_transformers) .from_pretrained(FOLDER).encoder"
            ".save_pretrained(OUT) writes its encoder into a folder to give here"
        )
    return ": it is a Transformers folder, for AutoModel" if "model_type" in values else ""


def holds(directory: Path, key: str) -> bool:
    """Return whether a folder's config.json has a key, "model" or "encoder"; raises as `load`."""
    return key in _read(directory)


def read_temperature(directory: Path) -> float:
    """Read the temperature that a folder's model is made for; raises as `load`."""
    value = _generation(directory).get("temperature", 1.0)
    if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"{directory / CONFIG}: temperature is {value!r}; it must be 0 or more")
    return float(value)


def read_guard(directory: Path) -> bool:
    """Read whether a folder's model is made to be guarded from noise; raises as `load`."""
    value = _generation(directory).get("guard", False)
    if not isinstance(value, bool):
        raise ValueError(f"{directory / CONFIG}: guard is {value!r}; it must be true or false")
    if value and read_validation_bits(directory) is None:
        raise ValueError(
            f"{directory / CONFIG}: guard is true, and there are no validation bits, from which "
            "its limit follows; make it false"
        )
    return value


def read_words(directory: Path) -> Words | None:
    """Read which takes of a folder's model are wanted; raises as `load`."""
    value = _generation(directory).get("words")
    if value is None:
        return None
    try:
        return Words(**checked(Words, value, "words"))
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from None


def read_validation_bits(directory: Path) -> float | None:
    """Read a folder's model's bits per sample on validation data; None if they are not there."""
    training = _read(directory).get("training", {})
    bits = training.get("validation_bits_per_sample") if isinstance(training, dict) else None
    return float(bits) if isinstance(bits, (int, float)) and 0 < bits < float("inf") else None


def _generation(directory: Path) -> dict[str, Any]:
    values = _read(directory).get("generation", {})
    if not isinstance(values, dict):
        raise ValueError(f"{directory / CONFIG}: generation is {values!r}; it must be an object")
    return values


def _read(directory: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}; a model is a folder with {CONFIG} and {WEIGHTS}"
            )
    try:
        values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{directory / CONFIG} is not a model's config: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{directory / CONFIG} is not a model's config: it must hold an object")
    return values


def find(name: str | Path, *kinds: str) -> Path:
    """Return the folder of a model: a shipped name, a folder, or a Hugging Face id.

    A folder with the name of a shipped model is found as ./NAME. What comes from the Hub is
    downloaded once and cached. The folder is not opened: the error names what ships of `kinds`, of
    KINDS, alone.

    Raises:
        ValueError: If `name` is a pickle, which could run code, or a single file.
        FileNotFoundError: If it is nothing that is known.
    """
    path = Path(name)
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{name} is a pickle, which can run code; audiomamba loads a folder with {CONFIG} and "
            f"{WEIGHTS} only"
        )
    if name in shipped():  # before folders: a stray ./piano must not hide the model
        return SHIPPED / name
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"{name} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name)
    raise FileNotFoundError(
        f"no model {str(name)!r}: it is no folder, no Hugging Face id (owner/name), and not one of "
        f"the shipped: {', '.join(shipped(*kinds)) or 'none of this kind'}"
    )


def shipped(*kinds: str) -> list[str]:
    """Return the names of the models inside the package, of some of KINDS or of all."""
    folders = sorted(path.parent for path in SHIPPED.glob(f"*/{CONFIG}"))
    return [f.name for f in folders if not kinds or any(holds(f, kind) for kind in kinds)]


def _download(repository: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS, "README.md"]))
    except Exception as error:  # of the network's libraries too, which derive from nothing common
        if isinstance(error, RepositoryNotFoundError):
            what = "the Hugging Face Hub has none of this name, or not without `hf auth login`"
        elif constants.HF_HUB_OFFLINE:
            what = "HF_HUB_OFFLINE forbids to fetch it; unset that, or give a local folder"
        else:
            what = (
                f"it cannot be fetched from the Hugging Face Hub ({_root(error)}); check the "
                "name and the network, or give a local folder"
            )
        raise FileNotFoundError(f"{repository!r} is no folder here, and {what}") from error


def _root(error: BaseException) -> str:
    """Return what an error arose from, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return next(iter(str(error).splitlines()), "") or type(error).__name__
