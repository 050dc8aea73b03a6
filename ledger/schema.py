"""Tables of the public record.

Invariants:

* ``log_leaf`` and ``log_node`` are written by :mod:`ledger.log` only, and never changed.
* ``log_node`` holds complete subtrees only, so a node never changes once it is written.
* Names live in ``profile`` and ``team_profile`` and nowhere else: deleting a row there erases a
  person, and the log still verifies.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

KEY_ID_CHARS = 64
"""A PeerID of an Ed25519 key has 52 characters."""


class Base(DeclarativeBase):
    """The one metadata of the database; the coordinator's tables join it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class LogLeaf(Base):
    """One entry of the log: canonical JSON, and the columns by which it is looked up."""

    __tablename__ = "log_leaf"

    leaf_index: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="0-based, without gaps"
    )
    kind: Mapped[str] = mapped_column(String(16), index=True, comment="kind of leaf")
    data: Mapped[bytes] = mapped_column(LargeBinary, comment="RFC 8785 JSON: what is hashed")
    round: Mapped[int | None] = mapped_column(
        BigInteger, index=True, comment="round the leaf speaks of"
    )
    donor: Mapped[str | None] = mapped_column(
        String(KEY_ID_CHARS), index=True, comment="PeerID of the donor it speaks of"
    )
    assignment_id: Mapped[str | None] = mapped_column(
        String(32), index=True, comment="hex, of training credit"
    )


class LogNode(Base):
    """Hash of one complete subtree of 2**level leaves (RFC 6962)."""

    __tablename__ = "log_node"

    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="0: leaves")
    position: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="first leaf >> level"
    )
    hash: Mapped[bytes] = mapped_column(LargeBinary(32), comment="SHA-256")


class LogHead(Base):
    """A signed head. The newest one binds every later one: see ``Log.sign_head``."""

    __tablename__ = "log_head"

    tree_size: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="leaves under the head"
    )
    checkpoint: Mapped[str] = mapped_column(Text, comment="C2SP tlog-checkpoint, signed")
    signed_at_s: Mapped[int] = mapped_column(BigInteger, comment="Unix seconds")


class DelegationRow(Base):
    """What the run's root key vouches for, as served at ``/delegations``."""

    __tablename__ = "delegations"

    digest: Mapped[str] = mapped_column(
        String(64), primary_key=True, comment="SHA-256 of the envelope, hex"
    )
    revocation: Mapped[bool] = mapped_column(comment="true: a Revocation, false: a Delegation")
    envelope: Mapped[bytes] = mapped_column(LargeBinary, comment="barnraise.v1.Envelope")


class ActRow(Base):
    """The signed act behind a leaf (:mod:`ledger.crowd_records`)."""

    __tablename__ = "act"

    leaf_index: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="its leaf"
    )
    digest: Mapped[str] = mapped_column(
        String(64), unique=True, comment="SHA-256 of the signed payload, hex: its leaf names it"
    )
    signer: Mapped[str] = mapped_column(String(KEY_ID_CHARS), index=True, comment="PeerID")
    public: Mapped[bool] = mapped_column(comment="whether anybody may read the envelope")
    envelope: Mapped[bytes] = mapped_column(LargeBinary, comment="barnraise.v1.Envelope")


class Profile(Base):
    """What a donor chose to show. Outside the log, and erasable."""

    __tablename__ = "profile"

    donor: Mapped[str] = mapped_column(
        String(KEY_ID_CHARS), primary_key=True, comment="PeerID of the donor's key"
    )
    display_name: Mapped[str] = mapped_column(String(64), comment="as given; hostile until escaped")
    url: Mapped[str] = mapped_column(String(256), default="", comment="likewise; http or https")
    about: Mapped[str] = mapped_column(String(512), default="", comment="likewise")
    show_devices: Mapped[bool] = mapped_column(default=False, comment="on the donor's page")
    updated_at_s: Mapped[int] = mapped_column(BigInteger, comment="Unix seconds")


class TeamProfile(Base):
    """What a team's founder chose to show of it. Outside the log, and erasable."""

    __tablename__ = "team_profile"

    team: Mapped[str] = mapped_column(String(32), primary_key=True, comment="id of the team, hex")
    display_name: Mapped[str] = mapped_column(String(64), comment="as given; hostile until escaped")
    url: Mapped[str] = mapped_column(String(256), default="", comment="likewise; http or https")
    about: Mapped[str] = mapped_column(String(512), default="", comment="likewise")
    updated_at_s: Mapped[int] = mapped_column(BigInteger, comment="Unix seconds")


class ErasedProfile(Base):
    """A profile was erased: copies of the record that still have it are told to forget it."""

    __tablename__ = "erased_profile"

    subject: Mapped[str] = mapped_column(
        String(KEY_ID_CHARS), primary_key=True, comment="PeerID of a donor, or id of a team"
    )
    erased_at_s: Mapped[int] = mapped_column(BigInteger, comment="Unix seconds")


class DeviceEnergy(Base):
    """What a device's own meter says, where its owner wants that known. Outside the log, erasable.

    Nobody verifies it.
    """

    __tablename__ = "device_energy"

    worker: Mapped[str] = mapped_column(
        String(KEY_ID_CHARS), primary_key=True, comment="PeerID of the device"
    )
    donor: Mapped[str] = mapped_column(
        String(KEY_ID_CHARS), index=True, comment="PeerID it works for"
    )
    milliwatt_hours: Mapped[int] = mapped_column(
        BigInteger, comment="of its verified units, as its own meter says"
    )
    tokens: Mapped[int] = mapped_column(BigInteger, comment="of the same units")
    told_at_s: Mapped[int] = mapped_column(BigInteger, comment="Unix seconds")


class RunPage(Base):
    """What the campaign page shows besides the log: how to join, and the organiser's words."""

    __tablename__ = "run_page"

    run_id: Mapped[str] = mapped_column(String(64), primary_key=True, comment="hex")
    join_link: Mapped[str] = mapped_column(Text, comment="barnraise://...")
    notes: Mapped[str] = mapped_column(Text, default="", comment="organiser's public words")
    updated_at_s: Mapped[int] = mapped_column(BigInteger, comment="Unix seconds")
