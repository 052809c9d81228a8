"""Identities: pinned keys are the only ones that count; files that do not fit are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from shared_model.errors import ConfigError, NodeError
from shared_model.secure.identity import Identity, drawn_identity, read_identity


def _write(folder: Path, names: list[str]) -> dict[str, Path]:
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    lines = [
        f"{name} {key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()}"
        for name, key in keys.items()
    ]
    (folder / "sites").write_text("# who takes part\n\n" + "\n".join(lines) + "\n")
    for name, key in keys.items():
        content = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        (folder / name).write_bytes(content)
    return {name: folder / name for name in names}


def _read(folder: Path, name: str) -> Identity:
    return read_identity(name, folder / name, folder / "sites")


def test_pinned_sites_accept_each_other_and_nobody_else(tmp_path: Path) -> None:
    _write(tmp_path, ["a", "b"])
    a, b = _read(tmp_path, "a"), _read(tmp_path, "b")
    key = b.sign("session", bytes(32))
    a.check("session", key)
    for wrong in (
        replace(key, public=b"1" * 32),  # the server's own in its place
        replace(key, site="a"),
        replace(key, signature=bytes(64)),
        drawn_identity("b").sign("session", bytes(32)),
        drawn_identity("c").sign("session", bytes(32)),
    ):
        with pytest.raises(NodeError, match=r"not the pinned one|not signed"):
            a.check("session", wrong)
    with pytest.raises(NodeError, match="not signed"):
        a.check("another session", key)


def test_without_pins_a_key_has_to_be_signed_at_all() -> None:
    one, other = drawn_identity("one"), drawn_identity("other")
    key = other.sign("session", bytes(32))
    one.check("session", key)
    with pytest.raises(NodeError, match="not signed"):
        one.check("session", replace(key, public=b"1" * 32))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths = _write(tmp_path, ["a", "b"])
    with pytest.raises(ConfigError, match="have another key for this one"):
        read_identity("a", paths["b"], tmp_path / "sites")
    with pytest.raises(ConfigError, match="no identity key"):
        read_identity("a", tmp_path / "absent", tmp_path / "sites")
    with pytest.raises(ConfigError, match="no file of sites"):
        read_identity("a", paths["a"], tmp_path / "absent")
    ec = generate_private_key(SECP384R1())
    content = ec.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "ec").write_bytes(content)
    with pytest.raises(ConfigError, match="not Ed25519"):
        read_identity("a", tmp_path / "ec", tmp_path / "sites")


@pytest.mark.parametrize("line", ["c", "c ssh-ed25519 nonsense", "again", "other-name"])
def test_lines_that_are_no_site_are_refused(tmp_path: Path, line: str) -> None:
    _write(tmp_path, ["a", "b"])
    sites = tmp_path / "sites"
    first = sites.read_text().splitlines()[2]
    line = {"again": first, "other-name": first.replace("a ", "d ", 1)}.get(line, line)
    sites.write_text(sites.read_text() + line + "\n")
    with pytest.raises(ConfigError, match="line 5"):
        _read(tmp_path, "a")
