"""Command line: parse, call one use case, map to an exit code. For people on stderr, for programs on stdout.

Heavy imports happen inside the commands, so that ``--help`` answers at once. Each module registers its commands with
the application when it is imported; ``COMMANDS`` is the order of ``--help``.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from checkweigh import __version__
from checkweigh.cli import (
    attest,
    ci,
    deliver,
    engines,
    evalset,
    gate,
    plan,
    policy,
    registry,
    serve,
    setup,
    store,
)
from checkweigh.cli.common import app, harmless_output, say
from checkweigh.errors import CheckweighError, ExitCode

COMMANDS = (
    setup,
    gate,
    plan,
    evalset,
    engines,
    store,
    policy,
    deliver,
    attest,
    registry,
    serve,
    ci,
)
__all__ = ["app", "entry", "main"]
_ORDER = [module.__name__ for module in COMMANDS]
app.registered_commands.sort(key=lambda command: _ORDER.index(command.callback.__module__))
# What a wrong command line raises: click's own exception, or that of the click inside newer typers.
_USAGE: Any = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130  # what typer makes of Ctrl-C
AGAIN = "checkweigh: interrupted; the same command goes on where it stopped"


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Any error that is not a verdict is 2 or 4, never 0 or 1."""
    with harmless_output():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    try:
        result = app(args=arguments, standalone_mode=False)
    except CheckweighError as error:
        say(f"checkweigh: {error}")
        say(getattr(error, "log_tail", ""))
        return int(error.exit_code)
    except _USAGE as error:
        with suppress(OSError):
            error.show()
        return int(ExitCode.BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except OSError as error:
        say(f"checkweigh: this host failed, which is no verdict: {error}")
        return int(ExitCode.BROKEN)
    except SystemExit:  # typer's answer to a closed pipe is exit 1, which would read as a block
        say("checkweigh: the output was closed before everything was said")
        return int(ExitCode.BROKEN)
    if result == _INTERRUPTED:
        say(AGAIN)
    code = ExitCode.PASS if result is None else result
    return int(code) if code in list(ExitCode) else int(ExitCode.BROKEN)


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C from here on: the work is done, and Python would end with a traceback."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def entry() -> None:
    """Console script: like ``main``, and an unexpected crash exits 4, not Python's 1."""
    try:
        code = main()
        _ignore_interrupts()
        sys.stdout.flush()
    except BaseException as error:
        _ignore_interrupts()
        code = int(ExitCode.BROKEN)
        if isinstance(error, KeyboardInterrupt):  # a second one, while the first was being answered
            say(AGAIN)
        elif isinstance(error, OSError):
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), 1
            )  # else Python tries again when it ends, and exits 120
            say(f"checkweigh: the result could not be written to stdout ({error.strerror})")
        else:
            import traceback

            with harmless_output():
                say(traceback.format_exc())
            say("checkweigh: this is a fault of the tool, not a verdict")
    sys.exit(code)
