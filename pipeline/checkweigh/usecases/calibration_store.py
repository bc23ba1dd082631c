"""Calibrations on disk: one file each below the home, dated, checked when read, never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import StoreError
from checkweigh.files import read_sealed, write_sealed
from checkweigh.measure import host_facts
from checkweigh.records.calibration import Calibration
from checkweigh.records.measurement import PROTOCOL
from checkweigh.sources.cache import cache_root


def save(calibration: Calibration) -> Path:
    """Write it and return its path; the file's name is its digest. Raises StoreError when the disk refuses."""
    data = calibration.model_dump(mode="json", by_alias=True)
    digest = canonical.digest(data)
    path = _folder() / f"{digest.removeprefix('sha256:')}.json"
    write_sealed(path, data)
    return path


def for_pins(pins: str) -> tuple[Calibration, ...]:
    """Those of a manifest with this digest of its pins, made on this kind of hardware under this protocol.

    Raises StoreError for a damaged file, of whichever manifest.
    """
    return tuple(c for c in for_this_host() if c.pins == pins)


def for_this_host() -> tuple[Calibration, ...]:
    """Those made on this kind of hardware under this protocol.

    Raises StoreError for a damaged file: read as absent, it would turn a gating check into one that informs.
    """
    calibrations = []
    for path in sorted(_folder().glob("*.json")):
        try:
            calibrations.append(Calibration.model_validate_json(json.dumps(read_sealed(path))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}: damaged calibration ({error}); remove it and calibrate again"
            ) from error
    return tuple(c for c in calibrations if c.hardware == host_facts.hardware() and c.protocol == PROTOCOL)


def _folder() -> Path:
    return cache_root() / "calibrations"
