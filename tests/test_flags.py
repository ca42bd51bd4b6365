import argparse
import dataclasses

import pytest

from audiomamba.flags import add_flags, attribute_help, from_flags
from audiomamba.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """A thing.

    Attributes:
        name: What it is called,
            at length.
        count: How many, 100 % of them.
        rate: Hz; None is any.
        pair: Two numbers.
        loud: Whether.
        maybe: Whether, or None.
    """

    name: str = "x"
    count: int = 3
    rate: float | None = None
    pair: tuple[float, float] = (1.0, 2.0)
    loud: bool = False
    maybe: bool | None = None


def parse(config, *arguments):
    parser = argparse.ArgumentParser()
    add_flags(parser, config)
    return from_flags(parser.parse_args(list(arguments)), config)


def test_without_flags_the_config_stays():
    assert parse(Config(count=7)) == Config(count=7)
    assert parse(TrainConfig(data="d")) == TrainConfig(data="d")


def test_each_kind_of_field_is_parsed():
    arguments = ["--name", "y", "--count", "4", "--rate", "2.5", "--pair", "3", "4", "--loud"]
    arguments.append("--no-maybe")
    assert parse(Config(), *arguments) == Config("y", 4, 2.5, (3.0, 4.0), True, False)


def test_none_is_a_word_of_what_may_be_none():
    assert parse(Config(rate=2.0), "--rate", "None").rate is None
    with pytest.raises(SystemExit):
        parse(Config(), "--count", "none")


@pytest.mark.parametrize(
    "arguments",
    [["--count", "many"], ["--rate", "much"], ["--pair", "1"], ["--unknown"]],
)
def test_wrong_values_are_refused(arguments):
    with pytest.raises(SystemExit):
        parse(Config(), *arguments)


def test_help_is_the_docstring():
    helps = attribute_help(Config)
    assert helps["name"] == "What it is called, at length"
    assert list(helps) == [f.name for f in dataclasses.fields(Config)]
    assert list(attribute_help(TrainConfig)) == [f.name for f in dataclasses.fields(TrainConfig)]
    parser = argparse.ArgumentParser()
    add_flags(parser, Config())
    assert "How many, 100 % of them (default: 3)" in " ".join(parser.format_help().split())
