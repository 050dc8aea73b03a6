from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeyPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_PURPOSE_UNSPECIFIED: _ClassVar[KeyPurpose]
    KEY_PURPOSE_ROUND: _ClassVar[KeyPurpose]
    KEY_PURPOSE_LOG: _ClassVar[KeyPurpose]
    KEY_PURPOSE_TLS: _ClassVar[KeyPurpose]
    KEY_PURPOSE_CAMPAIGN: _ClassVar[KeyPurpose]
    KEY_PURPOSE_TREASURER: _ClassVar[KeyPurpose]

class WorkerPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_PHASE_UNSPECIFIED: _ClassVar[WorkerPhase]
    WORKER_PHASE_WAITING: _ClassVar[WorkerPhase]
    WORKER_PHASE_FETCHING: _ClassVar[WorkerPhase]
    WORKER_PHASE_TRAINING: _ClassVar[WorkerPhase]
    WORKER_PHASE_COMMITTING: _ClassVar[WorkerPhase]
    WORKER_PHASE_REDUCING: _ClassVar[WorkerPhase]
    WORKER_PHASE_PAUSED: _ClassVar[WorkerPhase]
    WORKER_PHASE_FINISHING: _ClassVar[WorkerPhase]

class Visibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VISIBILITY_UNSPECIFIED: _ClassVar[Visibility]
    VISIBILITY_PUBLIC: _ClassVar[Visibility]
    VISIBILITY_PRIVATE: _ClassVar[Visibility]
    VISIBILITY_SECRET: _ClassVar[Visibility]
KEY_PURPOSE_UNSPECIFIED: KeyPurpose
KEY_PURPOSE_ROUND: KeyPurpose
KEY_PURPOSE_LOG: KeyPurpose
KEY_PURPOSE_TLS: KeyPurpose
KEY_PURPOSE_CAMPAIGN: KeyPurpose
KEY_PURPOSE_TREASURER: KeyPurpose
WORKER_PHASE_UNSPECIFIED: WorkerPhase
WORKER_PHASE_WAITING: WorkerPhase
WORKER_PHASE_FETCHING: WorkerPhase
WORKER_PHASE_TRAINING: WorkerPhase
WORKER_PHASE_COMMITTING: WorkerPhase
WORKER_PHASE_REDUCING: WorkerPhase
WORKER_PHASE_PAUSED: WorkerPhase
WORKER_PHASE_FINISHING: WorkerPhase
VISIBILITY_UNSPECIFIED: Visibility
VISIBILITY_PUBLIC: Visibility
VISIBILITY_PRIVATE: Visibility
VISIBILITY_SECRET: Visibility

