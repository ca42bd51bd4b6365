"""How a toolkit's config file says which encoder to take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audiomamba.encoder import MambaEncoder
from audiomamba.encoder_config import EncoderConfig


def build_encoder(
    encoder: MambaEncoder | str | Path | None, options: dict[str, Any]
) -> MambaEncoder:
    """Return an encoder to train or to use, in training mode as any new module.

    Args:
        encoder: One that is shared; a folder or Hugging Face id, which is loaded; None makes one.
        options: Of `EncoderConfig`, for a new one.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If options are given beside an encoder or one is out of range, d_input differs
            from the encoder's, or files are damaged.
    """
    if encoder is None:
        return MambaEncoder(EncoderConfig(**options))
    if not isinstance(encoder, MambaEncoder):
        encoder = MambaEncoder.from_pretrained(encoder).train()
    config = encoder.config.to_dict()
    for name, value in options.items():
        if name not in config or config[name] != value:
            raise ValueError(
                f"{name} is {value!r}, but the encoder that is given has "
                f"{config.get(name, 'no such option')!r}; leave it out"
            )
    return encoder
