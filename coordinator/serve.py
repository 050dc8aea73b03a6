"""``coordinator serve``: a run folder, put together and served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from coordinator.admission import (
    Admission,
    AdmissionPolicy,
    dismiss_anchors,
    forget_addresses,
    let_in,
)
from coordinator.blobs import BlobIndex
from coordinator.checkpoints import CheckpointStore
from coordinator.config import RunFile, RunFolder, ServerSection, split_address
from coordinator.context import AuditOptions, EngineOptions
from coordinator.crowd.delegations import keep_delegations
from coordinator.database import Database
from coordinator.engine import Engine
from coordinator.evaluation import Evaluator
from coordinator.init import join_link, publish_link
from coordinator.interpreter import suit_a_service
from coordinator.key_files import crowd_key
from coordinator.keys import ANCHOR_KEY, KeyRing
from coordinator.newcomers import NewcomerPolicy, Quotas
from coordinator.ports import join_address, require_free
from coordinator.requests import Acquaintances, Rate, RequestGuard
from coordinator.resigning import sign_anew
from coordinator.schema import ControlRow
from coordinator.server import BoundServer, run_until_stopped, start_server, stop_on_signals
from coordinator.service import CoordinatorService, Greeting
from coordinator.steady_clock import SteadyClock
from coordinator.supervise import Child
from coordinator.troubles import Troubles
from ledger.log import Log
from protocol.dataset import DatasetManifest, folder_reader, read_manifest, verify_shard
from protocol.errors import UsageError
from protocol.identity import PeerId
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.wire import records_pb2 as wire

_CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Run:
    """A run folder, read and checked."""

    folder: RunFolder
    file: RunFile
    manifest: RunManifest
    dataset: DatasetManifest
    keys: KeyRing

    @property
    def settings(self) -> ServerSection:
        return self.file.server

    def choosing(self, *, anchor: bool, auditor: bool) -> Run:
        """The run without the children that the command line forbids."""
        settings = self.settings.model_copy(
            update={
                "anchor": anchor and self.settings.anchor,
                "auditor": auditor and self.settings.auditor,
            }
        )
        return replace(self, file=self.file.model_copy(update={"server": settings}))

    @classmethod
    def open(cls, folder: RunFolder, now_s: float) -> Run:
        """Read a folder that ``init`` made.

        Raises:
            UsageError: a part is missing, damaged or does not belong to the others.
        """
        folder.require()
        manifest = folder.read_manifest()
        dataset = _read_dataset(folder)
        if dataset.digest.hex() != manifest.dataset_sha256:
            raise UsageError(
                f"{folder.data} holds another dataset than the run's: restore the one with "
                f"digest {manifest.dataset_sha256}"
            )
        keys = KeyRing.load(folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s)
        return cls(folder, RunFile.load(folder.run_file), manifest, dataset, keys)


def _read_dataset(folder: RunFolder) -> DatasetManifest:
    """The dataset's manifest; of its files only what is quick: workers get none unhashed.

    Raises:
        UsageError: the folder is gone, or a shard is missing, too short or too long.
        BadDigest: the validation data are damaged.
    """
    try:
        dataset = read_manifest(folder.data)
    except UsageError as error:
        raise UsageError(
            f"the run's dataset at {folder.data.resolve()} cannot be used: {error}. Put back the "
            f"one that the run was made with, or make {folder.data} a link to it"
        ) from error
    shards = folder.data / "shards"
    for shard in dataset.shards:
        path = shards / f"{shard.sha256}.bin"
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UsageError(
                f"the shard {path} is missing or has the wrong size: restore it from a copy"
            )
    verify_shard(shards / f"{dataset.validation.sha256}.bin", dataset.validation)
    return dataset


async def serve_run(
    folder: RunFolder,
    *,
    listen: str | None = None,
    with_anchor: bool = True,
    with_auditor: bool = True,
    leaderboard: str | None = None,
    announce: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; see :mod:`coordinator.server` for the order of the end.

    Args:
        folder: made by ``init``.
        listen: instead of the settings' address.
        with_anchor: start the run's own anchor, unless the settings forbid it.
        with_auditor: start an auditor, unless the settings forbid it.
        leaderboard: ``host:port`` of a leaderboard to start; default: the settings'.
        announce: prints a line for a person.

    Raises:
        UsageError: the folder is unusable or the port taken.
    """
    suit_a_service()
    stop = stop_on_signals()
    run = Run.open(folder, time.time())
    with folder.hold():
        run = run.choosing(anchor=with_anchor, auditor=with_auditor)
        await _serve(run, listen, leaderboard, announce, stop)


