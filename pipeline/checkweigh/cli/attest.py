"""Signed verdicts: ``admit`` and ``waive``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, ManifestPath, PolicyPath, app, bars, say
from checkweigh.cli.gate import Mlflow, Notify

PublicKey = Annotated[
    Path, typer.Option("--key", metavar="K", envvar="CHECKWEIGH_PUBLIC_KEY", help="PEM of the public key")
]
PrivateKeyOption = Annotated[
    str,
    typer.Option(
        "--key", metavar="KEY", envvar="CHECKWEIGH_KEY", help="PEM file of a private key, or env:NAME"
    ),
]
Attestation = Annotated[Path, typer.Option("--attestation", metavar="F", help="attestation.json of the gate")]
MaxAge = Annotated[str, typer.Option("--max-age", metavar="D", help="such as 12h or 30d, since the gate")]


@app.command()
def admit(
    manifest: ManifestPath,
    attestation: Attestation,
    key: PublicKey,
    policy: PolicyPath,
    max_age: MaxAge = "30d",
    waiver: Annotated[
        Path | None, typer.Option(metavar="F", help="waiver.json, where there was no pass")
    ] = None,
    waiver_key: Annotated[
        Path | None, typer.Option(metavar="K", help="PEM of who may waive; default: --key")
    ] = None,
    weights_signature: Annotated[
        Path | None, typer.Option(metavar="F", help="default: weights.sig beside the attestation")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify at deploy time that these bytes passed that policy. Exit 0 admitted, 1 refused, 2 bad input, 4 broken."""
    import json

    from checkweigh.usecases.durations import duration
    from checkweigh.usecases.release.admit import Proof
    from checkweigh.usecases.release.admit import admit as run

    proof = Proof(
        attestation=attestation, key=key, policy=policy, max_age=duration("--max-age", max_age),
        waiver=waiver, waiver_key=waiver_key, weights_signature=weights_signature,
    )  # fmt: skip
    with bars() as bar:
        found = run(manifest, proof, bar.update)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    for line in found.lines(manifest):
        say(line)
    raise typer.Exit(found.exit_code)


@app.command()
def waive(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a gate that did not pass")],
    manifest: ManifestPath,
    reason: Annotated[str, typer.Option(help="why it has to be served all the same")],
    owner: Annotated[str, typer.Option(help="who answers for it")],
    key: PrivateKeyOption,
    expires: Annotated[str, typer.Option(metavar="D", help="such as 12h or 7d, at most 90d")] = "24h",
    notify: Notify = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Sign an expiring waiver of a verdict, visible in every output. The verdict stays what it is."""
    from checkweigh.attest.keys import private_key
    from checkweigh.sinks.mlflow_target import resolve
    from checkweigh.sinks.webhook_payload import WaiverNotice, hook
    from checkweigh.usecases.deliver.webhook import announce
    from checkweigh.usecases.durations import duration
    from checkweigh.usecases.read_decision import read_decision
    from checkweigh.usecases.release.attest import WAIVER
    from checkweigh.usecases.release.attest import waive as sign
    from checkweigh.usecases.release.registry import show_waiver

    receiver, target = hook(notify), resolve(mlflow)
    made = sign(run, manifest, reason, owner, duration("--expires", expires), private_key(key))
    if as_json:
        print(made.model_dump_json(indent=2, by_alias=True))
    say(f"{made.sentence()}: {(run if run.is_dir() else run.parent) / WAIVER}")
    if receiver is not None:
        told = WaiverNotice(owner=made.owner, reason=made.reason, expires=made.expires)
        announce(read_decision(run), receiver, say, told)
    if target is not None:
        show_waiver(made, target, say)
