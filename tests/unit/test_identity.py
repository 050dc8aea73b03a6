"""Device keys against hivemind's own libp2p structures, and the file that p2pd reads."""

from __future__ import annotations

import stat
from pathlib import Path

import base58
import pytest
from hivemind.p2p import PeerID
from hivemind.proto import crypto_pb2

from protocol.errors import BadRecord, BadSignature, UsageError
from protocol.identity import Identity, PublicKey

# RFC 8032 section 7.1, test 1.
RFC_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


def test_rfc_8032_vector() -> None:
    identity = Identity.from_seed(RFC_SEED)
    assert identity.public.raw == RFC_PUBLIC
    assert identity.sign(b"") == RFC_SIGNATURE
    identity.public.verify(RFC_SIGNATURE, b"")


def test_peer_id_is_the_identity_multihash_of_the_libp2p_public_key() -> None:
    identity = Identity.from_seed(RFC_SEED)
    protobuf = crypto_pb2.PublicKey(key_type=crypto_pb2.Ed25519, data=RFC_PUBLIC)
    encoded = protobuf.SerializeToString()
    expected = PeerID(bytes([0x00, len(encoded)]) + encoded)
    assert identity.peer_id == expected.to_base58()
    assert PeerID.from_base58(identity.peer_id) == expected
    # libp2p peer-ids specification: Ed25519 PeerIDs start with 12D3KooW.
    assert identity.peer_id.startswith("12D3KooW")


def test_private_file_is_the_libp2p_private_key() -> None:
    identity = Identity.from_seed(RFC_SEED)
    parsed = crypto_pb2.PrivateKey.FromString(identity.libp2p_bytes())
    assert parsed.key_type == crypto_pb2.Ed25519
    assert parsed.data == RFC_SEED + RFC_PUBLIC
    assert parsed.SerializeToString() == identity.libp2p_bytes()


def test_peer_id_gives_the_key_back() -> None:
    identity = Identity.generate()
    key = PublicKey.from_peer_id(identity.peer_id)
    assert key == identity.public
    assert hash(key) == hash(identity.public)
    assert key.peer_id in repr(key)
    key.verify(identity.sign(b"message"), b"message")


def test_signature_is_bound_to_key_and_message() -> None:
    one, other = Identity.from_seed(bytes(32)), Identity.generate()
    signature = one.sign(b"message")
    with pytest.raises(BadSignature):
        one.public.verify(signature, b"massage")
    with pytest.raises(BadSignature):
        other.public.verify(signature, b"message")
    with pytest.raises(BadSignature):
        one.public.verify(signature[:-1], b"message")


@pytest.mark.parametrize(
    "peer_id",
    [
        "",
        "not base58: 0OIl",
        "1" * 65,
        "é",
        Identity.from_seed(bytes(32)).peer_id[:-1],
        Identity.from_seed(bytes(32)).peer_id + "1",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA key's
        # A second spelling would be a second worker with the same key.
        Identity.from_seed(bytes(32)).peer_id + " ",
        Identity.from_seed(bytes(32)).peer_id + "\n",
    ],
)
def test_other_peer_ids_are_refused(peer_id: str) -> None:
    with pytest.raises(BadRecord):
        PublicKey.from_peer_id(peer_id)


def test_peer_id_of_another_key_type_is_refused() -> None:
    protobuf = crypto_pb2.PublicKey(key_type=crypto_pb2.Secp256k1, data=RFC_PUBLIC)
    encoded = protobuf.SerializeToString()
    text = base58.b58encode(bytes([0x00, len(encoded)]) + encoded).decode()
    with pytest.raises(BadRecord):
        PublicKey.from_peer_id(text)


def test_raw_key_of_wrong_length_is_refused() -> None:
    with pytest.raises(BadRecord):
        PublicKey(bytes(31))


def test_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    identity = Identity.generate()
    identity.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path).seed == identity.seed
    with pytest.raises(UsageError, match="already"):
        Identity.generate().save(path)
    assert Identity.load(path).seed == identity.seed


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    good = Identity.from_seed(RFC_SEED).libp2p_bytes()
    path = tmp_path / "device.key"
    with pytest.raises(UsageError, match="cannot read"):
        Identity.load(path)
    flipped = bytes([good[-1] ^ 1])
    for damaged in (b"", good[:-1], good + b"\x00", b"\x08\x00" + good[2:], good[:-1] + flipped):
        path.write_bytes(damaged)
        with pytest.raises(UsageError):
            Identity.load(path)
