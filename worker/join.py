"""Joining a run: key, Hello, facts and limits, consent, configuration. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import TransientError, UsageError
from protocol.identity import Identity
from protocol.manifest import RunManifest
from worker.config import Home, WorkerConfig

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
            session.clock_error_s,
            greeting.public_url,
        )
    finally:
        await session.close()


def _check_other_run(home: Home, config: WorkerConfig) -> None:
    if home.config.exists():
        joined = WorkerConfig.load(home.config).join_link.run_id
        if joined != config.join_link.run_id:
            raise UsageError(
                f"{home.path} has joined run {joined.hex()[:16]} already: "
                "give another folder with --home for another run"
            )


def describe(offer: Offer, home: Home) -> str:
    """The facts of a run and what this machine would give, in words for a person."""
    manifest, config = offer.manifest, offer.config
    title = manifest.campaign.title
    inbound = "none (client mode)" if config.client_mode is True else ", ".join(config.listen)
    lines = [
        f"run          {manifest.name}" + ("" if title == manifest.name else f": {title}"),
        *([f"             {manifest.description}"] if manifest.description else []),
        f"model        {manifest.model_config_json['model_type']}, "
        f"released under {manifest.licence}",
        f"rounds       about {manifest.round.duration_s:.0f} s each, then an exchange of updates "
        f"({manifest.update.codec})",
        f"run id       {manifest.run_id.hex()}",
        "",
        "This machine would give:",
        f"  processor  {config.threads} thread(s), device {config.device}",
        f"  network    listens on {inbound}",
        *([f"             {_MEASURED}"] if config.client_mode == "auto" else []),
        f"  disk       shards, weights and updates in {home.path}",
        f"  known as   {offer.worker}",
        *([f'             "{config.name}"'] if config.name else []),
        "Work goes into a public record under that key.",
        "The name can be erased, the record cannot.",
    ]
    if offer.public_url:
        lines.append(f"Leaderboard  {offer.public_url}")
    if abs(offer.clock_error_s) > 60:
        lines.append(f"Note: this machine's clock is off by {offer.clock_error_s:+.0f} s.")
    return "\n".join(lines)