class Signature(_message.Message):
    __slots__ = ("sig", "keyid")
    SIG_FIELD_NUMBER: _ClassVar[int]
    KEYID_FIELD_NUMBER: _ClassVar[int]
    sig: bytes
    keyid: str
    def __init__(self, sig: _Optional[bytes] = ..., keyid: _Optional[str] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("payload", "payload_type", "signatures")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    payload_type: str
    signatures: _containers.RepeatedCompositeFieldContainer[Signature]
    def __init__(self, payload: _Optional[bytes] = ..., payload_type: _Optional[str] = ..., signatures: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ...) -> None: ...

class Delegation(_message.Message):
    __slots__ = ("run_id", "purpose", "public_key", "serial", "not_before_s", "not_after_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_S_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    purpose: KeyPurpose
    public_key: bytes
    serial: int
    not_before_s: int
    not_after_s: int
    def __init__(self, run_id: _Optional[bytes] = ..., purpose: _Optional[_Union[KeyPurpose, str]] = ..., public_key: _Optional[bytes] = ..., serial: _Optional[int] = ..., not_before_s: _Optional[int] = ..., not_after_s: _Optional[int] = ...) -> None: ...

class Revocation(_message.Message):
    __slots__ = ("run_id", "serial", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    serial: int
    reason: str
    def __init__(self, run_id: _Optional[bytes] = ..., serial: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class DeviceDelegation(_message.Message):
    __slots__ = ("donor", "worker", "not_after_s")
    DONOR_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    donor: str
    worker: str
    not_after_s: int
    def __init__(self, donor: _Optional[str] = ..., worker: _Optional[str] = ..., not_after_s: _Optional[int] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("run_id", "worker", "not_after_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    not_after_s: int
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., not_after_s: _Optional[int] = ...) -> None: ...

class Freshness(_message.Message):
    __slots__ = ("sent_at_ms", "nonce")
    SENT_AT_MS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    sent_at_ms: int
    nonce: bytes
    def __init__(self, sent_at_ms: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("device_class", "name", "threads", "memory_bytes", "energy_mwh", "energy_tokens")
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENERGY_MWH_FIELD_NUMBER: _ClassVar[int]
    ENERGY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    device_class: str
    name: str
    threads: int
    memory_bytes: int
    energy_mwh: int
    energy_tokens: int
    def __init__(self, device_class: _Optional[str] = ..., name: _Optional[str] = ..., threads: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., energy_mwh: _Optional[int] = ..., energy_tokens: _Optional[int] = ...) -> None: ...

class Enrolment(_message.Message):
    __slots__ = ("run_id", "worker", "donor", "device_delegation", "client_version", "device", "display_name", "anchor", "client_mode", "multiaddrs", "freshness", "invite")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_DELEGATION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MODE_FIELD_NUMBER: _ClassVar[int]
    MULTIADDRS_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    donor: str
    device_delegation: Envelope
    client_version: str
    device: Device
    display_name: str
    anchor: bool
    client_mode: bool
    multiaddrs: _containers.RepeatedScalarFieldContainer[str]
    freshness: Freshness
    invite: str
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., donor: _Optional[str] = ..., device_delegation: _Optional[_Union[Envelope, _Mapping]] = ..., client_version: _Optional[str] = ..., device: _Optional[_Union[Device, _Mapping]] = ..., display_name: _Optional[str] = ..., anchor: _Optional[bool] = ..., client_mode: _Optional[bool] = ..., multiaddrs: _Optional[_Iterable[str]] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ..., invite: _Optional[str] = ...) -> None: ...

class WorkRequest(_message.Message):
    __slots__ = ("run_id", "worker", "tokens_per_s", "freshness")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    tokens_per_s: float
    freshness: Freshness
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., tokens_per_s: _Optional[float] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("run_id", "worker", "round", "assignment_id", "steps_done", "tokens_per_s", "phase", "reason", "client_mode", "multiaddrs", "freshness", "bad_sources", "given_up")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MODE_FIELD_NUMBER: _ClassVar[int]
    MULTIADDRS_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    BAD_SOURCES_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    round: int
    assignment_id: bytes
    steps_done: int
    tokens_per_s: float
    phase: WorkerPhase
    reason: str
    client_mode: bool
    multiaddrs: _containers.RepeatedScalarFieldContainer[str]
    freshness: Freshness
    bad_sources: _containers.RepeatedScalarFieldContainer[str]
    given_up: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., round: _Optional[int] = ..., assignment_id: _Optional[bytes] = ..., steps_done: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., phase: _Optional[_Union[WorkerPhase, str]] = ..., reason: _Optional[str] = ..., client_mode: _Optional[bool] = ..., multiaddrs: _Optional[_Iterable[str]] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ..., bad_sources: _Optional[_Iterable[str]] = ..., given_up: _Optional[bytes] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("run_id", "worker", "freshness")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    freshness: Freshness
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("run_id", "assignment_id", "round", "worker", "state_digest", "epoch", "start_sequence", "end_sequence", "steps", "seed", "tokens_base", "deadline_ms", "probation")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    END_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_BASE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    PROBATION_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    assignment_id: bytes
    round: int
    worker: str
    state_digest: bytes
    epoch: int
    start_sequence: int
    end_sequence: int
    steps: int
    seed: int
    tokens_base: int
    deadline_ms: int
    probation: bool
    def __init__(self, run_id: _Optional[bytes] = ..., assignment_id: _Optional[bytes] = ..., round: _Optional[int] = ..., worker: _Optional[str] = ..., state_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ..., start_sequence: _Optional[int] = ..., end_sequence: _Optional[int] = ..., steps: _Optional[int] = ..., seed: _Optional[int] = ..., tokens_base: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., probation: _Optional[bool] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("run_id", "round", "assignment_id", "worker", "state_digest", "epoch", "start_sequence", "end_sequence", "steps", "tokens", "codec", "commitment_root", "chunk_count", "vector_elements", "update_norm", "mean_loss", "training_spec", "execution")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    END_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_ROOT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    VECTOR_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    MEAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SPEC_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    assignment_id: bytes
    worker: str
    state_digest: bytes
    epoch: int
    start_sequence: int
    end_sequence: int
    steps: int
    tokens: int
    codec: str
    commitment_root: bytes
    chunk_count: int
    vector_elements: int
    update_norm: float
    mean_loss: float
    training_spec: str
    execution: str
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., assignment_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., state_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ..., start_sequence: _Optional[int] = ..., end_sequence: _Optional[int] = ..., steps: _Optional[int] = ..., tokens: _Optional[int] = ..., codec: _Optional[str] = ..., commitment_root: _Optional[bytes] = ..., chunk_count: _Optional[int] = ..., vector_elements: _Optional[int] = ..., update_norm: _Optional[float] = ..., mean_loss: _Optional[float] = ..., training_spec: _Optional[str] = ..., execution: _Optional[str] = ...) -> None: ...

class RosterMember(_message.Message):
    __slots__ = ("worker", "assignment_id", "weight", "commitment_root", "client_mode")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_ROOT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MODE_FIELD_NUMBER: _ClassVar[int]
    worker: str
    assignment_id: bytes
    weight: int
    commitment_root: bytes
    client_mode: bool
    def __init__(self, worker: _Optional[str] = ..., assignment_id: _Optional[bytes] = ..., weight: _Optional[int] = ..., commitment_root: _Optional[bytes] = ..., client_mode: _Optional[bool] = ...) -> None: ...

class ReducerRange(_message.Message):
    __slots__ = ("reducer", "first_chunk", "end_chunk", "multiaddrs")
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_CHUNK_FIELD_NUMBER: _ClassVar[int]
    MULTIADDRS_FIELD_NUMBER: _ClassVar[int]
    reducer: str
    first_chunk: int
    end_chunk: int
    multiaddrs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reducer: _Optional[str] = ..., first_chunk: _Optional[int] = ..., end_chunk: _Optional[int] = ..., multiaddrs: _Optional[_Iterable[str]] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("run_id", "round", "attempt", "state_digest", "members", "reducers", "codec", "combine", "vector_elements", "chunk_elements", "chunk_count", "gather_deadline_ms", "broadcast_deadline_ms")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    REDUCERS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    COMBINE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    GATHER_DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    BROADCAST_DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    attempt: int
    state_digest: bytes
    members: _containers.RepeatedCompositeFieldContainer[RosterMember]
    reducers: _containers.RepeatedCompositeFieldContainer[ReducerRange]
    codec: str
    combine: str
    vector_elements: int
    chunk_elements: int
    chunk_count: int
    gather_deadline_ms: int
    broadcast_deadline_ms: int
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., members: _Optional[_Iterable[_Union[RosterMember, _Mapping]]] = ..., reducers: _Optional[_Iterable[_Union[ReducerRange, _Mapping]]] = ..., codec: _Optional[str] = ..., combine: _Optional[str] = ..., vector_elements: _Optional[int] = ..., chunk_elements: _Optional[int] = ..., chunk_count: _Optional[int] = ..., gather_deadline_ms: _Optional[int] = ..., broadcast_deadline_ms: _Optional[int] = ...) -> None: ...

class GatherStatement(_message.Message):
    __slots__ = ("group_id", "attempt", "sender", "reducer", "first_chunk", "end_chunk", "frames_sha256")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_CHUNK_FIELD_NUMBER: _ClassVar[int]
    FRAMES_SHA256_FIELD_NUMBER: _ClassVar[int]
    group_id: bytes
    attempt: int
    sender: str
    reducer: str
    first_chunk: int
    end_chunk: int
    frames_sha256: bytes
    def __init__(self, group_id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., sender: _Optional[str] = ..., reducer: _Optional[str] = ..., first_chunk: _Optional[int] = ..., end_chunk: _Optional[int] = ..., frames_sha256: _Optional[bytes] = ...) -> None: ...

class GatherOutcome(_message.Message):
    __slots__ = ("worker", "complete", "reason", "statement")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    complete: bool
    reason: str
    statement: Envelope
    def __init__(self, worker: _Optional[str] = ..., complete: _Optional[bool] = ..., reason: _Optional[str] = ..., statement: _Optional[_Union[Envelope, _Mapping]] = ...) -> None: ...

class ReducerReport(_message.Message):
    __slots__ = ("run_id", "round", "attempt", "group_id", "reducer", "revision", "outcomes")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    attempt: int
    group_id: bytes
    reducer: str
    revision: int
    outcomes: _containers.RepeatedCompositeFieldContainer[GatherOutcome]
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., group_id: _Optional[bytes] = ..., reducer: _Optional[str] = ..., revision: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[GatherOutcome, _Mapping]]] = ...) -> None: ...

class InclusionSet(_message.Message):
    __slots__ = ("run_id", "round", "attempt", "group_id", "members", "merged_tokens")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    MERGED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    attempt: int
    group_id: bytes
    members: _containers.RepeatedScalarFieldContainer[str]
    merged_tokens: int
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., group_id: _Optional[bytes] = ..., members: _Optional[_Iterable[str]] = ..., merged_tokens: _Optional[int] = ...) -> None: ...

