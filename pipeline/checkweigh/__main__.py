"""The entry point: runs the command line and turns a crash into exit code 4.

It imports nothing that may be missing before it can say so: Python's own exit code for a failed import is 1, which
would read as a block. Nor does Ctrl-C while it imports leave a traceback.
"""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line; a broken installation exits 4."""
    try:
        from checkweigh.cli import entry
    except ImportError as error:
        print(f"checkweigh: the installation is broken, which is no verdict: {error}", file=sys.stderr)
        sys.exit(4)
    except KeyboardInterrupt:
        print("checkweigh: interrupted before anything was done", file=sys.stderr)
        exec("")
        sys.exit(4)
    try:
        entry()
    finally:
        # CPython ends by SIGINT, whatever the exit code, once Ctrl-C fell into a string being executed (as dataclasses
        # do) and though it was answered; executing another one makes it forget.
        exec("")


if __name__ == "__main__":
    run()
