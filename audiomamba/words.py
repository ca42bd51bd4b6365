"""Takes that hold a clear word: of streams in their order, those of which a classifier is sure.

Rejection by a classifier is how Razavi et al. 2019 (arXiv 1906.00446, section 3.3) choose among
what VQ-VAE-2 makes: the model is as it was, and what is given is more often what it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from audiomamba import checkpoint
from audiomamba.classifier import AudioClassifier, Heard
from audiomamba.config import Words
from audiomamba.files import sha256
from audiomamba.sampling import check_whole
from audiomamba.session import Take

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from audiomamba.arguments import Options
    from audiomamba.audiomodel import AudioModel
    from audiomamba.generate import Batch

TRIES = 8  # streams for a take; where half are clear, one take in 256 is not
SECONDS = 0.1, 1.0  # of a take: what is shorter or longer, no classifier of words has learnt


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who says which takes hold a word.

    Attributes:
        classifier: What hears them.
        words: Which one that is, and how sure it is to be.
        weights_sha256: Of the classifier's file of weights, in hex.
    """

    classifier: AudioClassifier
    words: Words
    weights_sha256: str


def judge(model: AudioModel, sure: float | None = None) -> Judge:
    """Load the classifier that a model names.

    Args:
        model: What makes takes.
        sure: The least probability of a word, above 0 and at most 1; None is the model's.

    Raises:
        ValueError: If the model names no classifier, it hears another sample rate, or sure is out
            of range.
    """
    words = model.words
    if words is None:
        raise ValueError(f"{model.name} names no classifier of words, by which to choose its takes")
    if sure is not None:
        words = Words(classifier=words.classifier, sure=sure)
    folder = checkpoint.find(words.classifier, "classifier")
    classifier = AudioClassifier.from_pretrained(folder)
    if classifier.config.sample_rate != model.sample_rate:
        raise ValueError(
            f"{words.classifier} hears {classifier.config.sample_rate} Hz and {model.name} makes "
            f"{model.sample_rate} Hz; name another classifier in its config"
        )
    weights = sha256(folder / checkpoint.WEIGHTS)
    return Judge(classifier=classifier, words=words, weights_sha256=weights)


class Clear(NamedTuple):
    """A take, the word heard in it, and how many streams were drawn for it."""

    take: Take
    heard: Heard
    drawn: int


def clear_takes(
    model: AudioModel,
    judge: Judge,
    *,
    samples: int,
    first: int = 0,
    progress: Callable[[int], None] | None = None,
    batch: Batch = None,
    **options: Unpack[Options],
) -> Generator[Clear, None, None]:
    """Make takes, each the next stream of which a judge is sure.

    Of TRIES streams of none of which it is sure, the surest is given. A take's `index` is that of
    its stream, which makes it again; no stream is made that is not heard.

    Args:
        model: What makes them.
        judge: Who chooses.
        samples: Of each take.
        first: Number of the first stream.
        progress: Called with the count of samples newly made, and with minus those of a stream that
            is not given.
        batch: As `AudioModel.generate_each`.
        **options: Of `AudioModel.generate`; num, None being one, is how many are given.

    Returns:
        A generator of takes as they are finished. Closing it stops the work.

    Raises:
        ValueError: If an argument is out of range, or takes are too short to be heard.
    """
    asked = options.get("num")
    num = 1 if asked is None else check_whole(asked, "num")
    if num < 1:
        raise ValueError(f"num is {num}; it must be at least 1")
    shortest = judge.classifier.shortest
    if check_whole(samples, "samples") < shortest:
        raise ValueError(f"samples is {samples}; a word is heard in {shortest} at least")

    def streams(begin: int, count: int) -> Generator[Take, None, None]:
        options["num"] = count
        return model.generate_each(
            samples=samples, first=begin, batch=batch, progress=progress, **options
        )

    beginning = streams(first, num)  # refuses now what is out of range

    def chosen() -> Generator[Clear, None, None]:
        takes, heard_of, best, drawn, given = beginning, first, None, 0, 0
        while True:
            with closing(takes):
                for take in takes:
                    heard_of, drawn = heard_of + 1, drawn + 1
                    heard = judge.classifier.classify(take.waveform)
                    if best is None or heard.probability > best.heard.probability:
                        best = Clear(take, heard, drawn)
                    if heard.probability < judge.words.sure and drawn < TRIES:
                        if progress is not None:
                            progress(-samples)
                        continue
                    given += 1
                    yield best._replace(drawn=drawn)
                    best, drawn = None, 0
            if given == num:
                return
            takes = streams(heard_of, num - given)  # each of them is needed

    return chosen()
