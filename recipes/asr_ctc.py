r"""What was said? Strings of digits, by CTC: Mamba both ways, Mamba as a stream, a Conformer.

    python recipes/asr_ctc.py --data FOLDER                              # three models, three seeds
    python recipes/asr_ctc.py --data FOLDER --models mamba --seeds 0 --d-model 64 --n-layers 2 \
        --batch 16 --steps 1000 --out runs/try                            # on a CPU, an hour
    python recipes/asr_ctc.py --smoke                 # tiny, without data: does everything work?

FOLDER is as in recipes/spoken_digits.py; `audiomamba fetch sc09 data/sc09` gets one. Three to seven
clips, of whichever speakers, with gaps of silence between them, become an utterance; no two of the
training are the same. CTC (Graves et al. 2006) is decoded greedily: the likeliest word of each
frame, runs once, blanks dropped.

Told are word error rates: on strings of validation clips, of test clips, and of the test's halves:
of speakers of whom there are training clips ("seen") and of others ("unseen"; `--hold-out SPEAKER
...` makes more of them, with `--each` one speaker after another). The same strings are tested for
all models and seeds. "mamba-causal" is also decoded as a stream, a few frames at a time, and the
percentage of strings told whose text is that of the whole pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from speech import TEST, Recipe, run
from speech_clips import Batch, Clips, join
from speech_config import Config
from speech_models import Network
from torch import Tensor

from audiomamba.encoder import MambaEncoder

BLANK = 0  # then the words
TESTED = 32  # strings side by side
PIECE = 7  # frames of the front end that a stream is given at a time


@dataclass(frozen=True, kw_only=True)
class Strings(Config):
    """A run of this recipe.

    Attributes:
        fewest: Clips of a string.
        most: Clips of a string.
        gap_seconds: Silence before, between and after clips, at most.
        test_strings: Tested of each kind, but no more than twice as many as there are clips.
    """

    out: str = "runs/asr_ctc"
    subsampling: int = 4
    batch: int = 64
    mask_share: float = 0.05
    fewest: int = 3
    most: int = 7
    gap_seconds: float = 0.3
    test_strings: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.fewest <= self.most:
            raise ValueError(f"fewest is {self.fewest}, most {self.most}; 1 <= fewest <= most")


def draw(
    clips: Clips,
    config: Strings,
    random: np.random.Generator,
    pool: NDArray[np.int64] | None = None,
) -> Batch:
    """Draw a batch of strings of training clips, or one string of the clips of a pool, as it is."""
    counts = random.integers(config.fewest, config.most + 1, config.batch if pool is None else 1)
    gaps = [random.uniform(0, config.gap_seconds, n + 1) for n in counts]
    if pool is not None:
        return join(clips, [random.choice(pool, n) for n in counts], gaps)
    drawn = clips.draw(random, counts.sum(), config.even_speakers)
    rows = np.split(drawn, counts.cumsum()[:-1])
    return join(clips, rows, gaps, config.gain_db, config.speed, random)


def loss(logits: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """Return the CTC loss in nats a word."""
    targets = torch.from_numpy(np.concatenate(batch.labels)).to(logits.device) + 1
    counts = torch.tensor([len(labels) for labels in batch.labels], device=logits.device)
    log_probabilities = logits.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probabilities, targets, lengths, counts, BLANK, zero_infinity=True)


def test(
    network: Network, clips: Clips, config: Strings, splits: Sequence[str]
) -> dict[str, float | None]:
    """Return word error rates in percent, None of a split that is empty; and of streams."""
    found: dict[str, float | None] = {}
    heard: list[tuple[Tensor, Tensor]] = []
    for split in splits:
        pool = clips.chosen(split)
        number = min(config.test_strings, 2 * len(pool))
        randoms = [np.random.default_rng((TEST, i)) for i in range(number)]
        strings = [draw(clips, config, random, pool) for random in randoms]
        errors = words = 0
        for first in range(0, number, TESTED):
            some = strings[first : first + TESTED]
            lengths = torch.cat([one.lengths for one in some])
            rows = [one.waveform[0] for one in some]
            waveform = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            device = network.head.weight.device
            logits, counts = network(waveform.to(device), lengths.to(device))
            for one, text in zip(some, decode(logits, counts), strict=True):
                errors += edit_distance(text, [1 + int(label) for label in one.labels[0]])
                words += len(one.labels[0])
            if split == "test":
                heard.append((waveform, lengths))
        found[split] = 100 * errors / words if words else None
    encoder: Any = network.encoder
    if heard and isinstance(encoder, MambaEncoder) and encoder.config.direction == "causal":
        same = [ok for waveform, lengths in heard for ok in streamed(network, waveform, lengths)]
        found["streamed alike"] = 100 * sum(same) / len(same)
    return found


def decode(logits: Tensor, counts: Tensor) -> list[list[int]]:
    """Return the likeliest label of each frame, runs once, without blanks."""
    rows = zip(logits.argmax(-1).cpu(), counts.tolist(), strict=True)
    best = [row[:n].unique_consecutive() for row, n in rows]
    return [row[row != BLANK].tolist() for row in best]


def streamed(network: Network, waveform: Tensor, lengths: Tensor) -> list[bool]:
    """Return whether each string's text is the same from a stream of a few frames at a time.

    Frames are a window of 25 ms each, so that the text lags the sound by that and the encoder's
    latency.
    """
    device = network.head.weight.device
    features, counts = network.front_end(waveform.to(device), lengths.to(device))
    state, parts = None, []
    for piece in features.split(PIECE, dim=1):
        y, state = network.encoder.stream(piece, state)
        parts.append(network.head(y))
    counts = network.encoder.output_lengths(counts)
    whole, _ = network(waveform.to(device), lengths.to(device))
    texts = zip(decode(torch.cat(parts, dim=1), counts), decode(whole, counts), strict=True)
    return [stream == text for stream, text in texts]


def edit_distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Return the fewest insertions, deletions and substitutions from one text to another."""
    costs = list(range(len(wanted) + 1))
    for i, one in enumerate(found, start=1):
        before, costs[0] = costs[0], i
        for j, other in enumerate(wanted, start=1):
            cost = min(costs[j] + 1, costs[j - 1] + 1, before + (one != other))
            before, costs[j] = costs[j], cost
    return costs[-1]


RECIPE = Recipe(
    doc=__doc__ or "",
    config=Strings(),
    models=("mamba", "mamba-causal", "conformer"),
    pool=False,
    outputs=lambda words: words + 1,
    draw=draw,
    loss=loss,
    test=test,
    measure="word error rate",
)

if __name__ == "__main__":
    run(RECIPE)