class ResultChunk(_message.Message):
    __slots__ = ("group_id", "attempt", "chunk", "sha256", "reducer")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    group_id: bytes
    attempt: int
    chunk: int
    sha256: bytes
    reducer: str
    def __init__(self, group_id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., chunk: _Optional[int] = ..., sha256: _Optional[bytes] = ..., reducer: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("run_id", "round", "attempt", "worker", "state_digest")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    attempt: int
    worker: str
    state_digest: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., worker: _Optional[str] = ..., state_digest: _Optional[bytes] = ...) -> None: ...

class RunHead(_message.Message):
    __slots__ = ("run_id", "round", "state_digest", "weights_root", "momentum_root", "merged_tokens", "weights_sha256", "weights_bytes", "momentum_sha256", "momentum_bytes", "issued_at_ms", "settled_rounds")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_ROOT_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_ROOT_FIELD_NUMBER: _ClassVar[int]
    MERGED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_SHA256_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    SETTLED_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    state_digest: bytes
    weights_root: bytes
    momentum_root: bytes
    merged_tokens: int
    weights_sha256: bytes
    weights_bytes: int
    momentum_sha256: bytes
    momentum_bytes: int
    issued_at_ms: int
    settled_rounds: int
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., weights_root: _Optional[bytes] = ..., momentum_root: _Optional[bytes] = ..., merged_tokens: _Optional[int] = ..., weights_sha256: _Optional[bytes] = ..., weights_bytes: _Optional[int] = ..., momentum_sha256: _Optional[bytes] = ..., momentum_bytes: _Optional[int] = ..., issued_at_ms: _Optional[int] = ..., settled_rounds: _Optional[int] = ...) -> None: ...

