"""The OpenSSF model signature of a directory of weights (model-signing, a sigstore bundle; NIST curves only)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from checkweigh.attest.keys import PrivateKey
from checkweigh.errors import SigningError

SIGNATURE = "weights.sig"


def sign_weights(folder: Path, target: Path, key: PrivateKey) -> None:
    """Sign every file below ``folder`` into ``target``. SigningError when that cannot be done."""
    try:
        import model_signing

        config = model_signing.signing.Config().set_hashing_config(_hashing(model_signing))
        with _as_file(key) as pem:
            config.use_elliptic_key_signer(private_key=pem, password=key.passphrase)
            config.sign(folder, target)
    except Exception as error:  # the library's own kinds are many; unsigned is unsigned
        target.unlink(missing_ok=True)
        raise SigningError(f"{folder}: the weights could not be signed ({type(error).__name__})") from None


def verify_weights(folder: Path, signature: Path, key: Path) -> str:
    """Why the signature does not hold for what is in ``folder`` now; empty when it does."""
    try:
        import model_signing

        config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
        config.verify(folder, signature)
    except FileNotFoundError:
        return f"{signature}: no such file"
    except Exception as error:  # a bundle is hostile text: whatever it does to the parser, it is not accepted
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return f"the model signature does not hold ({reason})"
    return ""


def _hashing(library: object) -> object:
    """File by file, through links: a hub's snapshot is made of them."""
    return library.hashing.Config().use_file_serialization(  # type: ignore[attr-defined]
        hashing_algorithm="sha256", allow_symlinks=True
    )


@contextlib.contextmanager
def _as_file(key: PrivateKey) -> Iterator[Path]:
    """The key under a path, which the library asks for, without putting it on a disk."""
    handle = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        os.write(handle, key.pem)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
