"""A unit of work in files, as the trainer process takes it, of whatever size a test needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from protocol.dataset import DatasetManifest, ShardInfo, Source
from protocol.manifest import RunManifest
from protocol.model import initial_weights, parameter_spec
from protocol.state import write_vector
from worker.trainer import Job, WarmUp


def write_job(folder: Path, manifest: RunManifest, steps: int) -> Job:
    """Noise of the model's vocabulary for so many steps, and the run's first weights."""
    batch, length = manifest.inner.sequences_per_batch, manifest.sequence_length
    vocabulary = int(manifest.model_config_json["vocab_size"])
    shape = (steps * batch, length)
    data = np.random.default_rng(1).integers(0, vocabulary, shape).astype("<u2").tobytes()
    shard = ShardInfo(sha256=hashlib.sha256(data).hexdigest(), sequences=shape[0], bytes=len(data))
    source = Source(name="x", licence="x", files=1, documents=1, bytes=1, sha256="0" * 64)
    dataset = DatasetManifest(
        dtype="uint16",
        sequence_length=length,
        vocab_size=vocabulary,
        eos_token_id=0,
        tokenizer_sha256="0" * 64,
        shuffle_seed=1,
        shards=(shard,),
        validation=shard,
        sources=(source,),
        licence="x",
        tokens=shape[0] * length,
    )
    (folder / "shard").write_bytes(data)
    (folder / "dataset").write_bytes(dataset.canonical())
    (folder / "manifest").write_bytes(manifest.canonical())
    spec = parameter_spec(manifest.model_config_json)
    write_vector(folder / "weights", initial_weights(manifest), spec)
    unit = {"start_sequence": 0, "end_sequence": shape[0], "steps": steps}
    return Job(
        manifest=str(folder / "manifest"),
        dataset=str(folder / "dataset"),
        shards={shard.sha256: str(folder / "shard")},
        weights=str(folder / "weights"),
        unit={**unit, "seed": 1, "tokens_base": 0},
        round=0,
        worker="worker",
        output=str(folder / "output"),
        snapshot=str(folder / "unit.snapshot"),
        threads=1,
        device="cpu",
        stop_after_s=600.0,
    )


def how(job: Job, **fields: object) -> WarmUp:
    """The way in which a job is computed, with other fields in their places."""
    given = {"manifest": job.manifest, "threads": job.threads, "device": job.device}
    return WarmUp(**{**given, "measure": False, **fields})  # type: ignore[arg-type]