class WeightHolder(_message.Message):
    __slots__ = ("run_id", "worker", "state_digest", "admission", "not_after_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    state_digest: bytes
    admission: Envelope
    not_after_s: int
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., state_digest: _Optional[bytes] = ..., admission: _Optional[_Union[Envelope, _Mapping]] = ..., not_after_s: _Optional[int] = ...) -> None: ...

class RosterHolder(_message.Message):
    __slots__ = ("run_id", "worker", "round", "attempt", "sha256", "total_bytes", "admission", "not_after_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    round: int
    attempt: int
    sha256: bytes
    total_bytes: int
    admission: Envelope
    not_after_s: int
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., sha256: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., admission: _Optional[_Union[Envelope, _Mapping]] = ..., not_after_s: _Optional[int] = ...) -> None: ...

class ChallengeAnswer(_message.Message):
    __slots__ = ("run_id", "challenge_id", "worker", "chunk_sha256", "projections", "unavailable")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SHA256_FIELD_NUMBER: _ClassVar[int]
    PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    challenge_id: bytes
    worker: str
    chunk_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    projections: bytes
    unavailable: str
    def __init__(self, run_id: _Optional[bytes] = ..., challenge_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., chunk_sha256: _Optional[_Iterable[bytes]] = ..., projections: _Optional[bytes] = ..., unavailable: _Optional[str] = ...) -> None: ...

