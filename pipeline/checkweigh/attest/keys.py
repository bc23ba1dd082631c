"""Local signing keys: PEM, ed25519 or ECDSA on a NIST curve. What is secret stays here and in the caller's memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from checkweigh.errors import BadInput

PASSPHRASE = "CHECKWEIGH_KEY_PASSPHRASE"  # environment: of an encrypted key, or
PASSPHRASE_FILE = "CHECKWEIGH_KEY_PASSPHRASE_FILE"  # a file that holds it
INSTALL = "pip install 'checkweigh[attest]'"
KINDS = "an ed25519 or ECDSA (P-256, P-384, P-521) key in PEM"
MAX_PEM_BYTES = 65_536


class PrivateKey:
    """A key that signs. Neither its text nor its ``repr`` holds anything secret."""

    def __init__(self, key: Any, pem: bytes, passphrase: bytes | None) -> None:
        from securesystemslib.signer import CryptoSigner

        self.signer = CryptoSigner(key)
        self.pem, self.passphrase = pem, passphrase

    @property
    def keyid(self) -> str:
        """Digest of the public key, as securesystemslib computes it."""
        return str(self.signer.public_key.keyid)

    @property
    def elliptic(self) -> bool:
        """Whether the OpenSSF model signature, which knows NIST curves alone, can be made with it."""
        return bool(self.signer.public_key.keytype == "ecdsa")

    def __repr__(self) -> str:
        return f"PrivateKey({self.keyid[:12]})"


def private_key(where: str) -> PrivateKey:
    """The private key in a PEM file, or in the environment's variable of ``env:NAME``. BadInput says what is wrong."""
    _require_libraries()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem, shown = _read_pem(where), f"--attest {where}"
    secret = _passphrase()
    if b"PUBLIC KEY" in pem:
        raise BadInput(f"{shown}: expected a private key, found a public one")
    try:
        key = load_pem_private_key(pem, secret if b"ENCRYPTED" in pem else None)
    except TypeError:
        raise BadInput(
            f"{shown}: the key is encrypted; expected its passphrase in {PASSPHRASE} or {PASSPHRASE_FILE}"
        ) from None
    except ValueError:  # its text may quote what it could not decrypt: not repeated
        wrong = "its passphrase is wrong, or it is damaged" if b"ENCRYPTED" in pem else "another text"
        raise BadInput(f"{shown}: expected {KINDS}, found {wrong}") from None
    except Exception as error:
        raise BadInput(f"{shown}: expected {KINDS} ({type(error).__name__})") from None
    try:
        private = PrivateKey(key, pem, secret if b"ENCRYPTED" in pem else None)
    except ValueError:
        private = None
    if private is None or private.signer.public_key.keytype not in ("ed25519", "ecdsa"):
        raise BadInput(f"{shown}: expected {KINDS}, found a key of another kind")
    return private


def public_key(path: Path) -> Any:
    """securesystemslib's key of a PEM file. BadInput when it is none; a private key is refused."""
    _require_libraries()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    pem = _read_file(path, f"--key {path}")
    if b"PRIVATE KEY" in pem:
        raise BadInput(
            f"--key {path}: expected a public key, found a private one, which no verifier should hold"
        )
    try:
        key = SSlibKey.from_crypto(load_pem_public_key(pem))
    except Exception:
        key = None
    if key is None or key.keytype not in ("ed25519", "ecdsa"):
        raise BadInput(f"--key {path}: expected the public half of {KINDS}, found something else")
    return key


def _require_libraries() -> None:
    try:
        import cryptography  # noqa: F401
        import securesystemslib  # noqa: F401
    except ImportError:
        raise BadInput(f"signatures need securesystemslib, which is not installed: {INSTALL}") from None


def _read_pem(where: str) -> bytes:
    if not where.startswith("env:"):
        return _read_file(Path(where), f"--attest {where}")
    text = os.environ.get(where.removeprefix("env:"), "")
    if not text:
        raise BadInput(f"--attest {where}: expected a PEM key in that variable, found nothing")
    return text.encode()


def _read_file(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM_BYTES)
    except OSError as error:
        raise BadInput(f"{shown}: expected a file with a PEM key ({error.strerror})") from None


def _passphrase() -> bytes | None:
    if value := os.environ.get(PASSPHRASE):
        return value.encode()
    if file := os.environ.get(PASSPHRASE_FILE):
        return _read_file(Path(file), PASSPHRASE_FILE).rstrip(b"\r\n")
    return None
