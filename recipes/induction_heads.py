r"""Induction heads: recall what followed a token, at 4096 times the length trained on.

    python recipes/induction_heads.py                       # Mamba, the paper's settings, on a GPU
    python recipes/induction_heads.py --preset mamba-s4     # time-invariant: not expected to
    python recipes/induction_heads.py --preset tiny         # on a CPU, half a minute
    python recipes/induction_heads.py --resume              # after an interruption
    python recipes/induction_heads.py --smoke               # seconds: does everything work?

A sequence is random but for one token, the trigger, which comes twice: somewhere, and at the end.
The answer is the token that followed it the first time:

    3 1 0 5 * 2 6 6 1 4 *   ->   2

The paper (Gu & Dao 2023, arXiv 2312.00752, section 4.1.2, appendix E.1.2, table 11) trains two
layers at length 256 with 16 tokens on fresh batches of 8, with Adam at a constant learning rate and
no weight decay: Mamba (width 64) 25 "epochs" of 8192 steps at 1e-3; attention (width 128, 8 heads,
here with rotary positions) 50 of them at 2e-4. It tests at 2^6 to 2^20, and Mamba alone is right at
every length. Its percentages are multiples of 1/256, hence 256 sequences a length here.

What it does not say, and is chosen here: the trigger is the last of the 16 tokens and occurs
nowhere else, and its first place is any; only the answer has a loss; gradients are clipped at 1.
Its code is not published, and its Mamba has 74K parameters, ours 67,536. Attention has an MLP here,
and no window at all: each test lets it see all there is, in memory that grows with the square of
the length, so it stops at 2^14 as in the paper. The rows mamba-s4 (Mamba around a complex S4D) and
s4 (S4 + MLP) are not in its table; they have its 2e-4 for "others" and as many steps as Mamba.

`--preset tiny` trains at length 32 with 8 tokens, and is right to four times that; with
`--steps 1000` and `--mixer lti --complex` or `--mixer attention` it learns length 32 as well, and
at four times that is right in a third of the cases.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from synthetic import Config, Tokens
from synthetic_run import Recipe, run

EPOCH = 8192  # steps

MAMBA = Config(
    out="runs/induction_heads/mamba",
    mixer="s6",
    d_model=64,
    n_layers=2,
    vocabulary=16,
    answers=1,
    length=256,
    batch=8,
    steps=25 * EPOCH,
    learning_rate=1e-3,
    weight_decay=0.0,
    test_from=2**6,
    test_to=2**20,
    test_rows=256,
    validate_every=EPOCH,
)
OTHER = dataclasses.replace(MAMBA, learning_rate=2e-4)
PRESETS = {
    "mamba": MAMBA,
    "mamba-s4": dataclasses.replace(
        OTHER, out="runs/induction_heads/mamba-s4", mixer="lti", complex=True
    ),
    "s4": dataclasses.replace(OTHER, out="runs/induction_heads/s4", mixer="s4", d_state=64),
    "attention": dataclasses.replace(
        OTHER,
        out="runs/induction_heads/attention",
        mixer="attention",
        d_model=128,
        expand=1,
        steps=50 * EPOCH,
        test_to=2**14,
        test_batch=8,
        test_chunk=2048,
    ),
    "tiny": dataclasses.replace(
        MAMBA,
        out="runs/induction_heads/tiny",
        d_model=32,
        n_heads=2,
        vocabulary=8,
        length=32,
        batch=16,
        steps=400,
        learning_rate=3e-3,
        test_from=2**4,
        test_to=2**10,
        validate_every=100,
        log_every=50,
    ),
}
# Table 11, in percent, from 2^6 on.
ROPE = (100, 100, 100, 83.6, 31.3, 18.4, 8.6, 9.0, 5.5)
PAPER = {
    "mamba": {2**i: 100.0 for i in range(6, 21)},
    "attention": {2 ** (6 + i): score for i, score in enumerate(ROPE)},
}


def draw(
    random: np.random.Generator, rows: int, length: int, config: Config
) -> tuple[Tokens, Tokens]:
    """Draw sequences.

    With more answers than one, as many tokens follow the trigger each time, and all but the last
    are given before the next is asked for.

    Returns:
        Tokens (rows, length), and the answers (rows, config.answers) to the last of them.
    """
    n, trigger = config.answers, config.vocabulary - 1
    tokens = random.integers(trigger, size=(rows, length), dtype=np.uint8)
    first = random.integers(length - 2 * n, size=(rows, 1))  # the trigger and n tokens fit before
    answers = np.take_along_axis(tokens, first + np.arange(1, n + 1), axis=1)
    np.put_along_axis(tokens, first, trigger, axis=1)
    tokens[:, -n] = trigger
    tokens[:, length - n + 1 :] = answers[:, :-1]
    return tokens, answers


RECIPE = Recipe(doc=__doc__, draw=draw, presets=PRESETS, paper=PAPER)

if __name__ == "__main__":
    run(RECIPE)
