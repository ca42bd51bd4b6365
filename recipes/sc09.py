r"""Spoken digits, sample by sample: the SC09 experiment of the Mamba paper.

    python recipes/sc09.py                                                 # on a GPU
    python recipes/sc09.py --data FOLDER --out runs/try --preset tiny --steps 20 --batch 4
    python recipes/sc09.py --resume                                        # after an interruption
    python recipes/sc09.py --smoke                       # tiny, without data: does everything work?
    audiomamba generate -m runs/sc09 --seconds 1 -n 10

FOLDER is laid out as Speech Commands: a folder of clips for each word, validation_list.txt and
testing_list.txt; only the ten digits are read. Or it is tokens that `audiomamba prepare` has made,
of recordings that are split otherwise. Without --data it is data/sc09, fetched if it is not there
(2.4 GB). Clips shorter than a second end in silence, which is learnt, so that words end
(--no-learn-silence leaves it out); scores are of the clips alone. A step of 16 clips takes 14 GB on
a GPU and more than 22 on a CPU: ask for less there, as above. When the run ends, OUT/results.json
says how it does on the test clips, and results.png how it came there.

The paper's numbers (Gu & Dao 2023, arXiv 2312.00752, appendix E.4.2, tables 4 and 5): 200,000 steps
of 16 clips of a second, about a hundred times through the data; AdamW with betas 0.9 and 0.95 and
weight decay 0.1; learning rate 0.002 after 10 % of linear warm-up, then a cosine; gradients clipped
at 0.1. Published likelihoods are of clips that were each stretched to full scale: to compare,
prepare the data with `audiomamba prepare --encoding mu-law-sashimi --only zero,one,...`.

"6.1M" and "24.3M" are table 4's models, of real selective blocks alone. The others are table 5's,
of 6.1M's size: what is outside, then what is in the centre; "s4" is the diagonal S4D, and "mha" has
rotary positions. Models are scored with averaged weights (--ema-decay), of which the paper does not
speak.
"""

from __future__ import annotations

from audiomamba.data.corpora import DIGITS, fetch_sc09
from audiomamba.recipe import Recipe, Shape, run
from audiomamba.train_config import TrainConfig


def six_million(outer: str, centre: str) -> Shape:
    """Return table 5's shape."""
    return Shape(blocks=8, pools=(4, 4), outer=outer, centre=centre)


# 3.3M, small and tiny are smaller than any of the paper.
PRESETS = {
    "6.1M": six_million("mamba", "mamba"),
    "24.3M": Shape(width=96, blocks=15, pools=(4, 4), outer="mamba", centre="mamba"),
    "s4-mha": six_million("s4", "mha"),
    "s4-s4": six_million("s4", "s4"),
    "s4-mamba": six_million("s4", "mamba"),
    "mamba-mha": six_million("mamba", "mha"),
    "mamba-s4": six_million("mamba", "s4"),
    "mamba-mamba": six_million("mamba", "mamba"),
    "3.3M": Shape(blocks=4, pools=(4, 4), outer="mamba", centre="mamba"),
    "small": Shape(width=64, blocks=2, pools=(4, 4), outer="mamba", centre="mamba"),
    "tiny": Shape(width=16, blocks=1, pools=(4, 4), outer="mamba", centre="mamba"),
}

RECIPE = Recipe(
    description=__doc__ or "",
    presets=PRESETS,
    train=TrainConfig(
        out="runs/sc09", batch=16, length=16000, gradient_clip=0.1, learn_silence=True
    ),
    fetch=fetch_sc09,
    data="data/sc09",
    only=DIGITS,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the recipe, with the flags of the command line or these."""
    run(RECIPE, arguments)


if __name__ == "__main__":
    main()
