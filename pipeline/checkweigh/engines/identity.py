"""What a running engine reports of itself, compared with its manifest. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from checkweigh.errors import Problem
from checkweigh.records.manifest import Manifest
from checkweigh.records.measurement import EngineIdentity


def identity_problems(manifest: Manifest, identity: EngineIdentity) -> list[Problem]:
    """Every difference between the identity an engine reports and the one its manifest declares."""
    quantization = manifest.quantization
    method = " ".join(filter(None, (quantization.method, quantization.type)))
    compared: Mapping[str, tuple[object, object]] = {
        "engine.kind": (manifest.engine.kind, identity.kind),
        "engine.version": (manifest.engine.version, identity.version),
        "engine.dtype": (manifest.engine.dtype, identity.dtype),
        "engine.device": (manifest.engine.device, identity.device),
        "engine.threads": (manifest.engine.threads, identity.threads),
        "quantization": (method, identity.quantization.partition(":")[0]),
        "limits.max_sequence": (manifest.limits.max_sequence, identity.max_sequence),
    }
    return [
        Problem(
            file=manifest.name, line=None, path=path, expected=str(declared), found=f"{reported} (the engine says)"
        )
        for path, (declared, reported) in compared.items()
        if declared != reported
    ]  # fmt: skip