async def _serve(
    run: Run,
    listen: str | None,
    leaderboard: str | None,
    announce: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    folder = run.folder
    page = leaderboard if leaderboard is not None else run.settings.leaderboard
    if page:
        require_free(*split_address(page), option="--leaderboard")
    database = Database(folder.database_url(run.settings))
    clock = SteadyClock()
    try:
        _prepare_database(database, run, clock)
        sequences = folder_reader(folder.data, run.dataset).validation(
            run.settings.validation_sequences
        )
        with Evaluator(run.manifest, sequences, folder.evaluation) as evaluator:
            checkpoints = CheckpointStore(folder.blobs_url(run.settings), run.manifest)
            log = Log(run.manifest.origin, run.keys.log, now_s=clock)
            engine = Engine(
                database,
                run.manifest,
                run.dataset,
                run.keys,
                checkpoints,
                log,
                clock=clock,
                evaluate=lambda weights: asyncio.to_thread(evaluator.loss, weights),
                options=engine_options(run.settings),
                troubles=Troubles(folder.troubles, clock),
                campaign_key=lambda: crowd_key(folder.keys, wire.KEY_PURPOSE_CAMPAIGN),
            )
            await engine.start()
            service = make_service(
                run,
                engine,
                database,
                checkpoints,
                log,
                public_url=_page_url(run, page),
                clock=clock,
            )
            bound = await start_server(
                service, run.keys.tls, listen or run.settings.listen, run.settings.limits
            )
            try:
                children = _children(run, bound, page)
                for line in _welcome(run, bound, page):
                    announce(line)
                await run_until_stopped(bound, engine, children, stop)
            finally:
                await bound.stop()
    finally:
        database.close()


def make_service(
    run: Run,
    engine: Engine,
    database: Database,
    checkpoints: CheckpointStore,
    log: Log,
    *,
    public_url: str = "",
    clock: Callable[[], float] = time.time,
) -> CoordinatorService:
    """The servicer of a run, with the organiser's limits."""
    settings, run_id = run.settings, run.manifest.run_id
    limits = settings.limits
    policy = AdmissionPolicy(
        run_id, settings.min_client_version, _anchors(run), newcomer_policy(settings)
    )
    return CoordinatorService(
        engine=engine,
        database=database,
        guard=RequestGuard(
            run_id,
            clock,
            per_key=Rate(limits.requests_per_s_per_key, limits.burst_per_key),
            per_address=Rate(limits.requests_per_s_per_address, limits.burst_per_address),
            known=Acquaintances(let_in(database)),
        ),
        admission=Admission(database, log, run.keys.round, policy, clock),
        blobs=BlobIndex(run.folder.data, run.dataset, checkpoints),
        greeting=Greeting(
            manifest=run.manifest.canonical(),
            delegations=run.keys.delegations,
            revocations=run.keys.revocations,
            min_client_version=settings.min_client_version,
            public_url=settings.public_url or public_url,
        ),
        clock=clock,
    )


def engine_options(settings: ServerSection) -> EngineOptions:
    """What the organiser tuned."""
    return EngineOptions(
        heartbeat_s=settings.heartbeat_s,
        acts_per_day=settings.limits.acts_per_donor_per_day,
        min_client_version=settings.min_client_version,
        audit=AuditOptions(**settings.audit.model_dump()),
    )


def newcomer_policy(settings: ServerSection) -> NewcomerPolicy:
    """Whom the organiser lets in."""
    limits = settings.limits
    return NewcomerPolicy(
        enrolment=settings.enrolment,
        quotas=Quotas(
            devices_per_donor=limits.devices_per_donor,
            devices_per_address=limits.devices_per_address,
            new_devices_per_address_per_day=limits.new_devices_per_address_per_day,
        ),
        backlog_jobs=settings.audit.backlog_jobs,
    )


def _prepare_database(database: Database, run: Run, clock: SteadyClock) -> None:
    """Upgrade the tables, check whose they are, drop what the last server's end made untrue.

    The clock goes on from the last time that the run's server was alive.

    Raises:
        UsageError: the database belongs to another run.
    """
    database.require()
    database.upgrade()
    with database.session() as session:
        control = session.get(ControlRow, 1)
        if control is None or control.run_id != run.manifest.run_id:
            raise UsageError(
                "the database in [server] database does not hold this run: restore it from a "
                "backup, or correct the setting"
            )
        clock.go_on_from(control.alive_at_s)
        keep_delegations(Log(run.manifest.origin, run.keys.log), session, run.keys, clock())
        sign_anew(session, run.keys, clock())
        if run.settings.public_address:  # the run may have moved here
            link = join_link(run.file, run.manifest)
            publish_link(session, run.folder, link, clock())
        dismiss_anchors(session, _anchors(run))
        if run.keys.anchor_id is not None and run.settings.anchor:
            forget_addresses(session, run.keys.anchor_id)


def _anchors(run: Run) -> frozenset[PeerId]:
    """The anchors that the organiser lists, and the run's own."""
    own = () if run.keys.anchor_id is None else (run.keys.anchor_id,)
    return frozenset((*run.settings.anchors, *own))


def _children(run: Run, bound: BoundServer, page: str) -> list[Child]:
    children = []
    if run.settings.anchor:
        children.append(_anchor(run, bound))
    if run.settings.auditor:
        children.append(_auditor(run))
    if page:
        url = run.folder.database_url(run.settings)
        children.append(
            Child(
                "leaderboard",
                ("ledger", "serve", "--db", url, "--listen", page),
                run.folder.logs / "leaderboard.log",
                _CHILD_ENVIRONMENT,
            )
        )
    return children


def _anchor(run: Run, bound: BoundServer) -> Child:
    """The run's own anchor: it reaches us by loopback, whatever the public address is."""
    home, key = run.folder.anchor_home, run.folder.keys / ANCHOR_KEY
    if not key.exists():
        raise UsageError(f"{key} is missing: restore it, or start with --no-anchor")
    host = bound.host if bound.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    link = JoinLink(host, bound.port, run.manifest.run_id, run.manifest.root)
    return Child(
        "anchor",
        (
            *("worker", "anchor", "--link", str(link), "--home", str(home.absolute())),
            *("--identity", str(key.absolute()), "--json-logs"),
            *run.settings.anchor_arguments,
        ),
        run.folder.logs / "anchor.log",
        _CHILD_ENVIRONMENT,
    )


def _auditor(run: Run) -> Child:
    """An auditor of the run's own; further ones may run on other machines."""
    return Child(
        "auditor",
        (
            *("coordinator", "audit", "--run-dir", str(run.folder.path.absolute())),
            *("--json-logs", *run.settings.auditor_arguments),
        ),
        run.folder.logs / "auditor.log",
        _CHILD_ENVIRONMENT,
    )


def _page_url(run: Run, page: str) -> str:
    """Where people find the leaderboard; nobody can visit a wildcard address."""
    if run.settings.public_url or not page:
        return run.settings.public_url
    host, port = split_address(page)
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = join_link(run.file, run.manifest).host
    return f"http://{join_address(host, port)}"


def _welcome(run: Run, bound: BoundServer, page: str) -> list[str]:
    address = join_address(bound.host, bound.port)
    lines = [
        f"Serving {run.manifest.name} on {address}. Ctrl-C stops.",
        f"Join link: {join_link(run.file, run.manifest, address)}",
    ]
    if page:
        lines.append(f"Leaderboard: {_page_url(run, page)}")
    return lines
