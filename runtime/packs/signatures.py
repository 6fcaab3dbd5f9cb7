"""Ed25519 signatures of a pack's record, which has the digests of all else. Keys are PEM files, as OpenSSL writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgediffusion.engines.errors import BackendUnavailable, BundleError, UsageError

from .record import SIGNATURE

if TYPE_CHECKING:
    from .read import Pack

Key = TypeVar("Key")


def sign(content: bytes, key: Path) -> bytes:
    """64 bytes.

    Raises:
        UsageError: `key` is no private key of Ed25519, or has a passphrase.
        BackendUnavailable: the package cryptography is not there.
    """
    _need()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = _read(key, lambda pem: load_pem_private_key(pem, None), "private")
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(f"{key}: a private key of another kind; wanted one of Ed25519")
    return private.sign(content)


def check_signature(pack: Pack, key: Path) -> None:
    """That `pack` was signed with the private half of the public key `key`.

    Raises:
        BundleError: it was not.
        UsageError: `key` is no public key of Ed25519.
        BackendUnavailable: the package cryptography is not there.
    """
    _need()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = _read(key, load_pem_public_key, "public")
    if not isinstance(public, Ed25519PublicKey):
        raise UsageError(f"{key}: a public key of another kind; wanted one of Ed25519")
    if not pack.signature:
        raise BundleError(f"{pack.path}: not signed, {SIGNATURE} is missing; do not use it")
    try:
        public.verify(pack.signature, pack.content)
    except InvalidSignature:
        raise BundleError(f"{pack.path}: the signature is not one of {key}; do not use it") from None


def _need() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise BackendUnavailable(
            "signatures need cryptography, which is not installed", "pip install 'edgediffusion[sign]'"
        ) from None


def _read(path: Path, load: Callable[[bytes], Key], word: str) -> Key:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(path.read_bytes())
    except (OSError, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path}: no {word} key that can be read ({error}); wanted a PEM file of Ed25519") from None
