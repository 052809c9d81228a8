"""Who a site is: a key of its own, and the keys of the other sites as its owner pinned them.

The server relays the keys by which sites agree on masks, so it could put its own in their place. A
site signs its key (Ed25519), and takes those alone that pinned sites have signed. The files are
OpenSSH's: a private key, and lines ``NAME ssh-ed25519 AAAA...``, as ``docker/keys.sh`` makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from shared_model.errors import ConfigError, NodeError

_PURPOSE = b"feddmmr secure aggregation 1"


@dataclass(frozen=True)
class SignedKey:
    """A site's public key of one session, and by whom it is vouched for."""

    site: str
    public: bytes  # X25519, 32 bytes
    identity: bytes  # Ed25519, 32 bytes
    signature: bytes  # 64 bytes, over session, site and public


@dataclass(frozen=True)
class Identity:
    """A site's own key, and the public ones [32 bytes] it trusts, by name.

    Without pins every key that is signed at all is taken: for a simulation, whose sites are one
    process's, and nowhere else.
    """

    site: str
    private: Ed25519PrivateKey
    pins: Mapping[str, bytes] | None

    def sign(self, session: str, public: bytes) -> SignedKey:
        """This site's public key of a session, signed."""
        signature = self.private.sign(_text(session, self.site, public))
        own = self.private.public_key().public_bytes_raw()
        return SignedKey(self.site, public, own, signature)

    def check(self, session: str, key: SignedKey) -> None:
        """``NodeError`` unless the pinned site of that name signed this key for this session."""
        if self.pins is not None and self.pins.get(key.site) != key.identity:
            raise NodeError(
                "the key of a site is not the pinned one",
                where=f"{self.site}, node-config key 'secure-sites'",
                expected="the key that this file has for it",
                got=ascii(key.site)[:200],
                todo="if the site has a new key, ask its owner, and change the file",
            )
        check_signed(session, key)


def check_signed(session: str, key: SignedKey) -> None:
    """``NodeError`` unless a key is signed by the identity that it comes with, whoever that is."""
    try:
        signed = Ed25519PublicKey.from_public_bytes(key.identity)
        signed.verify(key.signature, _text(session, key.site, key.public))
    except (InvalidSignature, ValueError) as error:
        raise NodeError("the key of a site is not signed by it", where=ascii(key.site)) from error


def drawn_identity(site: str) -> Identity:
    """An identity for one process, which pins nobody: of a simulation."""
    return Identity(site, Ed25519PrivateKey.generate(), None)


def read_identity(site: str, private: Path, sites: Path) -> Identity:
    """The identity of two files. ``ConfigError`` if one cannot be read, or they do not fit."""
    pins = read_pins(sites)
    try:
        key = load_ssh_private_key(private.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "no identity key", where=f"node-config key 'secure-key': {private}", got=str(error)
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("the identity key is not Ed25519", where=str(private))
    if pins.get(site) != key.public_key().public_bytes_raw():
        raise ConfigError(
            "the pinned sites have another key for this one",
            where=str(sites),
            expected=f"the public key of {private} at the name {site}",
            got=", ".join(sorted(pins))[:200],
        )
    return Identity(site, key, pins)


def read_pins(path: Path) -> dict[str, bytes]:
    """The public keys of a file of sites, by name. ``ConfigError`` for a line that is none."""
    pins: dict[str, bytes] = {}
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, ValueError) as error:
        where = f"node-config key 'secure-sites': {path}"
        raise ConfigError("no file of sites", where=where, got=str(error)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.partition(" ")
        public = _public(key)
        if public is None or name in pins or public in pins.values():
            raise ConfigError(
                "not one site with a key of its own",
                where=f"{path}, line {number}",
                expected="NAME ssh-ed25519 KEY",
                got=line[:100],
            )
        pins[name] = public
    return pins


def _public(text: str) -> bytes | None:
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else None


def _text(session: str, site: str, public: bytes) -> bytes:
    return b"\0".join((_PURPOSE, session.encode(), site.encode().hex().encode(), public))
