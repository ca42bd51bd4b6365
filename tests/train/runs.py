"""A small model, a short run, and what it leaves."""

from pathlib import Path

import torch

from audiomamba.config import Tier, unet
from audiomamba.train_config import TrainConfig
from audiomamba.train_folder import LAST

MODEL = unet(
    8,
    1,
    (4, 2),
    Tier(mixer="lti", complex=True, d_state=4),
    Tier(mixer="s6", complex=True, d_state=4),
)


def config(data, out, **changes):
    values = {
        "steps": 8,
        "batch": 2,
        "length": 64,
        "validate_every": 3,
        "checkpoint_every": 2,
        "log_every": 3,
        "accelerator": "cpu",
    }
    return TrainConfig(data=str(data), out=str(out), **(values | changes))


def read(out):
    return torch.load(Path(out) / LAST, weights_only=True)
