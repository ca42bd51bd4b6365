"""Tokens to train on."""

import numpy as np
import pytest

from audiomamba.data.tokens import INDEX, TOKENS, TokenFile, write_index
from audiomamba.tokenizer import Tokenizer

LENGTHS = {"train": (700, 333, 900), "validation": (301, 150), "test": (200,)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of tokens: slow random walks, so that there is something to learn."""
    directory = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    clips, files = [], []
    for split, lengths in LENGTHS.items():
        for i, n in enumerate(lengths):
            walk = 128 + np.cumsum(random.integers(-2, 3, n))
            offset = sum(map(len, clips))
            clips.append(np.clip(walk, 0, 255).astype(np.uint8))
            files.append(
                TokenFile(
                    path=f"{split}/{i}.wav",
                    split=split,
                    offset=offset,
                    samples=n,
                    peak=1.0,
                    sha256="",
                )
            )
    (directory / TOKENS).write_bytes(b"".join(clip.tobytes() for clip in clips))
    write_index(
        directory / INDEX,
        files,
        tokenizer=Tokenizer(),
        sample_rate=16000,
        split_rule="by folder",
        skipped={},
    )
    return directory
