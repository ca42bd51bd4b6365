r"""Solo piano, sample by sample: the YouTubeMix experiment of the Mamba paper.

    python recipes/youtubemix.py --data FOLDER --out runs/piano            # on a GPU
    python recipes/youtubemix.py --data FOLDER --out runs/try --preset tiny --steps 20 \
        --batch 2 --length 4096                                            # on a CPU, a minute
    python recipes/youtubemix.py --data FOLDER --out runs/piano --resume   # after an interruption
    python recipes/youtubemix.py --smoke                 # tiny, without data: does everything work?
    audiomamba generate -m runs/piano

FOLDER holds audio of any format (it is prepared once, into OUT/data), or what `audiomamba prepare`
made. Without --data it is data/youtubemix, fetched from the Hugging Face Hub if it is not there:
four hours of solo piano, 16 kHz, in one-minute clips, to which the Hub has to give you access. Any
piano will do. When the run ends, OUT/results.json says how it does on the test clips, and
results.png how it came there.

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
a complex selective centre. Other presets have that figure's mixers in the same shape, or are small;
the figure's own models have 8 layers and 100,000 steps at 0.001. "s4" is the diagonal S4D, with an
MLP. Published bits are of pieces that were each stretched to full scale, and of other recordings
than yours: they cannot be compared. Models are scored with averaged weights (--ema-decay).
"""

from __future__ import annotations

from audiomamba.data.corpora import fetch_youtubemix
from audiomamba.recipe import Recipe, Shape, run
from audiomamba.train_config import TrainConfig

PRESETS = {
    "piano": Shape(),
    "mamba": Shape(outer="mamba-complex"),
    "mamba-real": Shape(outer="mamba", centre="mamba"),
    "mamba-s4": Shape(centre="mamba-s4"),
    "s4-mlp": Shape(outer="s4", centre="s4"),
    "small": Shape(width=32, blocks=2),
    "tiny": Shape(width=16, blocks=1, pools=(8, 8)),
}

RECIPE = Recipe(
    description=__doc__ or "",
    presets=PRESETS,
    train=TrainConfig(out="runs/youtubemix"),
    fetch=fetch_youtubemix,
    data="data/youtubemix",
)


def main(arguments: list[str] | None = None) -> None:
    """Run the recipe, with the flags of the command line or these."""
    run(RECIPE, arguments)


if __name__ == "__main__":
    main()
