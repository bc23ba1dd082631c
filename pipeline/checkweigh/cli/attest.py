"""Signed verdicts: ``admit`` and ``waive``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from checkweigh.cli.common import (
    AcceptUnverified,
    AsJson,
    ManifestPath,
    PolicyPath,
    StatedEvalset,
    app,
    bars,
    duration,
    say,
)
from checkweigh.cli.gate import Mlflow, Notify

if TYPE_CHECKING:
    from checkweigh.records.attestation import Waiver

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
    evalset: StatedEvalset = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="M", help="what it must have been compared with: a manifest, or models:/NAME@ALIAS"
        ),
    ] = None,
    tool: Annotated[
        str | None, typer.Option(metavar="D", help="the only tool that may have decided, sha256:...")
    ] = None,
    accept_unverified: AcceptUnverified = False,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Verify at deploy time that these bytes passed that policy. Exit 0 admitted, 1 refused, 2 bad input, 4 broken."""
    import json

    from checkweigh.usecases.release.admit import Proof
    from checkweigh.usecases.release.admit import admit as run
    from checkweigh.usecases.release.policy_content import stated_evalsets

    proof = Proof(
        attestation=attestation, key=key, policy=policy, max_age=duration("--max-age", max_age),
        waiver=waiver, waiver_key=waiver_key, weights_signature=weights_signature,
        evalsets=stated_evalsets(evalset or [], [policy]), baseline=baseline, mlflow=mlflow, tool=tool,
        accept_unverified=accept_unverified,
    )  # fmt: skip
    with bars() as bar:
        admission = run(manifest, proof, bar.update)
    if as_json:
        print(json.dumps(admission.as_json(), indent=2))
    for line in admission.lines(manifest):
        say(line)
    raise typer.Exit(admission.exit_code)


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
    from checkweigh.usecases.release.waive import WaiverRequest
    from checkweigh.usecases.release.waive import waive as sign

    def show(waiver: Waiver) -> None:
        if as_json:
            print(waiver.model_dump_json(indent=2, by_alias=True))

    request = WaiverRequest(
        run=run, manifest=manifest, reason=reason, owner=owner, lifetime=duration("--expires", expires), key=key,
        notify=notify, mlflow=mlflow,
    )  # fmt: skip
    sign(request, say, show)
