"""Joining a run: key, Hello, facts and limits, consent, configuration. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import TransientError, UsageError
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from worker.config import Home, WorkerConfig
from worker.limit_texts import in_words
from worker.plain import plain
from worker.settings import change_settings

_MEASURED = "others are told of it only if they reach it; behind NAT nothing is lost"


@dataclass(frozen=True)
class Offer:
    """What a person is asked to agree to."""

    manifest: RunManifest
    worker: str
    config: WorkerConfig
    clock_error_s: float
    public_url: str


async def look_at_run(home: Home, config: WorkerConfig) -> Offer:
    """Make the key if there is none, and ask the coordinator what the run is.

    Raises:
        UsageError: wrong link, unknown run, unsupported version, coordinator out of reach, or the
            folder belongs to another run.
    """
    from worker.session import Session

    _check_other_run(home, config)
    home.prepare()
    if not home.identity.exists():
        Identity.generate().save(home.identity)
    identity = Identity.load(home.identity)
    try:
        session = await Session.connect(config.join_link, identity)
    except TransientError as error:
        raise UsageError(str(error)) from error
    try:
        greeting = session.greeting
        return Offer(
            greeting.manifest,
            identity.peer_id,
            config,
            session.clock.error_s,
            greeting.public_url,
        )
    finally:
        await session.close()


def _check_other_run(home: Home, config: WorkerConfig) -> None:
    if home.config.exists():
        joined = WorkerConfig.load(home.config).join_link
        if joined.run_id != config.join_link.run_id:
            raise UsageError(
                f"{home.path} has joined run {joined.run_id.hex()[:16]} already: "
                "give another folder with --home for another run"
            )
        _check_same_root(joined, config.join_link)


async def move(home: Home, link: str) -> WorkerConfig:
    """Follow a run to the address of a new link; key, journal, credit and settings stay.

    Raises:
        UsageError: the link is of another run or root key, or nobody answers there who may.
    """
    from worker.session import Session

    config = WorkerConfig.load(home.config)
    moved = config.with_options(link=link)
    if moved.join_link.run_id != config.join_link.run_id:
        raise UsageError(
            "the link is of another run: join that one with 'barnraise worker join' and another "
            "folder"
        )
    _check_same_root(config.join_link, moved.join_link)
    try:
        session = await Session.connect(moved.join_link, Identity.load(home.identity))
    except TransientError as error:
        raise UsageError(f"not moved: {error}") from error
    await session.close()
    return change_settings(home, lambda now: now.with_options(link=link))


def _check_same_root(old: JoinLink, new: JoinLink) -> None:
    if old.root != new.root:
        raise UsageError(
            "the link names another root key than the one that this worker has joined: it is not "
            "from the same organiser. Do not use it, and tell the organiser"
        )


def take_key(home: Home, file: Path) -> None:
    """Be the device whose key was exported to ``file``, instead of a new one.

    Raises:
        UsageError: it is no key, or this folder has another one already.
    """
    identity = Identity.load(file)
    home.prepare()
    if not home.identity.exists():
        identity.save(home.identity)
    elif Identity.load(home.identity).peer_id != identity.peer_id:
        raise UsageError(
            f"{home.path} has a key of its own: give another folder with --home, or leave out --key"
        )


def describe(offer: Offer, home: Home) -> str:
    """The facts of a run and what this machine would give, in words for a person."""
    manifest, config = offer.manifest, offer.config
    title = manifest.campaign.title
    lines = [
        f"run          {manifest.name}" + ("" if title == manifest.name else f": {title}"),
        *([f"             {manifest.description}"] if manifest.description else []),
        f"model        {manifest.model_config_json['model_type']}, "
        f"released under {manifest.licence}",
        f"rounds       about {manifest.round.duration_s:.0f} s each, then an exchange of updates "
        f"({manifest.update.codec})",
        f"run id       {manifest.run_id.hex()}",
        "",
        *describe_gift(config, home),
        f"  known as   {offer.worker}",
        *([f'             "{config.name}"'] if config.name else []),
        "Work goes into a public record under that key.",
        "The name can be erased, the record cannot.",
    ]
    if offer.public_url:
        lines.append(f"Leaderboard  {offer.public_url}")
    if abs(offer.clock_error_s) > 60:
        lines.append(f"Note: this machine's clock is off by {offer.clock_error_s:+.0f} s.")
    return "\n".join(plain(line) for line in lines)


def describe_gift(config: WorkerConfig, home: Home) -> list[str]:
    """What this machine would give under these settings."""
    inbound = "none (client mode)" if config.client_mode is True else ", ".join(config.listen)
    return [
        "This machine would give:",
        f"  device     {config.device}",
        *(f"  {subject:<10} {words}" for subject, words in in_words(config.limits)),
        f"  listens on {inbound}",
        *([f"             {_MEASURED}"] if config.client_mode == "auto" else []),
        f"  keeps      shards, weights and updates in {home.path}",
    ]
