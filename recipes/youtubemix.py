r"""Solo piano, sample by sample: the YouTubeMix experiment of the Mamba paper.

    python recipes/youtubemix.py --data FOLDER --out runs/piano            # on a GPU
    python recipes/youtubemix.py --data FOLDER --out runs/try --preset tiny --steps 20 \
        --batch 2 --length 4096                                            # on a CPU, a minute
    python recipes/youtubemix.py --data FOLDER --out runs/piano --resume   # after an interruption
    audiomamba generate -m runs/piano

FOLDER holds audio of any format (it is prepared once, into OUT/data), or what `audiomamba prepare`
made. YouTubeMix itself is four hours of solo piano, 16 kHz, in one-minute clips; any piano will do.

The paper's numbers (Gu & Dao 2023, arXiv 2312.00752, appendices E.2.1 and E.4.1, table 14):
200,000 steps of about a million samples; AdamW with betas 0.9 and 0.95 and weight decay 0.1;
learning rate 0.002 after 10 % of linear warm-up, then a cosine to 1e-5; gradients clipped at 1.
Clip length against batch, at an equal number of samples a step:

    --length   8192  16384  30720  61440  120832  239616  479232  958464
    --batch     128     64     32     16       8       4       2       1

Longer is better up to 479232. A step of a million samples takes some 20 GB; on a CPU ask for less,
such as --batch 1 --length 32768. On one small device use `--carry-state --batch 16 --length 8192`:
chunks of one clip follow each other, and the state goes on from one to the next.

The model "piano" has the paper's size, 3.5M (width 64, 3 blocks a stage, pooling 16 and 16), with
mixers that its figure 10 found among the best: time-invariant complex blocks ("Mamba-S4") outside,
a complex selective centre. Other presets have that figure's mixers in the same shape, or are small.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.data.tokens import INDEX, TokenStore
from audiomamba.flags import add_flags, from_flags
from audiomamba.train_config import TrainConfig

try:
    from audiomamba.train import train
except ModuleNotFoundError as error:
    raise SystemExit(str(error)) from None

LTI = Tier(mixer="lti", complex=True)
S6 = Tier(mixer="s6", complex=True)
REAL = Tier(mixer="s6")
S4 = Tier(mixer="s4", d_state=64)


def shape(outer: Tier, centre: Tier) -> ModelConfig:
    """Return the paper's YouTubeMix shape."""
    return unet(64, 3, (16, 16), outer, centre)


PRESETS = {
    "piano": ModelConfig(),
    "mamba": shape(S6, S6),
    "mamba-real": shape(REAL, REAL),
    "mamba-s4": shape(LTI, LTI),
    "s4-mlp": shape(S4, S4),
    "small": unet(32, 2, (16, 16), LTI, S6),
    "tiny": unet(16, 1, (8, 8), LTI, S6),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: what is trained, and how."""

    model: ModelConfig
    train: TrainConfig


CONFIG = Recipe(model=PRESETS["piano"], train=TrainConfig(out="runs/youtubemix"))


def main(arguments: list[str] | None = None) -> None:
    """Prepare, train, say where the model is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="piano", help="shape of the model")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add_flags(parser, CONFIG.train)
    flags = parser.parse_args(arguments)
    if not flags.data:
        parser.error("no data; give a folder of piano recordings by --data FOLDER")
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        recipe = Recipe(model=PRESETS[flags.preset], train=from_flags(flags, CONFIG.train))
        recipe = with_data(recipe)
        outcome = train(recipe.model, recipe.train, resume=flags.resume)
    except (OSError, ValueError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
    if outcome.rank:
        return
    score = outcome.bits_per_sample
    print(f"step {outcome.step} of {recipe.train.steps}", end="")
    print(f", validation {score:.4f} bits per sample" if score is not None else "")
    if outcome.stopped:
        print(f"stopped by {outcome.stopped}; go on: the same command with --resume")
    print(f"listen: audiomamba generate -m {Path(recipe.train.out).resolve()}")
    if outcome.stopped in signal.Signals.__members__:
        raise SystemExit(128 + signal.Signals[outcome.stopped])  # as a shell has it


def with_data(recipe: Recipe) -> Recipe:
    """Prepare a folder of audio, once, and take tokenizer and sample rate from what is prepared."""
    data, out = Path(recipe.train.data), Path(recipe.train.out) / "data"
    if not (data / INDEX).exists():
        if not (out / INDEX).exists():
            from audiomamba.data.prepare import prepare  # reads audio; tokens alone need none of it

            print(f"preparing {data} into {out}", file=sys.stderr)
            prepare(data, out, recipe.model.tokenizer, sample_rate=recipe.model.sample_rate)
        data = out
    store = TokenStore(data)
    return Recipe(
        model=dataclasses.replace(
            recipe.model, tokenizer=store.tokenizer, sample_rate=store.sample_rate
        ),
        train=dataclasses.replace(recipe.train, data=str(data)),
    )


if __name__ == "__main__":
    main()
