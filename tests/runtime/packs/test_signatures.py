from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.engines.errors import BackendUnavailable, BundleError, UsageError
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.signatures import check_signature, sign
from edgediffusion.runtime.packs.write import pack_bundle


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the two halves of a key, of another, and of one of RSA's."""
    pytest.importorskip("cryptography", reason="the extra sign")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private: dict[str, Any] = {name: Ed25519PrivateKey.generate() for name in ("ours", "theirs")}
    private["other"] = ec.generate_private_key(ec.SECP256R1())
    for name, key in private.items():
        pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
        pem = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(pem)
    return tmp_path


def test_a_signed_pack(keys: Path, bundle_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(bundle_path), "-o", "a.edz", "--sign", str(keys / "ours.pem")]) == 0
    assert main(["unpack", "a.edz", "-o", "there", "--trust", str(keys / "ours.pub")]) == 0
    assert main(["unpack", "a.edz", "-o", "elsewhere", "--trust", str(keys / "theirs.pub")]) == 2
    assert f"the signature is not one of {keys / 'theirs.pub'}; do not use it" in capsys.readouterr().err
    assert not (folder / "elsewhere").exists()
    assert main(["verify", "a.edz", "--trust", str(keys / "theirs.pub")]) == 2


def test_a_record_that_was_changed_after_it_was_signed(keys: Path, bundle_path: Path, tmp_path: Path) -> None:
    pack_bundle(bundle_path, tmp_path / "a.edz", key=keys / "ours.pem")
    check_signature(open_pack(tmp_path / "a.edz"), keys / "ours.pub")
    content = (tmp_path / "a.edz").read_bytes()
    (tmp_path / "a.edz").write_bytes(content.replace(b'"version": "0', b'"version": "9'))
    with pytest.raises(BundleError, match="the signature is not one of"):
        check_signature(open_pack(tmp_path / "a.edz"), keys / "ours.pub")


def test_a_pack_without_a_signature(keys: Path, pack_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.edz: not signed, edgediffusion-pack\.sig is missing; do not use it"):
        check_signature(open_pack(pack_path), keys / "ours.pub")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pem", r"no private key that can be read \(.*No such file"),
        ("ours.pub", r"no private key that can be read"),
        ("other.pem", "a private key of another kind; wanted one of Ed25519"),
    ],
)
def test_what_is_no_key_to_sign_with(keys: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: {message}"):
        sign(b"", keys / name)


def test_what_is_no_key_to_trust(keys: Path, pack_path: Path) -> None:
    with pytest.raises(UsageError, match=r"other\.pub: a public key of another kind; wanted one of Ed25519"):
        check_signature(open_pack(pack_path), keys / "other.pub")


def test_trust_in_a_folder(bundle_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle_path), "--trust", "key.pub"]) == 2
    assert f"{bundle_path}: no pack, so it has no signature; leave out --trust" in capsys.readouterr().err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def fail(name: str, *arguments: Any) -> Any:
        if name == "cryptography":
            raise ImportError
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(
        BackendUnavailable, match=r"signatures need cryptography, which .*; pip install 'edgediffusion\[s"
    ):
        sign(b"", tmp_path)
