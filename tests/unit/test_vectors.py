"""The vectors in ``docs/vectors``: the code still gives them, and so does the documents' text.

The second half uses nothing of this project and no numpy: it is what ``docs/protocol.md`` and
``docs/ledger.md`` say, written down again in plain Python.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = Path(__file__).parents[2] / "docs" / "vectors"


def load_writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_vectors", GOLDEN / "write_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITER = load_writer()


def vector(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WRITER.VECTORS)
def test_the_code_gives_the_vector(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == WRITER.text(name)


def test_there_is_no_other_vector() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(WRITER.VECTORS)


# ---- from the text alone: protocol.md section 1 and 2 ----


def test_identity() -> None:
    found = vector("identity")
    for key in found["keys"]:
        public = bytes.fromhex(key["public_key"])
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key["seed"]))
        assert private.public_key().public_bytes_raw() == public
        assert key["key_file"] == "08011240" + key["seed"] + key["public_key"]
        name = bytes.fromhex("0024") + bytes.fromhex("08011220") + public
        assert base58.b58encode(name).decode() == key["peer_id"]
        assert len(key["peer_id"]) == 52
    link = found["link"]
    assert link["text"] == (
        f"barnraise://{link['host']}:{link['port']}/{link['run_id']}#root={link['root']}"
    )


def test_envelope() -> None:
    found = vector("envelope")
    kind, payload = found["payload_type"], bytes.fromhex(found["payload"])
    assert kind == "application/vnd.barnraise.result-chunk+protobuf"
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    assert signed.hex() == found["signed_bytes"]
    seed = next(
        bytes.fromhex(key["seed"])
        for key in vector("identity")["keys"]
        if key["peer_id"] == found["signer"]
    )
    assert Ed25519PrivateKey.from_private_bytes(seed).sign(signed).hex() == found["signature"]
    signature = field(1, bytes.fromhex(found["signature"])) + field(2, found["signer"].encode())
    whole = field(1, payload) + field(2, kind.encode()) + field(3, signature)
    assert whole.hex() == found["envelope"]


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, length = len(data), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


# ---- section 5: initial weights ----


def test_initial_weights() -> None:
    found = vector("initial")
    scale = float32(found["initializer_range"] / 65_536)
    assert len(found["parameters"]) == 2
    for name, expected in found["parameters"].items():
        text = b"barnraise-init/1\x00" + struct.pack(">Q", found["seed"]) + name.encode()
        key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
        words = struct.unpack(
            f"<{12 * len(expected)}H",
            b"".join(struct.pack("<Q", raw) for raw in philox(key, 3 * len(expected))),
        )
        sums = [sum(words[12 * k : 12 * k + 12]) - 393_210 for k in range(len(expected))]
        assert [float32(total * scale) for total in sums] == expected
    assert found["norm"] == [1.0] * 4


# ---- section 6: noise, codecs, commitment ----

MASK = (1 << 64) - 1


def philox(key: int, count: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011), outputs in order, counter from 1."""
    out: list[int] = []
    block = 0
    while len(out) < count:
        block += 1
        a, b, c, d = block, 0, 0, 0
        low, high = key & MASK, key >> 64
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (
                (second >> 64) ^ b ^ low,
                second & MASK,
                (first >> 64) ^ d ^ high,
                first & MASK,
            )
            low, high = (low + 0x9E3779B97F4A7C15) & MASK, (high + 0xBB67AE8584CAA73B) & MASK
        out += [a, b, c, d]
    return out[:count]


def noise_key(run_id: bytes, round_: int, chunk: int, source: str) -> bytes:
    domain = b"barnraise-noise/1\x00"
    text = domain + run_id + struct.pack(">QI", round_, chunk) + source.encode()
    return hashlib.sha256(text).digest()[:16]


def float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def float16(value: float) -> float:
    rounded: float = struct.unpack("<e", struct.pack("<e", value))[0]
    return rounded


def scale_of(block: list[float], levels: int) -> float:
    largest = max(abs(x) for x in block)
    scale = float16(float32(largest / levels))
    if scale * levels < largest:  # the next float16 up
        (bits,) = struct.unpack("<H", struct.pack("<e", scale))
        scale = struct.unpack("<e", struct.pack("<H", bits + 1))[0]
    return scale


