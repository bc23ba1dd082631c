"""Command line: parse, call one use case, map to an exit code. For people on stderr, for programs on stdout.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkweigh import __version__
from checkweigh.errors import CheckweighError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from checkweigh.progress import Bars
    from checkweigh.records.decision import Decision
    from checkweigh.sinks.content import Finished

app = typer.Typer(
    name="checkweigh",
    help="The gate that decides whether a change to a served language model may ship.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
policies = typer.Typer(help="Policies: what a change of one lets through.", no_args_is_help=True)
app.add_typer(policies, name="policy")
stores = typer.Typer(help="The measurement store: what it holds, and sweeping it.", no_args_is_help=True)
app.add_typer(stores, name="store")
# What a wrong command line raises: click's own exception, or that of the click inside newer typers.
_USAGE: Any = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130  # what typer makes of Ctrl-C
AGAIN = "checkweigh: interrupted; the same command goes on where it stopped"
ManifestPath = Annotated[Path, typer.Argument(metavar="MANIFEST", help="a manifest, NAME.yaml")]
Baseline = Annotated[Path, typer.Argument(metavar="BASELINE", help="manifest of what serves now")]
Candidate = Annotated[Path, typer.Argument(metavar="CANDIDATE", help="manifest of what would serve next")]
PolicyPath = Annotated[Path, typer.Option("--policy", metavar="P", help="checks and margins")]
Mlflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow", metavar="URI", envvar="CHECKWEIGH_MLFLOW",
        help="where the result is sent, or none; default: MLFLOW_TRACKING_URI, else a store of this machine",
    ),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]


@app.command()
def gate(
    baseline: Baseline,
    candidate: Candidate,
    policy: PolicyPath = Path("gates/default.yaml"),
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="default: runs/CANDIDATE-NAME")] = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Measure both, compare, decide. Exit 0 pass, 1 block, 2 bad input, 3 inconclusive, 4 broken."""
    from checkweigh.sinks.target import resolve
    from checkweigh.usecases.gate import gate as run
    from checkweigh.usecases.inputs import read_inputs
    from checkweigh.usecases.publish import publish

    out = out or Path("runs") / candidate.stem
    target = resolve(mlflow)
    finished: list[Finished] = []
    with _bars() as bars:
        inputs = read_inputs(baseline, candidate, policy, bars.update)
        decision = run(inputs, out, bars.update, tell=finished.append)
    _show(decision, out, as_json)
    if target is not None:
        publish(finished[0], out, target, _say)
    raise typer.Exit(decision.exit_code)


@app.command()
def pin(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Write the digests of everything the manifest names to NAME.lock.json."""
    from checkweigh.sources.pin import lock_path
    from checkweigh.sources.pin import pin as run

    with _bars() as bars:
        lock = run(manifest, bars.update)
    if as_json:
        print(lock.model_dump_json(indent=2))
    _say(f"pinned {lock.name}: {len(lock.pins.weights)} weight files -> {lock_path(manifest)}")


@app.command()
def verify(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Check that what is there is what is pinned. Exit 2 and every difference otherwise."""
    from checkweigh.sources.pin import verify as run

    with _bars() as bars:
        resolved = run(manifest, bars.update)
    if as_json:
        print(resolved.pins.model_dump_json(indent=2))
    _say(f"verified {resolved.manifest.name}: everything is what the lock says")


@app.command()
def diff(baseline: Baseline, candidate: Candidate, as_json: AsJson = False) -> None:
    """Show which pins changed, and which metrics that leaves comparable."""
    import json

    from checkweigh.usecases.diff import diff as run

    with _bars() as bars:
        difference = run(baseline, candidate, bars.update)
    if as_json:
        print(json.dumps(difference.as_json(), indent=2))
    else:
        _console().print(difference.text(), markup=False, highlight=False)
    raise typer.Exit(ExitCode.BAD_INPUT if difference.undeclared else ExitCode.PASS)


@app.command()
def calibrate(
    manifest: ManifestPath,
    policy: PolicyPath = Path("gates/default.yaml"),
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="for logs; default: runs/calibrate")] = None,
    as_json: AsJson = False,
) -> None:
    """Execute a manifest five times against itself: noise floors, and the smallest honest margins."""
    from checkweigh.report.calibration import table
    from checkweigh.usecases.calibrate import calibrate as run
    from checkweigh.usecases.inputs import read_calibration_inputs

    with _bars() as bars:
        resolved, rules, sets = read_calibration_inputs(manifest, policy, bars.update)
        found = run(resolved, rules, sets, (out or Path("runs") / "calibrate") / "logs", bars.update)
    if as_json:
        print(found.model_dump_json(indent=2, by_alias=True))
    _console().print(table(found, rules), highlight=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a gate, with its decision.json")],
    as_json: AsJson = False,
) -> None:
    """Show a stored decision again; the exit code is the gate's."""
    from checkweigh.usecases.stored import read_decision

    decision = read_decision(run)
    _show(decision, run if run.is_dir() else run.parent, as_json)
    raise typer.Exit(decision.exit_code)


evalset = typer.Typer(help="Evaluation sets: yours and the shipped ones.", no_args_is_help=True)
app.add_typer(evalset, name="evalset")


