"""Keys: what is one, and that nothing of them is ever said."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.signing import keys

from checkweigh.attest.keys import private_key, public_key
from checkweigh.errors import BadInput, SigningError

SECRET = "hunter2-correct-horse"


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384", "p521"])
@pytest.mark.parametrize("passphrase", ["", SECRET])
def test_both_halves_are_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, passphrase: str
) -> None:
    private, public = keys(tmp_path, kind, passphrase=passphrase)
    monkeypatch.setenv("CHECKWEIGH_KEY_PASSPHRASE", SECRET)
    found = private_key(str(private))
    assert found.keyid == public_key(public).keyid
    assert found.elliptic == (kind != "ed25519")
    assert SECRET not in repr(found)
    monkeypatch.setenv("A_KEY", private.read_text())
    assert private_key("env:A_KEY").keyid == found.keyid


def test_a_passphrase_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys(tmp_path, passphrase=SECRET)
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("CHECKWEIGH_KEY_PASSPHRASE_FILE", str(tmp_path / "secret"))
    assert private_key(str(private)).keyid == public_key(public).keyid


@pytest.mark.parametrize(
    ("kind", "passphrase", "given", "said"),
    [
        ("rsa", "", "", "another kind"),
        ("k1", "", "", "another kind"),
        ("p256", SECRET, "", "is encrypted"),
        ("p256", SECRET, "wrong", "its passphrase is wrong"),
    ],
)
def test_what_is_no_key_to_sign_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, passphrase: str, given: str, said: str
) -> None:
    private, _ = keys(tmp_path, kind, passphrase=passphrase)
    monkeypatch.setenv("CHECKWEIGH_KEY_PASSPHRASE", given)
    with pytest.raises(BadInput, match=said) as error:
        private_key(str(private))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "not a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
)
def test_other_texts_are_no_keys_and_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("A_KEY", text)
    with pytest.raises(BadInput, match="env:A_KEY"):
        private_key("env:A_KEY")
    (tmp_path / "x").write_text(text)
    with pytest.raises(BadInput):
        private_key(str(tmp_path / "x"))
    with pytest.raises(BadInput):
        public_key(tmp_path / "x")


def test_halves_are_not_mixed_up(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    with pytest.raises(BadInput, match="found a public one"):
        private_key(str(public))
    with pytest.raises(BadInput, match="found a private one"):
        public_key(private)
    with pytest.raises(BadInput, match="No such file"):
        private_key(str(tmp_path / "none"))
    assert issubclass(SigningError, Exception)
