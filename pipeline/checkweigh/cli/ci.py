"""What CI runs: what a pull request changed, the gates it requires, and its comment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, PolicyPath, app, bars, console, say

Base = Annotated[
    str, typer.Option("--base", metavar="REF", help="commit or branch that the change is compared with")
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

    from checkweigh.usecases.ci.changes import changes_since

    with changes_since(base, baseline, Path.cwd()) as changes:
        if as_json:
            print(json.dumps(changes.as_json(), indent=2))
        else:
            console().print(changes.text(), markup=False, highlight=False, soft_wrap=True)


ci_commands = typer.Typer(name="ci", help="What CI runs on a pull request.", no_args_is_help=True)
app.add_typer(ci_commands)
Out = Annotated[Path, typer.Option(metavar="DIR", help="directory of the results")]
CommentKey = Annotated[str, typer.Option(help="tells this job's comment from those of other jobs")]


@ci_commands.command("gate")
def ci_gate(
    base: Base,
    policy: PolicyPath = Path("gates/default.yaml"),
    baseline: Declared = None,
    out: Out = Path("runs/ci"),
    key: CommentKey = "checkweigh",
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTION...]", help="passed to every gate")
    ] = None,
) -> None:
    """Do everything that the change requires. Exit 0 pass, 1 block, 2 bad input, 3 inconclusive, 4 broken."""
    from checkweigh.usecases.ci.run import CiRequest, run_ci

    request = CiRequest(
        base=base, policy=policy, out=out, baseline=baseline, key=key, options=tuple(options or ())
    )
    with bars() as bar:
        results = run_ci(request, say, bar.update)
    raise typer.Exit(results.exit_code)


@ci_commands.command("comment")
def ci_comment(
    pull_request: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="the one to comment on")],
    out: Out = Path("runs/ci"),
    key: CommentKey = "checkweigh",
) -> None:
    """Put the results below DIR into one comment on GitHub, updated in place. Needs GITHUB_TOKEN."""
    from checkweigh.usecases.ci.comment import post

    say(post(pull_request, out, key))


@ci_commands.command("policies")
def ci_policies(base: Base) -> None:
    """Compare every changed policy with what it was at REF. Exit 1 when something got looser without a new reason."""
    from checkweigh.usecases.ci.run import check_policies

    raise typer.Exit(check_policies(base, say))


@ci_commands.command("pin")
def ci_pin(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="manifests to pin")],
) -> None:
    """Pin manifests before a commit. Exit 1 when a lock was rewritten: it belongs into the same commit."""
    from checkweigh.usecases.ci.run import pin_all

    with bars() as bar:
        raise typer.Exit(pin_all(manifests, say, bar.update))