def encode(codec: str, values: list[float], key: bytes) -> bytes:
    if codec == "fp32":
        return struct.pack(f"<{len(values)}f", *values)
    levels = {"int8": 127, "int4": 7}[codec]
    noise = philox(int.from_bytes(key, "little"), -(-len(values) // 256) * 256)
    scales, codes = [], []
    for start in range(0, len(values), 256):
        block = values[start : start + 256]
        scale = scale_of(block, levels)
        scales.append(scale)
        for offset, x in enumerate(block):
            uniform = (noise[start + offset] >> 40) * 2.0**-24
            codes.append(math.floor(float32(x / (scale or 1.0)) + uniform))
    head = struct.pack(f"<{len(scales)}e", *scales)
    if codec == "int8":
        return head + struct.pack(f"<{len(codes)}b", *codes)
    nibbles = [code & 15 for code in codes] + [0] * (len(codes) % 2)
    return head + bytes(
        low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)
    )


def decode(codec: str, data: bytes, count: int) -> list[float]:
    if codec == "fp32":
        return list(struct.unpack(f"<{count}f", data))
    blocks = -(-count // 256)
    scales = struct.unpack(f"<{blocks}e", data[: 2 * blocks])
    if codec == "int8":
        codes = list(struct.unpack(f"<{count}b", data[2 * blocks :]))
    else:
        nibbles = [n for byte in data[2 * blocks :] for n in (byte & 15, byte >> 4)]
        codes = [n - 16 if n > 7 else n for n in nibbles][:count]
    return [float32(code * scales[i // 256]) for i, code in enumerate(codes)]


def test_noise_key() -> None:
    found = vector("codecs")["noise_key"]
    run_id = bytes.fromhex(found["run_id"])
    mine = noise_key(run_id, found["round"], found["chunk"], found["source"])
    assert mine.hex() == found["key"]
    assert noise_key(run_id, found["round"], found["chunk"], "mean").hex() == found["key_of_mean"]


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4"])
def test_codec(codec: str) -> None:
    found = vector("codecs")
    key = bytes.fromhex(found["noise_key"]["key"])
    expected = found["codecs"][codec]
    mine = encode(codec, found["values"], key)
    assert mine.hex() == expected["encoded"]
    assert decode(codec, mine, len(found["values"])) == expected["decoded"]


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, as it is defined: recursively."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + tree_root(leaves[:half]) + tree_root(leaves[half:])).digest()


def test_commitment() -> None:
    found, codecs = vector("commitment"), vector("codecs")["noise_key"]
    run_id, size = bytes.fromhex(codecs["run_id"]), found["chunk_elements"]
    chunks = [
        encode(
            found["codec"],
            found["values"][start : start + size],
            noise_key(run_id, codecs["round"], start // size, codecs["source"]),
        )
        for start in range(0, len(found["values"]), size)
    ]
    assert [chunk.hex() for chunk in chunks] == found["chunks"]
    leaves = [leaf_hash(chunk) for chunk in chunks]
    assert [leaf.hex() for leaf in leaves] == found["leaf_hashes"]
    assert tree_root(leaves).hex() == found["root"]
    # Chunk 3 of 5: its neighbour 2, the pair before them, the chunk after them.
    path = [leaves[2], tree_root(leaves[:2]), leaves[4]]
    assert found["proof"] == {"chunk": 3, "path": [step.hex() for step in path]}


# ---- section 8 and 9: combination, outer step, state ----


def norm(values: list[float]) -> float:
    size = 1
    while size < len(values):
        size *= 2
    squares = [x * x for x in values] + [0.0] * (size - len(values))
    while size > 1:
        size //= 2
        squares = [squares[i] + squares[i + size] for i in range(size)]
    return math.sqrt(squares[0])


@pytest.mark.parametrize("rule", ["mean", "clipped_mean"])
def test_combine(rule: str) -> None:
    found = vector("combine")
    inputs, weights = found["inputs"], found["weights"]
    factors = [1.0] * len(inputs)
    if rule == "clipped_mean":
        norms = [norm(values) for values in inputs]
        below, bound = 0, 0.0
        for length, weight in sorted(zip(norms, weights, strict=True)):
            below, bound = below + weight, length
            if 2 * below >= sum(weights):
                break
        factors = [1.0 if length <= bound else bound / length for length in norms]
        assert min(factors) < 1, "the vector clips nobody"
    mine = []
    for column in zip(*inputs, strict=True):
        total = 0.0
        for x, weight, factor in zip(column, weights, factors, strict=True):
            total = total + x * (float(weight) * factor)
        mine.append(float32(total / sum(weights)))
    assert mine == found[rule]


def test_outer_steps_and_state() -> None:
    found = vector("outer")
    rate, mu = float32(found["learning_rate"]), float32(found["momentum"])
    weights, momentum = found["weights"], [0.0] * len(found["weights"])
    for step in found["steps"]:
        update = step["mean_update"]
        # Products and sums of two float32 in float64, rounded, are those of float32 arithmetic.
        momentum = [float32(float32(m * mu) + d) for m, d in zip(momentum, update, strict=True)]
        change = [
            float32(float32(d + float32(m * mu)) * rate)
            for m, d in zip(momentum, update, strict=True)
        ]
        weights = [float32(w - s) for w, s in zip(weights, change, strict=True)]
        assert weights == step["weights"]
        assert momentum == step["momentum"]
    state = found["state"]
    roots = [vector_root(values, state["chunk_elements"]) for values in (weights, momentum)]
    assert [root.hex() for root in roots] == [state["weights_root"], state["momentum_root"]]
    counts = [struct.pack(">Q", state[name]) for name in ("settled_rounds", "merged_tokens")]
    assert tree_root([leaf_hash(part) for part in (*roots, *counts)]).hex() == state["digest"]


def vector_root(values: list[float], size: int) -> bytes:
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return tree_root([leaf_hash(struct.pack(f"<{len(part)}f", *part)) for part in parts])


def test_group_id() -> None:
    found = vector("roster")
    digest = hashlib.sha256(bytes.fromhex(found["payload"])).hexdigest()
    assert (found["digest"], found["group_id"]) == (digest, digest[:40])


# ---- ledger.md: credit, leaf, head ----


def test_credit_by_the_formula() -> None:
    found = vector("ledger")["credit"]
    config, length = found["model_config_json"], found["sequence_length"]
    width, inner, layers = 128, 344, 4
    per_layer = 4 * width * width + 3 * width * inner + 2 * width
    working = layers * per_layer + width + width * config["vocab_size"]
    assert found["working_parameters"] == working
    assert found["flops_per_token"] == 6 * working + 12 * layers * width * length
    assert found["training_microcredits"] == found["tokens"] * found["flops_per_token"] // 10**9
    elements = found["chunks"] * found["chunk_elements"]
    assert found["reducing_microcredits"] == elements * 10_000 // 10**9


def test_leaf_and_head() -> None:
    found = vector("ledger")
    leaf = json.loads(found["leaf"])
    # No float and no character beyond ASCII: sorted keys without spaces are RFC 8785.
    assert json.dumps(leaf, sort_keys=True, separators=(",", ":")) == found["leaf"]
    hashed = leaf_hash(found["leaf"].encode())
    assert hashed.hex() == found["leaf_hash"]
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(found["log_seed"]))
    key = b"\x01" + private.public_key().public_bytes_raw()
    origin = "example.org/barn"
    key_id = hashlib.sha256(origin.encode() + b"\n" + key).digest()[:4]
    assert found["vkey"] == f"{origin}+{key_id.hex()}+{base64.b64encode(key).decode()}"
    text = f"{origin}\n1\n{base64.b64encode(hashed).decode()}\n"
    signature = base64.b64encode(key_id + private.sign(text.encode())).decode()
    assert found["checkpoint"] == f"{text}\n— {origin} {signature}\n"


# ---- ledger.md: acts and their leaves, shares of a pool's credit ----


def fields_of(data: bytes) -> dict[int, list[Any]]:
    """Varints and byte strings of a protobuf message, by field number."""
    found: dict[int, list[Any]] = {}

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    at = 0
    while at < len(data):
        key, at = varint(at)
        value: Any
        value, at = varint(at)
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        found.setdefault(key >> 3, []).append(value)
    return found


@pytest.mark.parametrize("number", range(len(vector("crowd")["acts"])))
def test_an_act_and_its_leaf(number: int) -> None:
    found = vector("crowd")
    act, leaf = found["acts"][number], json.loads(found["acts"][number]["leaf"])
    envelope = fields_of(bytes.fromhex(act["envelope"]))
    payload, kind = envelope[1][0], envelope[2][0]
    signature = fields_of(envelope[3][0])
    assert (kind.decode(), signature[2][0].decode()) == (act["payload_type"], act["signer"])
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    raw = base58.b58decode(act["signer"])[-32:]
    Ed25519PublicKey.from_public_bytes(raw).verify(signature[1][0], signed)
    assert leaf["record_digest"] == sha256(payload).hex()
    assert (leaf["run_id"], leaf["at_s"]) == (found["run_id"], found["at_s"])
    said = [value for values in fields_of(payload).values() for value in values]
    texts = {value.hex() for value in said if isinstance(value, bytes)}
    texts |= {value.decode() for value in said if isinstance(value, bytes) and value.isascii()}
    own = {"v", "kind", "run_id", "at_s", "record_digest", "visibility", "treasurer", "purpose"}
    for name in leaf.keys() - own - {"key_digest", "revoked"}:
        value = leaf[name]
        assert value in (None, 0) or value in said or value in texts, name
    if leaf["kind"] == "donation":  # a secret one
        assert (leaf["donor"], leaf["treasurer"]) == (None, act["signer"])


def test_shares_by_largest_remainder() -> None:
    for case in vector("crowd")["shares"]:
        amount, weights = case["amount"], case["weights"]
        total = sum(weights)
        parts = [amount * weight // total for weight in weights]
        remainders = [amount * weight % total for weight in weights]
        while sum(parts) < amount:
            first = remainders.index(max(remainders))
            parts[first], remainders[first] = parts[first] + 1, -1
        assert parts == case["shares"]


# ---- protocol.md section 13 ----


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_draw() -> None:
    found = vector("draw")
    link = bytes.fromhex(found["preimage"])
    for _ in range(found["round"] + 1):
        link = sha256(link)
    assert link.hex() == found["tip"]
    draw = sha256(bytes.fromhex(found["preimage"]) + bytes.fromhex(found["inclusion_digest"]))
    assert draw.hex() == found["draw"]
    assignment = bytes.fromhex(found["assignment_id"])

    def derive(label: str, subject: bytes) -> bytes:
        return sha256(b"barnraise-" + label.encode() + b"\0" + draw + subject)

    for label, chances in (("select", "selected_at_ppm"), ("second", "second_at_ppm")):
        uniform = int.from_bytes(derive(label, assignment)[:8], "big") * 10**6 // 2**64
        assert {ppm: uniform < int(ppm) for ppm in found[chances]} == found[chances]
    assert derive("project", assignment).hex() == found["projection_seed"]

    def least(seed: bytes, most: int) -> list[int]:
        def rank(number: int) -> bytes:
            return sha256(seed + struct.pack(">Q", number))

        return sorted(sorted(range(found["chunks"]), key=rank)[:most])

    assert least(derive("open", assignment), 8) == found["opened_chunks"]
    assert least(derive("results", b""), 2) == found["audited_results"]


def test_projection() -> None:
    found = vector("projection")
    key = sha256(
        b"barnraise-projection/1\0"
        + bytes.fromhex(found["seed"])
        + struct.pack(">I", found["chunk"])
    )[:16]
    sums = [0.0] * 64
    words = philox(int.from_bytes(key, "little"), len(found["values"]))
    for word, value in zip(words, found["values"], strict=True):
        sums[word & 63] += -value if word & 64 else value
    assert [float32(value) for value in sums] == found["projection"]
    assert struct.pack("<64f", *found["projection"]).hex() == found["packed"]
