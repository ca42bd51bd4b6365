"""The command line: its commands, its exit codes, its one line for every error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import audiomamba
from audiomamba.commands import options
from audiomamba.commands.classify import classify
from audiomamba.commands.data import evaluate, fetch, prepare
from audiomamba.commands.encode import encode
from audiomamba.commands.export import export
from audiomamba.commands.failure import INTERRUPTED, failure
from audiomamba.commands.generate import generate

BROKEN_PIPE = 128 + 13


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `audiomamba`; exit with 0 if all went well, 1 on an error, 2 if misused, 130 on Ctrl-C.

    Where who reads the output has gone, it ends with 141, as if by SIGPIPE, and says nothing.

    Args:
        arguments: Without the program's name; None takes them from the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(arguments or ["--help"], prog_name="audiomamba", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "audiomamba"
        code = _fail(f"{error.format_message().rstrip('.')}; see {where} --help", error.exit_code)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except click.Abort:
        code = INTERRUPTED
    except Exception as error:  # the edge of the program: a user reads one line
        if "--debug" in arguments:
            raise
        code = _fail(_one_line(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _one_line(error: Exception) -> str:
    if isinstance(error, (ImportError, MemoryError, ValueError)):
        return str(error)
    return failure(error) or f"{type(error).__name__}: {error}; --debug tells where"


class Program(click.Group):
    """Ends in silence where who reads the output has gone, and tells of Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's flush
            raise click.exceptions.Exit(BROKEN_PIPE) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(
    cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(audiomamba.__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Raw audio, one sample at a time."""


for command in (generate, encode, classify, fetch, prepare, evaluate, export):
    cli.add_command(command)


@cli.command()
@options.debug
def doctor() -> None:
    """Tell what works on this machine, and how to get the rest."""
    from audiomamba.doctor import examine

    text, healthy = examine()
    click.echo(text)
    raise click.exceptions.Exit(0 if healthy else 1)
