"""Takes that hold a clear word: of streams in their order, those of which a classifier is sure.

Rejection by a classifier is how Razavi et al. 2019 (arXiv 1906.00446, section 3.3) choose among
what VQ-VAE-2 makes: the model is as it was, and what is given is more often what it was trained on.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from audiomamba.classifier import AudioClassifier, Heard
from audiomamba.sampling import check_real
from audiomamba.session import Take

if TYPE_CHECKING:
    from audiomamba.audiomodel import AudioModel

TRIES = 8  # streams for a take; where half are clear, one take in 256 is none


class Clear(NamedTuple):
    """A take, the word heard in it, and how many streams were drawn for it."""

    take: Take
    heard: Heard
    drawn: int


def clear_takes(
    model: AudioModel,
    classifier: AudioClassifier,
    *,
    num: int = 1,
    sure: float = 0.9,
    **options: Any,
) -> Generator[Clear, None, None]:
    """Make takes, each the next stream of which the classifier is sure.

    Take i depends on the seed, i and `sure` alone; its `index` is that of its stream, which makes
    it again. Of TRIES streams of none of which it is sure, the clearest is given.

    Args:
        model: What makes them.
        classifier: What hears them, at the model's sample rate.
        num: How many are given.
        sure: The least probability of a word, 0 to 1.
        **options: Of `AudioModel.generate_each`, but for a prompt.

    Returns:
        A generator of takes as they are finished. Closing it stops the work.

    Raises:
        ValueError: If an argument is out of range, the sample rates differ, or takes are too short.
    """
    check_real(sure, "sure")
    if not 0 <= sure <= 1:
        raise ValueError(f"sure is {sure}; it must be from 0 to 1")
    if classifier.config.sample_rate != model.sample_rate:
        raise ValueError(
            f"the classifier hears {classifier.config.sample_rate} Hz and {model.name} makes "
            f"{model.sample_rate}; they must be the same"
        )
    takes = model.generate_each(num=num * TRIES, **options)

    def chosen() -> Generator[Clear, None, None]:
        with closing(takes):
            for _ in range(num):
                best: Clear | None = None
                for drawn, take in enumerate(islice(takes, TRIES), 1):
                    heard = classifier.classify(take.waveform)
                    if best is None or heard.probability > best.heard.probability:
                        best = Clear(take, heard, drawn)
                    if heard.probability >= sure:
                        break
                assert best is not None  # num is at least 1, or `generate_each` had refused it
                yield best._replace(drawn=drawn)

    return chosen()
