"""``coordinator release``: an ordinary Hugging Face folder with a signed account of its origin.

Steps; a failure in any leaves nothing behind:

1. choose the state, load its weights from the checkpoint store, digest checked;
2. write model, configuration, tokenizer, card and licence into a folder beside the target;
3. load the folder as a stranger would and compare every weight with the state's;
4. sign the provenance over all files, append the release's leaf, sign the new head;
5. rename the folder into place.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.checkpoints import CheckpointStore, Vector
from coordinator.config import RunFolder
from coordinator.database import Database
from coordinator.keys import KeyRing
from coordinator.model_card import CardFacts, licence_note, model_card
from coordinator.provenance import FILE_NAME, Origin, sign_statement, statement
from coordinator.schema import RoundRow, StateRow
from ledger.donors import names_of
from ledger.fold import fold
from ledger.log import Log, latest_head, read_leaves
from ledger.records import ReleaseLeaf
from protocol.dataset import DatasetManifest, read_manifest
from protocol.digest import file_sha256
from protocol.errors import BadDigest, UsageError
from protocol.manifest import RunManifest
from protocol.model import flatten
from protocol.state import write_vector

MODEL_NAME = "model.safetensors"

_log = structlog.get_logger()


@dataclass(frozen=True)
class Chosen:
    """The state that is released, and what the record said at that moment."""

    settled_rounds: int
    digest: bytes
    merged_tokens: int
    weights_sha256: bytes
    validation_loss: float | None
    saved_at_s: int


@dataclass(frozen=True)
class ReleaseResult:
    """What was made."""

    folder: Path
    weights_sha256: str
    settled_rounds: int
    merged_tokens: int
    validation_loss: float | None
    leaf_index: int


def release(folder: RunFolder, out: Path, *, round_: int | None = None) -> ReleaseResult:
    """Write a release of the run in ``folder``.

    Args:
        folder: the run; its coordinator may be serving meanwhile.
        out: the folder to make.
        round_: release the state after this round; default: the newest.

    Raises:
        UsageError: ``out`` exists, no such round, or the disk is full.
        BadDigest: a stored file is damaged.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another folder with --out")
    settings = folder.settings()
    manifest = folder.read_manifest()
    dataset = read_manifest(folder.data)
    keys = KeyRing.load(
        folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=time.time()
    )
    store = CheckpointStore(folder.blobs_url(settings), manifest, sweep=False)
    database = Database(folder.database_url(settings))
    database.require()
    try:
        with database.session() as session:
            chosen = _choose(session, round_)
            facts = _facts(session, manifest, dataset, folder, chosen, store)
        weights = _load(store, chosen)
        with _partial(out) as partial:
            _write_model(partial, manifest, dataset, folder, weights, store)
            _write_words(partial, facts)
            _verify(partial, weights)
            digest = _sign(partial, facts, chosen, keys)
            index = _record(
                database, Log(manifest.origin, keys.log), facts, chosen, partial, digest
            )
    finally:
        database.close()
    _log.info("released", folder=str(out), settled_rounds=chosen.settled_rounds)
    return ReleaseResult(
        out,
        file_sha256(out / MODEL_NAME),
        chosen.settled_rounds,
        chosen.merged_tokens,
        chosen.validation_loss,
        index,
    )


def _choose(session: Session, round_: int | None) -> Chosen:
    row: StateRow | None
    if round_ is None:
        row = session.scalar(select(StateRow).order_by(StateRow.settled_rounds.desc()).limit(1))
    else:
        ended = session.get(RoundRow, round_)
        if ended is None or ended.ended_at_s is None:
            raise UsageError(f"round {round_} has not ended: see 'barnraise coordinator rounds'")
        row = session.get(StateRow, ended.settled_after)
    if row is None:
        raise UsageError("the database holds no state: was it made by 'coordinator init'?")
    return Chosen(
        row.settled_rounds,
        row.digest,
        row.merged_tokens,
        row.weights_sha256,
        row.validation_loss,
        int(row.saved_at_s),
    )


