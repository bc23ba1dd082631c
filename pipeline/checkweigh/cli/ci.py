"""What CI runs: what a pull request changed, the gates it requires, and its comment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, PolicyPath, app, bars, console, say

Base = Annotated[
    str, typer.Option("--base", metavar="REF", help="commit or branch that the change is held against")
]
Declared = Annotated[
    str | None,
    typer.Option(
        "--baseline", metavar="MANIFEST",
        help="what new manifests are gated against, as it was at the base; from the root of the repository",
    ),
]  # fmt: skip


@app.command()
def changed(base: Base, baseline: Declared = None, as_json: AsJson = False) -> None:
    """List the manifests, policies and sets that differ from REF, and what each needs. Exit 0, or 2."""
    import json

    from checkweigh.usecases.ci.changes import changed as run

    with run(base, baseline, Path.cwd()) as found:
        if as_json:
            print(json.dumps(found.as_json(), indent=2))
        else:
            console().print(found.text(), markup=False, highlight=False, soft_wrap=True)


works = typer.Typer(name="ci", help="What CI runs on a pull request.", no_args_is_help=True)
app.add_typer(works)
Out = Annotated[Path, typer.Option(metavar="DIR", help="directory of the results")]
Key = Annotated[str, typer.Option(help="tells this job's comment from those of other jobs")]


@works.command("gate")
def ci_gate(
    base: Base,
    policy: PolicyPath = Path("gates/default.yaml"),
    baseline: Declared = None,
    out: Out = Path("runs/ci"),
    key: Key = "checkweigh",
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTION...]", help="passed to every gate")
    ] = None,
) -> None:
    """Do everything that the change requires. Exit 0 pass, 1 block, 2 bad input, 3 held, 4 broken."""
    from checkweigh.usecases.ci.run import Asked, run

    asked = Asked(base=base, policy=policy, out=out, baseline=baseline, key=key, options=tuple(options or ()))
    with bars() as bar:
        done = run(asked, say, bar.update)
    raise typer.Exit(done.exit_code)


@works.command("comment")
def ci_comment(
    pull_request: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="the one to comment on")],
    out: Out = Path("runs/ci"),
    key: Key = "checkweigh",
) -> None:
    """Put the results below DIR into one comment on GitHub, updated in place. Needs GITHUB_TOKEN."""
    from checkweigh.usecases.ci.comment import put

    say(put(pull_request, out, key))


@works.command("policies")
def ci_policies(base: Base) -> None:
    """Hold every changed policy against what it was at REF. Exit 1 when something got looser without a new reason."""
    from checkweigh.usecases.ci.run import policies

    raise typer.Exit(policies(base, say))


@works.command("pin")
def ci_pin(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="manifests to pin")],
) -> None:
    """Pin manifests before a commit. Exit 1 when a lock was written anew: it belongs into the same commit."""
    from checkweigh.usecases.ci.run import pin_all

    with bars() as bar:
        raise typer.Exit(pin_all(manifests, say, bar.update))
