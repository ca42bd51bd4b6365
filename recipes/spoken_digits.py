r"""Which word is it? Mamba, a GRU and a Conformer of one size and budget, on short clips.

    python recipes/spoken_digits.py --data FOLDER                         # four models, three seeds
    python recipes/spoken_digits.py --data FOLDER --front-end waveform    # from samples
    python recipes/spoken_digits.py --data FOLDER --models mamba --seeds 0 --d-model 64 \
        --n-layers 2 --steps 1000 --out runs/try                          # on a CPU, minutes
    python recipes/spoken_digits.py --smoke          # tiny, without data: does everything work?

FOLDER is laid out as Speech Commands is: a folder of clips for each word, SPEAKER_nohash_N.wav or
.flac, validation_list.txt and testing_list.txt. `audiomamba fetch sc09 data/sc09` gets its digits;
`--words` takes some of the words there are. A network sees a clip between up to `--shift-seconds`
of silence, louder or softer, with noise and hidden bands; the mean of its frames answers.

Told are the percentages of right answers on validation and test clips, and on the test's halves: of
speakers of whom there are training clips ("seen") and of others ("unseen"; `--hold-out SPEAKER ...`
makes more of them, with `--each` one speaker after another). What is in OUT/results.json is not
done again: the same command goes on, run by run, and started twice at once it shares them.

Mamba on mel bands is also written as a folder that `audiomamba classify -m` takes,
OUT/MODEL-mel-SEED-RUN, or OUT/MODEL-mel-SEED-SPEAKER-RUN of a speaker held out. RUN is "run" in
results.json; it stands for all settings and the clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from speech import Recipe, run
from speech_clips import Batch, Clips, join
from speech_config import Config
from speech_models import MODELS, Network
from torch import Tensor

from audiomamba.classifier import AudioClassifier, ClassifierConfig
from audiomamba.encoder import MambaEncoder

TESTED = 128  # clips side by side


@dataclass(frozen=True, kw_only=True)
class Words(Config):
    """A run of this recipe.

    Attributes:
        shift_seconds: Silence before a training clip, and after it, at most.
    """

    out: str = "runs/spoken_digits"
    shift_seconds: float = 0.3


def draw(clips: Clips, config: Words, random: np.random.Generator) -> Batch:
    """Draw training clips, each between silences."""
    rows = clips.draw(random, config.batch, config.even_speakers)[:, None]
    gaps = random.uniform(0, config.shift_seconds, (config.batch, 2))
    return join(clips, rows, gaps, config.gain_db, config.speed, random)


def loss(logits: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy in nats."""
    return F.cross_entropy(logits, torch.from_numpy(np.concatenate(batch.labels)).to(logits.device))


def test(
    network: Network, clips: Clips, config: Words, splits: Sequence[str]
) -> dict[str, float | None]:
    """Return the percentage of right answers of each split, None where it is empty."""
    found: dict[str, float | None] = {}
    for split in splits:
        chosen = clips.chosen(split)
        chosen = chosen[np.argsort(np.diff(clips.starts)[chosen])]  # little padding
        right = 0
        for first in range(0, len(chosen), TESTED):
            rows = chosen[first : first + TESTED, None]
            batch = join(clips, rows, np.zeros((len(rows), 2)))
            device = network.head.weight.device
            logits, _ = network(batch.waveform.to(device), batch.lengths.to(device))
            right += int((logits.argmax(1).cpu().numpy() == clips.labels[rows[:, 0]]).sum())
        found[split] = 100 * right / len(chosen) if len(chosen) else None
    return found


def keep(network: Network, clips: Clips, config: Words, folder: Path) -> str:
    """Write Mamba on mel bands as a folder for `audiomamba classify`."""
    encoder: Any = network.encoder
    if not isinstance(encoder, MambaEncoder) or config.front_end != "mel":
        return "not kept: `audiomamba classify` takes Mamba on mel bands"
    classifier = AudioClassifier(ClassifierConfig(words=clips.words, encoder=encoder.config))
    classifier.load_state_dict(network.state_dict())
    classifier.save_pretrained(folder, half=True)
    return f"try it: audiomamba classify -m {folder} FILE"


RECIPE = Recipe(
    doc=__doc__ or "",
    config=Words(),
    models=MODELS,
    pool=True,
    outputs=lambda words: words,
    draw=draw,
    loss=loss,
    test=test,
    measure="accuracy",
    keep=keep,
)

if __name__ == "__main__":
    run(RECIPE)
