"""Which MLflow a gate is sent to, and keeping what is secret in its address out of every text."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from checkweigh.errors import BadInput
from checkweigh.report.safe import one_line
from checkweigh.sources.cache import cache_root

OFF = "none"
VARIABLE = "CHECKWEIGH_MLFLOW"  # the environment's --mlflow
INSTALL = "pip install 'checkweigh[mlflow]'"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "file")
_SECRET_NAME = re.compile(r"TOKEN(?!IZERS)|PASSWORD|SECRET|CREDENTIAL|_KEY$", re.I)
_SHORTEST_SECRET = (
    6  # characters: shorter values of the environment are words; hiding them would garble texts
)


@dataclass(frozen=True, slots=True)
class Target:
    """One MLflow. ``uri`` may hold a password: only ``shown`` may be written anywhere."""

    uri: str

    @property
    def shown(self) -> str:
        """The address without user, password, query and fragment."""
        return masked(self.uri)

    @property
    def secret(self) -> bool:
        """Whether something had to be left out of ``shown``."""
        return self.shown != self.uri

    def scrub(self, text: str) -> str:
        """``text`` on one line, harmless, without any secret of the address or of the environment."""
        return scrub(text, self.uri)


def masked(uri: str) -> str:
    """``uri`` without user, password, query and fragment; a password with an unescaped ``@`` or ``/`` as well."""
    return re.sub(r"[?#].*$", "", re.sub(r"://.*@", "://", uri, flags=re.S), flags=re.S)


def scrub(text: str, uri: str = "") -> str:
    """``text`` on one line, harmless, without any secret of ``uri`` or of the environment."""
    hidden = {uri: masked(uri)} if uri else {}
    user = re.search(r"://(.*)@", uri, re.S)
    parts = [user[1], *user[1].split(":", 1)[1:]] if user else []
    parts += re.findall(r"[?&#][^=&#]*=([^&#]*)", uri)
    parts += [v for name, v in os.environ.items() if _SECRET_NAME.search(name) and len(v) >= _SHORTEST_SECRET]
    hidden |= {part: "***" for whole in parts for part in (whole, unquote(whole))}
    for part in sorted(filter(None, hidden), key=len, reverse=True):
        text = text.replace(part, hidden[part])
    return one_line(re.sub(r"://[^\s/@]+@", "://", text))


def installed(*more: str) -> bool:
    """Whether MLflow (and ``more`` packages) can be imported; imports none of them."""
    return all(find_spec(name) is not None for name in ("mlflow", *more))


def local_uri() -> str:
    """The store of this machine, used when nobody names another."""
    return f"sqlite:///{(cache_root() / 'mlflow.db').resolve()}"


def artifact_root(uri: str) -> str | None:
    """Where artifacts of a store without a server lie: beside its database; None where a server decides."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in ("http", "https", "databricks", "file"):
        return None
    path = uri.partition(":///")[2].partition("?")[0] if scheme == "sqlite" else ""
    folder = Path(path).parent if path else cache_root()
    return (folder.resolve() / "mlartifacts").as_uri()


def resolve_target(option: str | None) -> Target | None:
    """Where to send: ``option``, else MLFLOW_TRACKING_URI, else this machine's own store; None is nowhere.

    BadInput when ``option`` is no address, or MLflow is not installed although it was asked for. With the
    environment's address and no MLflow the result waits in the outbox; with neither it is nobody's.
    """
    if option == OFF:
        return None
    if option is not None:
        return _checked_target(option)
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return Target(_absolute_uri(uri))
    return Target(local_uri()) if installed("sqlalchemy") else None


def _checked_target(uri: str) -> Target:
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme not in SCHEMES:
        wanted = "an address such as http://HOST:5000 or sqlite:///FILE, or none"
        raise BadInput(f"--mlflow: expected {wanted}, found '{scrub(uri, uri)}'")
    if not installed():
        raise BadInput(f"--mlflow {masked(uri)}: MLflow is not installed here; {INSTALL}")
    if scheme == "sqlite" and not installed("sqlalchemy"):
        raise BadInput(f"--mlflow {masked(uri)}: a database needs the whole of MLflow; {INSTALL}")
    return Target(_absolute_uri(uri))


def _absolute_uri(uri: str) -> str:
    """A relative SQLite file means the current directory's, also when it is sent later from another one."""
    if uri.startswith("sqlite:///") and (path := uri.removeprefix("sqlite:///")):
        return f"sqlite:///{Path(path).resolve()}"
    return uri