def _facts(
    session: Session,
    manifest: RunManifest,
    dataset: DatasetManifest,
    folder: RunFolder,
    chosen: Chosen,
    store: CheckpointStore,
) -> CardFacts:
    head = latest_head(session)
    if head is None:
        raise UsageError("the public record has no signed head: was the run made by init?")
    board = fold(read_leaves(session, 0, head.tree_size))
    return CardFacts(
        manifest=manifest,
        dataset=dataset,
        board=board,
        names=names_of(session, board.donors),
        ledger_head=head.checkpoint,
        join_link=folder.join_link.read_text().strip(),
        settled_rounds=chosen.settled_rounds,
        merged_tokens=chosen.merged_tokens,
        validation_loss=chosen.validation_loss,
        parameters=store.elements,
    )


def _load(store: CheckpointStore, chosen: Chosen) -> Vector:
    try:
        return store.load_weights(chosen.weights_sha256)
    except FileNotFoundError as error:
        raise UsageError(
            f"the weights after {chosen.settled_rounds} settled rounds are kept no more: "
            "release a later round"
        ) from error


def _write_model(
    folder: Path,
    manifest: RunManifest,
    dataset: DatasetManifest,
    run: RunFolder,
    weights: Vector,
    store: CheckpointStore,
) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    write_vector(folder / MODEL_NAME, weights, store.spec)
    (folder / MODEL_NAME).chmod(0o644)
    settings = dict(manifest.model_config_json)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.dtype = "float32"
    config.eos_token_id = dataset.eos_token_id
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=dataset.eos_token_id,
        eos_token_id=dataset.eos_token_id,
        pad_token_id=dataset.eos_token_id,
    ).save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(run.data / "tokenizer.json"))
    eos = tokenizer.id_to_token(dataset.eos_token_id)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=eos,
        eos_token=eos,
        pad_token=eos,
        model_max_length=manifest.sequence_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _write_words(folder: Path, facts: CardFacts) -> None:
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    (folder / "LICENSE").write_text(licence_note(facts.manifest, facts.dataset), encoding="utf-8")
    (folder / "run-manifest.json").write_bytes(facts.manifest.canonical())
    (folder / "dataset.json").write_bytes(facts.dataset.canonical())


def _verify(folder: Path, weights: Vector) -> None:
    """Load the folder as a stranger would.

    Raises:
        BadDigest: what was loaded is not the state.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    if not np.array_equal(flatten(model), weights):
        raise BadDigest("the released folder does not load to the state's weights: disk fault?")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id != model.config.eos_token_id:
        raise BadDigest("the released tokenizer's end-of-text token is not the model's")


def _sign(folder: Path, facts: CardFacts, chosen: Chosen, keys: KeyRing) -> str:
    """Write the provenance statement; returns its SHA-256."""
    subjects = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in folder.rglob("*")
        if path.is_file()
    }
    origin = Origin(
        manifest=facts.manifest,
        ledger_head=facts.ledger_head,
        state_digest=chosen.digest,
        settled_rounds=chosen.settled_rounds,
        merged_tokens=chosen.merged_tokens,
        started_s=facts.board.opened_s,
        finished_s=chosen.saved_at_s,
        version=metadata.version("barnraise"),
    )
    sealed = sign_statement(statement(subjects, origin), keys.round)
    (folder / FILE_NAME).write_bytes(sealed)
    return hashlib.sha256(sealed).hexdigest()


def _record(
    database: Database,
    log: Log,
    facts: CardFacts,
    chosen: Chosen,
    folder: Path,
    provenance_sha256: str,
) -> int:
    """Append the release's leaf under a new head; returns its index."""
    leaf = ReleaseLeaf(
        run_id=facts.manifest.run_id.hex(),
        at_s=int(time.time()),
        settled_rounds=chosen.settled_rounds,
        state_digest=chosen.digest.hex(),
        weights_sha256=file_sha256(folder / MODEL_NAME),
        provenance_sha256=provenance_sha256,
    )
    with database.session() as session:
        (index,) = log.append(session, [leaf])
    with database.session() as session:
        log.sign_head(session)
    return index


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes it if all goes well, and nothing otherwise."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield partial
            partial.chmod(0o755)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write the release to {out}: {error.strerror or error}; nothing was kept. "
            "Free space there, or choose another folder with --out"
        ) from error
