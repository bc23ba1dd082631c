"""Where derived models, unpacked packages and measurements are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``CHECKWEIGH_HOME``, else ``checkweigh`` below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    home = os.environ.get("CHECKWEIGH_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "checkweigh"