@evalset.command("check")
def evalset_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a set, with its card.yaml")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="its stored scores tell floor and ceiling")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List everything that is wrong or doubtful about a set, and its digest. Exit 0, or 2 with errors."""
    import json

    from checkweigh.usecases.evalset_check import check_evalset

    with _bars() as bars:
        checked = check_evalset(folder, baseline, bars.update)
    if as_json:
        print(json.dumps(checked.as_json(), indent=2))
    else:
        _console().print(checked.text(), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(checked.exit_code)


@app.command()
def schema(kind: Annotated[str, typer.Argument(help="manifest, policy, evalset, lock or decision")]) -> None:
    """Print the JSON Schema of a document, for editors."""
    import json

    from checkweigh.usecases.stored import json_schema

    print(json.dumps(json_schema(kind), indent=2))


@stores.command("ls")
def store_ls(as_json: AsJson = False) -> None:
    """List every measurement: what it is of, how far it came, what it takes."""
    import json

    from rich.console import Console

    from checkweigh.report.store import listing
    from checkweigh.usecases.housekeeping import entries, store_root

    found = entries(store_root())
    if as_json:
        print(json.dumps([entry.as_json() for entry in found], indent=2))
    else:
        Console().print(listing(found), highlight=False)


@stores.command("verify")
def store_verify(as_json: AsJson = False) -> None:
    """Check every record against its digests. Exit 2 when one is damaged."""
    import json

    from checkweigh.usecases.housekeeping import entries, store_root

    found = entries(store_root())
    damaged = [entry for entry in found if entry.state == "damaged"]
    if as_json:
        print(json.dumps([entry.as_json() for entry in damaged], indent=2))
    for entry in damaged:
        _say(f"damaged: {entry.path}: {entry.problem}")
    _say(f"{len(found)} measurements, {len(damaged)} damaged")
    raise typer.Exit(ExitCode.BAD_INPUT if damaged else ExitCode.PASS)


@stores.command("gc")
def store_gc(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="also what was last changed before")
    ] = None,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="also interrupted measurements")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say it, do not do it")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove damaged records and leftovers; never what is being measured."""
    import json

    from checkweigh.numbers import size
    from checkweigh.usecases.housekeeping import store_root, sweep

    done = sweep(store_root(), older_than=older_than, incomplete=incomplete, dry_run=dry_run)
    if as_json:
        print(json.dumps([{"path": str(s.path), "bytes": s.bytes, "why": s.why} for s in done], indent=2))
    for swept in done:
        _say(f"{'would remove' if dry_run else 'removed'} {swept.path} ({size(swept.bytes)}): {swept.why}")
    _say(f"{len(done)} things, {size(sum(s.bytes for s in done))}")


@policies.command("diff")
def policy_diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="the policy as it was")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="the policy as it would be")],
    as_json: AsJson = False,
) -> None:
    """List everything that got looser. Exit 1 unless each carries a because that is newer than the change."""
    import json
    from dataclasses import asdict

    from checkweigh.governance import loosenings
    from checkweigh.sources.documents import read_policy

    found = loosenings(read_policy(old), read_policy(new))
    if as_json:
        print(json.dumps([asdict(line) for line in found], indent=2))
    for line in found:
        reason = "with a new reason" if line.excused else "WITHOUT a new reason (because)"
        _say(f"looser: {line.path}: {line.old} -> {line.new}, {reason}")
    if not found:
        _say("nothing got looser")
    raise typer.Exit(ExitCode.PASS if all(line.excused for line in found) else ExitCode.BLOCK)


later = typer.Typer(name="mlflow", help="What concerns MLflow.", no_args_is_help=True)
app.add_typer(later)


@later.callback()
def _mlflow() -> None:
    """What concerns MLflow: results that could not be sent."""


@later.command()
def sync(
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="send all of it here, not where it was meant to go")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send what waits in the outbox. Exit 4 when something still waits."""
    import json

    from checkweigh.usecases.publish import sync as run

    found = run(mlflow, _say)
    if as_json:
        print(json.dumps(found, indent=2))
    raise typer.Exit(ExitCode.BROKEN if found["waiting"] else ExitCode.PASS)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _bars() -> Bars:
    from checkweigh.progress import Bars

    return Bars(_console())


def _say(text: str) -> None:
    """A line on stderr. One that cannot be written must not change the exit code."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def _show(decision: Decision, out: Path, as_json: bool) -> None:
    from checkweigh.report.terminal import print_decision

    if as_json:
        print(decision.model_dump_json(indent=2))
    print_decision(decision, _console())
    if (out / "report.html").is_file():
        _say(f"report: {out / 'report.html'}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Any error that is not a verdict is 2 or 4, never 0 or 1."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except CheckweighError as error:
        _say(f"checkweigh: {error}")
        _say(getattr(error, "log_tail", ""))
        return int(error.exit_code)
    except _USAGE as error:
        with suppress(OSError):
            error.show()
        return int(ExitCode.BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except OSError as error:
        _say(f"checkweigh: this host failed, which is no verdict: {error}")
        return int(ExitCode.BROKEN)
    except SystemExit:  # typer's answer to a closed pipe is exit 1, which would read as a block
        _say("checkweigh: the output was closed before everything was said")
        return int(ExitCode.BROKEN)
    if result == _INTERRUPTED:
        _say(AGAIN)
    code = ExitCode.PASS if result is None else result
    return int(code) if code in list(ExitCode) else int(ExitCode.BROKEN)


def _deaf() -> None:
    """No Ctrl-C from here on: all is said and done, and Python would end with a traceback."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def entry() -> None:
    """Console script: like ``main``, and an unexpected crash exits 4, not Python's 1."""
    try:
        code = main()
        _deaf()
        sys.stdout.flush()
    except BaseException as error:
        _deaf()
        code = int(ExitCode.BROKEN)
        if isinstance(error, KeyboardInterrupt):  # a second one, while the first was being answered
            _say(AGAIN)
        elif isinstance(error, OSError):
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), 1
            )  # else Python tries again when it ends, and exits 120
            _say(f"checkweigh: the result could not be written to stdout ({error.strerror})")
        else:
            import traceback

            _say(traceback.format_exc())
            _say("checkweigh: this is a fault of the tool, not a verdict")
    sys.exit(code)
