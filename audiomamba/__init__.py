"""Raw audio, one sample at a time: state space models that speak faster than real time.

Example:
    >>> import audiomamba
    >>> model = audiomamba.load("piano")  # doctest: +SKIP
    >>> waveform = model.generate(seconds=10, seed=0)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiomamba.audiomodel import AudioModel as AudioModel
    from audiomamba.config import ModelConfig as ModelConfig
    from audiomamba.encoder import MambaEncoder as MambaEncoder
    from audiomamba.encoder_config import EncoderConfig as EncoderConfig
    from audiomamba.loading import load as load
    from audiomamba.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"
__all__ = [
    "AudioModel",
    "EncoderConfig",
    "MambaEncoder",
    "ModelConfig",
    "Tokenizer",
    "__version__",
    "load",
]

# Loaded on first use: the command line's --help must not wait for torch.
_HOME = {
    "AudioModel": "audiomamba.audiomodel",
    "EncoderConfig": "audiomamba.encoder_config",
    "MambaEncoder": "audiomamba.encoder",
    "ModelConfig": "audiomamba.config",
    "Tokenizer": "audiomamba.tokenizer",
    "load": "audiomamba.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
