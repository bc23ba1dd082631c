"""The main job and its halves: gate, pin, verify, diff, calibrate, report, schema."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from checkweigh.cli.common import (
    AsJson,
    BaselinePath,
    CandidatePath,
    ManifestPath,
    PolicyPath,
    app,
    bars,
    console,
    say,
)
from checkweigh.errors import ExitCode

if TYPE_CHECKING:
    from checkweigh.records.decision import Decision

Mlflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow", metavar="URI", envvar="CHECKWEIGH_MLFLOW",
        help="where the result is sent, or none; default: MLFLOW_TRACKING_URI, else a store of this machine",
    ),
]  # fmt: skip

Notify = Annotated[
    str | None,
    typer.Option(
        "--notify", metavar="URL", envvar="CHECKWEIGH_WEBHOOK",
        help="webhook that is told of a block or a waiver; give a secret one in the environment",
    ),
]  # fmt: skip


Attest = Annotated[
    str | None,
    typer.Option(
        "--attest", metavar="KEY", envvar="CHECKWEIGH_ATTEST",
        help="sign the verdict: PEM file of a private key, or env:NAME; its passphrase: CHECKWEIGH_KEY_PASSPHRASE",
    ),
]  # fmt: skip


@app.command()
def gate(
    baseline: BaselinePath,
    candidate: CandidatePath,
    policy: PolicyPath = Path("gates/default.yaml"),
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="default: runs/CANDIDATE-NAME")] = None,
    mlflow: Mlflow = None,
    notify: Notify = None,
    attest: Attest = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="afterwards, find the rate up to which each arm carries the load")
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="as a later attempt the policy declares: time anew, try an unservable one anew"
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure both, compare, decide. Exit 0 pass, 1 block, 2 bad input, 3 inconclusive, 4 broken."""
    from checkweigh.usecases.run_gate import GateRequest, run_gate

    out = out or Path("runs") / candidate.stem
    request = GateRequest(
        baseline=baseline, candidate=candidate, policy=policy, out=out, mlflow=mlflow, notify=notify, attest=attest,
        sweep=sweep, again=again,
    )  # fmt: skip
    with ExitStack() as stack:
        bar = stack.enter_context(bars())

        def show_verdict(decision: Decision) -> None:
            stack.close()  # no bar is drawn over it
            show(decision, out, as_json)

        outcome = run_gate(request, bar.update, say, show_verdict)
    raise typer.Exit(outcome.exit_code)


@app.command()
def pin(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Write the digests of everything the manifest names to NAME.lock.json."""
    from checkweigh.sources.pin import lock_path
    from checkweigh.sources.pin import pin as run

    notes: list[str] = []
    with bars() as bar:
        lock = run(manifest, bar.update, notes.append)
    if as_json:
        print(lock.model_dump_json(indent=2))
    for note in notes:
        say(f"note: {note}")
    say(f"pinned {lock.name}: {len(lock.pins.weights)} weight files -> {lock_path(manifest)}")


@app.command()
def verify(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Read every file, and check that it is what is pinned. Exit 2 and every difference otherwise."""
    from checkweigh.sources.digests import fresh_digests
    from checkweigh.sources.pin import verify as run

    with bars() as bar:
        resolved = run(manifest, bar.update, fresh_digests)
    if as_json:
        print(resolved.pins.model_dump_json(indent=2))
    say(f"verified {resolved.manifest.name}: everything is what the lock says")


@app.command()
def diff(baseline: BaselinePath, candidate: CandidatePath, as_json: AsJson = False) -> None:
    """Show which pins changed, and which metrics that leaves comparable."""
    import json

    from checkweigh.usecases.diff import diff as run

    with bars() as bar:
        difference = run(baseline, candidate, bar.update)
    if as_json:
        print(json.dumps(difference.as_json(), indent=2))
    else:
        console().print(difference.text(), markup=False, highlight=False)
    raise typer.Exit(ExitCode.BAD_INPUT if difference.undeclared else ExitCode.PASS)


@app.command()
def calibrate(
    manifest: ManifestPath,
    policy: PolicyPath = Path("gates/default.yaml"),
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="for logs; default: runs/calibrate")] = None,
    as_json: AsJson = False,
) -> None:
    """Execute a manifest five times against itself: noise floors, and the smallest honest margins."""
    from checkweigh.report.commands.show_calibration import table
    from checkweigh.usecases.calibrate import calibrate as run

    logs = (out or Path("runs") / "calibrate") / "logs"
    with bars() as bar:
        calibration, rules = run(manifest, policy, logs, bar.update)
    if as_json:
        print(calibration.model_dump_json(indent=2, by_alias=True))
    console().print(table(calibration, rules), highlight=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a gate, with its decision.json")],
    as_json: AsJson = False,
) -> None:
    """Show a stored decision again; the exit code is the gate's."""
    from checkweigh.report.safe import one_line
    from checkweigh.usecases.release.waive import read_stored_verdict

    stored = read_stored_verdict(run)
    show(stored.decision, stored.folder, as_json, stored.waiver)
    if stored.decision.outdated:
        say(f"UNVERIFIED: {stored.decision.outdated}")
    if stored.waiver:
        say(one_line(stored.waiver, 2500))
    raise typer.Exit(stored.decision.exit_code)


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="manifest, policy, evalset, lock, decision or guard")],
) -> None:
    """Print the JSON Schema of a document, for editors."""
    import json

    from checkweigh.usecases.schema import json_schema

    print(json.dumps(json_schema(kind), indent=2))


def show(decision: Decision, out: Path, as_json: bool, waived: str | None = None) -> None:
    """Print a decision. A waiver is a key of the JSON that no decision has, so that nobody reads one without it."""
    import json

    from checkweigh.report.terminal import print_decision

    if as_json:
        document = decision.model_dump(mode="json") | ({"waived": waived} if waived else {})
        print(json.dumps(document, indent=2))
    print_decision(decision, console())
    if (out / "report.html").is_file():
        say(f"report: {out / 'report.html'}")