class OpenedChunk(_message.Message):
    __slots__ = ("chunk", "encoded", "proof", "member")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    chunk: int
    encoded: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    member: str
    def __init__(self, chunk: _Optional[int] = ..., encoded: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., member: _Optional[str] = ...) -> None: ...

class Screening(_message.Message):
    __slots__ = ("run_id", "group_id", "attempt", "reducer", "first_chunk", "end_chunk", "members", "norms", "cosines")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_CHUNK_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    COSINES_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    group_id: bytes
    attempt: int
    reducer: str
    first_chunk: int
    end_chunk: int
    members: int
    norms: bytes
    cosines: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., group_id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., reducer: _Optional[str] = ..., first_chunk: _Optional[int] = ..., end_chunk: _Optional[int] = ..., members: _Optional[int] = ..., norms: _Optional[bytes] = ..., cosines: _Optional[bytes] = ...) -> None: ...

class AuditResult(_message.Message):
    __slots__ = ("run_id", "job_id", "auditor", "execution", "steps", "mean_loss", "root", "projections", "update_sha256", "update_bytes", "compute_s", "failed")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AUDITOR_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MEAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    UPDATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    job_id: bytes
    auditor: str
    execution: str
    steps: int
    mean_loss: float
    root: bytes
    projections: bytes
    update_sha256: bytes
    update_bytes: int
    compute_s: float
    failed: str
    def __init__(self, run_id: _Optional[bytes] = ..., job_id: _Optional[bytes] = ..., auditor: _Optional[str] = ..., execution: _Optional[str] = ..., steps: _Optional[int] = ..., mean_loss: _Optional[float] = ..., root: _Optional[bytes] = ..., projections: _Optional[bytes] = ..., update_sha256: _Optional[bytes] = ..., update_bytes: _Optional[int] = ..., compute_s: _Optional[float] = ..., failed: _Optional[str] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("what", "chunk", "distance", "bound", "sha256")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    what: str
    chunk: int
    distance: float
    bound: float
    sha256: bytes
    def __init__(self, what: _Optional[str] = ..., chunk: _Optional[int] = ..., distance: _Optional[float] = ..., bound: _Optional[float] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("run_id", "audit_id", "subject", "round", "worker", "assignment_id", "group_id", "verdict", "reason", "findings", "results", "decided_at_ms", "why")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AUDIT_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    audit_id: bytes
    subject: str
    round: int
    worker: str
    assignment_id: bytes
    group_id: bytes
    verdict: str
    reason: str
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    results: _containers.RepeatedScalarFieldContainer[bytes]
    decided_at_ms: int
    why: str
    def __init__(self, run_id: _Optional[bytes] = ..., audit_id: _Optional[bytes] = ..., subject: _Optional[str] = ..., round: _Optional[int] = ..., worker: _Optional[str] = ..., assignment_id: _Optional[bytes] = ..., group_id: _Optional[bytes] = ..., verdict: _Optional[str] = ..., reason: _Optional[str] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., results: _Optional[_Iterable[bytes]] = ..., decided_at_ms: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class Appeal(_message.Message):
    __slots__ = ("run_id", "worker", "assignment_id", "freshness")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    worker: str
    assignment_id: bytes
    freshness: Freshness
    def __init__(self, run_id: _Optional[bytes] = ..., worker: _Optional[str] = ..., assignment_id: _Optional[bytes] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class CampaignTerms(_message.Message):
    __slots__ = ("run_id", "campaign", "revision", "title", "purpose", "goal_microcredits", "goal_minor", "currency", "starts_s", "ends_s", "when_reached", "when_missed", "organisers", "reference_device", "reference_microcredits_per_hour")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    GOAL_MICROCREDITS_FIELD_NUMBER: _ClassVar[int]
    GOAL_MINOR_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    STARTS_S_FIELD_NUMBER: _ClassVar[int]
    ENDS_S_FIELD_NUMBER: _ClassVar[int]
    WHEN_REACHED_FIELD_NUMBER: _ClassVar[int]
    WHEN_MISSED_FIELD_NUMBER: _ClassVar[int]
    ORGANISERS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_DEVICE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_MICROCREDITS_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    campaign: bytes
    revision: int
    title: str
    purpose: str
    goal_microcredits: int
    goal_minor: int
    currency: str
    starts_s: int
    ends_s: int
    when_reached: str
    when_missed: str
    organisers: _containers.RepeatedScalarFieldContainer[str]
    reference_device: str
    reference_microcredits_per_hour: int
    def __init__(self, run_id: _Optional[bytes] = ..., campaign: _Optional[bytes] = ..., revision: _Optional[int] = ..., title: _Optional[str] = ..., purpose: _Optional[str] = ..., goal_microcredits: _Optional[int] = ..., goal_minor: _Optional[int] = ..., currency: _Optional[str] = ..., starts_s: _Optional[int] = ..., ends_s: _Optional[int] = ..., when_reached: _Optional[str] = ..., when_missed: _Optional[str] = ..., organisers: _Optional[_Iterable[str]] = ..., reference_device: _Optional[str] = ..., reference_microcredits_per_hour: _Optional[int] = ...) -> None: ...

class CampaignEnd(_message.Message):
    __slots__ = ("run_id", "campaign", "outcome", "at_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    campaign: bytes
    outcome: str
    at_s: int
    def __init__(self, run_id: _Optional[bytes] = ..., campaign: _Optional[bytes] = ..., outcome: _Optional[str] = ..., at_s: _Optional[int] = ...) -> None: ...

class CampaignNews(_message.Message):
    __slots__ = ("run_id", "campaign", "news", "title", "text", "at_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    campaign: bytes
    news: bytes
    title: str
    text: str
    at_s: int
    def __init__(self, run_id: _Optional[bytes] = ..., campaign: _Optional[bytes] = ..., news: _Optional[bytes] = ..., title: _Optional[str] = ..., text: _Optional[str] = ..., at_s: _Optional[int] = ...) -> None: ...

class Pledge(_message.Message):
    __slots__ = ("run_id", "campaign", "pledge", "revision", "donor", "microcredits", "until_s", "visibility", "salt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    PLEDGE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    MICROCREDITS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    campaign: bytes
    pledge: bytes
    revision: int
    donor: str
    microcredits: int
    until_s: int
    visibility: Visibility
    salt: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., campaign: _Optional[bytes] = ..., pledge: _Optional[bytes] = ..., revision: _Optional[int] = ..., donor: _Optional[str] = ..., microcredits: _Optional[int] = ..., until_s: _Optional[int] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., salt: _Optional[bytes] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("run_id", "campaign", "pool", "currency", "at_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    campaign: bytes
    pool: str
    currency: str
    at_s: int
    def __init__(self, run_id: _Optional[bytes] = ..., campaign: _Optional[bytes] = ..., pool: _Optional[str] = ..., currency: _Optional[str] = ..., at_s: _Optional[int] = ...) -> None: ...

class Donation(_message.Message):
    __slots__ = ("run_id", "campaign", "donation", "donor", "pool", "amount_minor", "currency", "received_s", "reference", "visibility", "salt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    DONATION_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MINOR_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_S_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    campaign: bytes
    donation: bytes
    donor: str
    pool: str
    amount_minor: int
    currency: str
    received_s: int
    reference: str
    visibility: Visibility
    salt: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., campaign: _Optional[bytes] = ..., donation: _Optional[bytes] = ..., donor: _Optional[str] = ..., pool: _Optional[str] = ..., amount_minor: _Optional[int] = ..., currency: _Optional[str] = ..., received_s: _Optional[int] = ..., reference: _Optional[str] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., salt: _Optional[bytes] = ...) -> None: ...

class Voiding(_message.Message):
    __slots__ = ("run_id", "leaf", "reason", "salt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    LEAF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    leaf: int
    reason: str
    salt: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., leaf: _Optional[int] = ..., reason: _Optional[str] = ..., salt: _Optional[bytes] = ...) -> None: ...

class TeamFounding(_message.Message):
    __slots__ = ("run_id", "team", "founder")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    FOUNDER_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    team: bytes
    founder: str
    def __init__(self, run_id: _Optional[bytes] = ..., team: _Optional[bytes] = ..., founder: _Optional[str] = ...) -> None: ...

class TeamMembership(_message.Message):
    __slots__ = ("run_id", "donor", "team", "freshness")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    donor: str
    team: bytes
    freshness: Freshness
    def __init__(self, run_id: _Optional[bytes] = ..., donor: _Optional[str] = ..., team: _Optional[bytes] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class KeyChange(_message.Message):
    __slots__ = ("run_id", "old", "new", "consent")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    old: str
    new: str
    consent: Envelope
    def __init__(self, run_id: _Optional[bytes] = ..., old: _Optional[str] = ..., new: _Optional[str] = ..., consent: _Optional[_Union[Envelope, _Mapping]] = ...) -> None: ...

class AccountMerge(_message.Message):
    __slots__ = ("run_id", "donor", "into", "consent")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    INTO_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    donor: str
    into: str
    consent: Envelope
    def __init__(self, run_id: _Optional[bytes] = ..., donor: _Optional[str] = ..., into: _Optional[str] = ..., consent: _Optional[_Union[Envelope, _Mapping]] = ...) -> None: ...

class KeyConsent(_message.Message):
    __slots__ = ("run_id", "of", "into")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    INTO_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    of: str
    into: str
    def __init__(self, run_id: _Optional[bytes] = ..., of: _Optional[str] = ..., into: _Optional[str] = ...) -> None: ...

class ProfileUpdate(_message.Message):
    __slots__ = ("run_id", "donor", "team", "display_name", "url", "about", "show_devices", "erase", "freshness")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    SHOW_DEVICES_FIELD_NUMBER: _ClassVar[int]
    ERASE_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    donor: str
    team: bytes
    display_name: str
    url: str
    about: str
    show_devices: bool
    erase: bool
    freshness: Freshness
    def __init__(self, run_id: _Optional[bytes] = ..., donor: _Optional[str] = ..., team: _Optional[bytes] = ..., display_name: _Optional[str] = ..., url: _Optional[str] = ..., about: _Optional[str] = ..., show_devices: _Optional[bool] = ..., erase: _Optional[bool] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...
