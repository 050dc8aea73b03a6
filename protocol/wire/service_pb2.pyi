from protocol.wire import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_KEEP: _ClassVar[Action]
    ACTION_ABANDON: _ClassVar[Action]
    ACTION_PAUSE: _ClassVar[Action]
    ACTION_UPGRADE: _ClassVar[Action]

class ChallengeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHALLENGE_KIND_UNSPECIFIED: _ClassVar[ChallengeKind]
    CHALLENGE_KIND_PROJECT: _ClassVar[ChallengeKind]
    CHALLENGE_KIND_OPEN: _ClassVar[ChallengeKind]
    CHALLENGE_KIND_INPUTS: _ClassVar[ChallengeKind]

class StatePart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_PART_UNSPECIFIED: _ClassVar[StatePart]
    STATE_PART_WEIGHTS: _ClassVar[StatePart]
    STATE_PART_MOMENTUM: _ClassVar[StatePart]
ACTION_UNSPECIFIED: Action
ACTION_KEEP: Action
ACTION_ABANDON: Action
ACTION_PAUSE: Action
ACTION_UPGRADE: Action
CHALLENGE_KIND_UNSPECIFIED: ChallengeKind
CHALLENGE_KIND_PROJECT: ChallengeKind
CHALLENGE_KIND_OPEN: ChallengeKind
CHALLENGE_KIND_INPUTS: ChallengeKind
STATE_PART_UNSPECIFIED: StatePart
STATE_PART_WEIGHTS: StatePart
STATE_PART_MOMENTUM: StatePart

class HelloRequest(_message.Message):
    __slots__ = ("client_version", "run_id")
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    client_version: str
    run_id: bytes
    def __init__(self, client_version: _Optional[str] = ..., run_id: _Optional[bytes] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("server_version", "min_client_version", "client_supported", "advice", "server_time_ms", "manifest", "delegations", "revocations", "run_head", "anchors", "public_url")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SUPPORTED_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DELEGATIONS_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    RUN_HEAD_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_URL_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    min_client_version: str
    client_supported: bool
    advice: str
    server_time_ms: int
    manifest: bytes
    delegations: _containers.RepeatedCompositeFieldContainer[_records_pb2.Envelope]
    revocations: _containers.RepeatedCompositeFieldContainer[_records_pb2.Envelope]
    run_head: _records_pb2.Envelope
    anchors: _containers.RepeatedScalarFieldContainer[str]
    public_url: str
    def __init__(self, server_version: _Optional[str] = ..., min_client_version: _Optional[str] = ..., client_supported: _Optional[bool] = ..., advice: _Optional[str] = ..., server_time_ms: _Optional[int] = ..., manifest: _Optional[bytes] = ..., delegations: _Optional[_Iterable[_Union[_records_pb2.Envelope, _Mapping]]] = ..., revocations: _Optional[_Iterable[_Union[_records_pb2.Envelope, _Mapping]]] = ..., run_head: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., anchors: _Optional[_Iterable[str]] = ..., public_url: _Optional[str] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("admitted", "message", "admission", "code")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    admitted: bool
    message: str
    admission: _records_pb2.Envelope
    code: str
    def __init__(self, admitted: _Optional[bool] = ..., message: _Optional[str] = ..., admission: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., code: _Optional[str] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("reason", "code", "retry_after_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    code: str
    retry_after_ms: int
    def __init__(self, reason: _Optional[str] = ..., code: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class WorkReply(_message.Message):
    __slots__ = ("assignment", "wait", "run_head")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    RUN_HEAD_FIELD_NUMBER: _ClassVar[int]
    assignment: _records_pb2.Envelope
    wait: Wait
    run_head: _records_pb2.Envelope
    def __init__(self, assignment: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., run_head: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ...) -> None: ...

class CommitReply(_message.Message):
    __slots__ = ("first",)
    FIRST_FIELD_NUMBER: _ClassVar[int]
    first: bool
    def __init__(self, first: _Optional[bool] = ...) -> None: ...

class ReducerReportReply(_message.Message):
    __slots__ = ("inclusion_set",)
    INCLUSION_SET_FIELD_NUMBER: _ClassVar[int]
    inclusion_set: _records_pb2.Envelope
    def __init__(self, inclusion_set: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ...) -> None: ...

class ResultPiece(_message.Message):
    __slots__ = ("result", "encoded")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    result: _records_pb2.Envelope
    encoded: bytes
    def __init__(self, result: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., encoded: _Optional[bytes] = ...) -> None: ...

class SubmitResultsReply(_message.Message):
    __slots__ = ("accepted", "missing")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    missing: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, accepted: _Optional[int] = ..., missing: _Optional[_Iterable[int]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("settled", "agrees", "run_head", "missing")
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    RUN_HEAD_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    settled: bool
    agrees: bool
    run_head: _records_pb2.Envelope
    missing: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, settled: _Optional[bool] = ..., agrees: _Optional[bool] = ..., run_head: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., missing: _Optional[_Iterable[int]] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("challenge_id", "kind", "group_id", "assignment_id", "members", "first_chunk", "end_chunk", "chunks", "projection_seed")
    CHALLENGE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_SEED_FIELD_NUMBER: _ClassVar[int]
    challenge_id: bytes
    kind: ChallengeKind
    group_id: bytes
    assignment_id: bytes
    members: _containers.RepeatedScalarFieldContainer[str]
    first_chunk: int
    end_chunk: int
    chunks: _containers.RepeatedScalarFieldContainer[int]
    projection_seed: bytes
    def __init__(self, challenge_id: _Optional[bytes] = ..., kind: _Optional[_Union[ChallengeKind, str]] = ..., group_id: _Optional[bytes] = ..., assignment_id: _Optional[bytes] = ..., members: _Optional[_Iterable[str]] = ..., first_chunk: _Optional[int] = ..., end_chunk: _Optional[int] = ..., chunks: _Optional[_Iterable[int]] = ..., projection_seed: _Optional[bytes] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("action", "reason", "server_time_ms", "challenges", "retain_from_round", "next_heartbeat_ms")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    CHALLENGES_FIELD_NUMBER: _ClassVar[int]
    RETAIN_FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    NEXT_HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    action: Action
    reason: str
    server_time_ms: int
    challenges: _containers.RepeatedCompositeFieldContainer[Challenge]
    retain_from_round: int
    next_heartbeat_ms: int
    def __init__(self, action: _Optional[_Union[Action, str]] = ..., reason: _Optional[str] = ..., server_time_ms: _Optional[int] = ..., challenges: _Optional[_Iterable[_Union[Challenge, _Mapping]]] = ..., retain_from_round: _Optional[int] = ..., next_heartbeat_ms: _Optional[int] = ...) -> None: ...

class AnswerChallengeRequest(_message.Message):
    __slots__ = ("answer", "chunks")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    answer: _records_pb2.Envelope
    chunks: _containers.RepeatedCompositeFieldContainer[_records_pb2.OpenedChunk]
    def __init__(self, answer: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[_records_pb2.OpenedChunk, _Mapping]]] = ...) -> None: ...

class ChallengeReply(_message.Message):
    __slots__ = ("valid",)
    VALID_FIELD_NUMBER: _ClassVar[int]
    valid: bool
    def __init__(self, valid: _Optional[bool] = ...) -> None: ...

class ScreeningReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AppealReply(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class ActReply(_message.Message):
    __slots__ = ("recorded", "leaf_index", "message")
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    recorded: bool
    leaf_index: int
    message: str
    def __init__(self, recorded: _Optional[bool] = ..., leaf_index: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("sequence", "phase", "round", "run_head", "roster", "inclusion_set", "notice", "results_wanted", "server_time_ms", "deadline_ms", "running_from")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RUN_HEAD_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    INCLUSION_SET_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_WANTED_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FROM_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    phase: str
    round: int
    run_head: _records_pb2.Envelope
    roster: _records_pb2.Envelope
    inclusion_set: _records_pb2.Envelope
    notice: str
    results_wanted: ResultsWanted
    server_time_ms: int
    deadline_ms: int
    running_from: int
    def __init__(self, sequence: _Optional[int] = ..., phase: _Optional[str] = ..., round: _Optional[int] = ..., run_head: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., roster: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., inclusion_set: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., notice: _Optional[str] = ..., results_wanted: _Optional[_Union[ResultsWanted, _Mapping]] = ..., server_time_ms: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., running_from: _Optional[int] = ...) -> None: ...

class ResultsWanted(_message.Message):
    __slots__ = ("group_id", "chunks")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    group_id: bytes
    chunks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group_id: _Optional[bytes] = ..., chunks: _Optional[_Iterable[int]] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("run_id", "state_digest", "part", "offset")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    state_digest: bytes
    part: StatePart
    offset: int
    def __init__(self, run_id: _Optional[bytes] = ..., state_digest: _Optional[bytes] = ..., part: _Optional[_Union[StatePart, str]] = ..., offset: _Optional[int] = ...) -> None: ...

class GetShardRequest(_message.Message):
    __slots__ = ("run_id", "sha256", "offset")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    sha256: bytes
    offset: int
    def __init__(self, run_id: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("offset", "total_bytes", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    total_bytes: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class GetReceiptRequest(_message.Message):
    __slots__ = ("run_id", "assignment_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    assignment_id: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., assignment_id: _Optional[bytes] = ...) -> None: ...

class GetReceiptReply(_message.Message):
    __slots__ = ("leaf", "proof")
    LEAF_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    leaf: bytes
    proof: str
    def __init__(self, leaf: _Optional[bytes] = ..., proof: _Optional[str] = ...) -> None: ...

class GetAuditRequest(_message.Message):
    __slots__ = ("run_id", "round", "worker")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    worker: str
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., worker: _Optional[str] = ...) -> None: ...

class AuditFile(_message.Message):
    __slots__ = ("assignment", "contribution", "roster", "inclusion_set", "preimage", "chance_ppm", "why", "verdicts", "audit_results", "projection_seed", "projections", "run_head", "opened_chunks", "more_results", "more_projections", "tolerance")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    INCLUSION_SET_FIELD_NUMBER: _ClassVar[int]
    PREIMAGE_FIELD_NUMBER: _ClassVar[int]
    CHANCE_PPM_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_RESULTS_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_SEED_FIELD_NUMBER: _ClassVar[int]
    PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    RUN_HEAD_FIELD_NUMBER: _ClassVar[int]
    OPENED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MORE_RESULTS_FIELD_NUMBER: _ClassVar[int]
    MORE_PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    assignment: _records_pb2.Envelope
    contribution: _records_pb2.Envelope
    roster: _records_pb2.Envelope
    inclusion_set: _records_pb2.Envelope
    preimage: bytes
    chance_ppm: int
    why: str
    verdicts: _containers.RepeatedCompositeFieldContainer[_records_pb2.Envelope]
    audit_results: _containers.RepeatedCompositeFieldContainer[_records_pb2.Envelope]
    projection_seed: bytes
    projections: _containers.RepeatedCompositeFieldContainer[_records_pb2.Envelope]
    run_head: _records_pb2.Envelope
    opened_chunks: int
    more_results: int
    more_projections: int
    tolerance: str
    def __init__(self, assignment: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., contribution: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., roster: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., inclusion_set: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., preimage: _Optional[bytes] = ..., chance_ppm: _Optional[int] = ..., why: _Optional[str] = ..., verdicts: _Optional[_Iterable[_Union[_records_pb2.Envelope, _Mapping]]] = ..., audit_results: _Optional[_Iterable[_Union[_records_pb2.Envelope, _Mapping]]] = ..., projection_seed: _Optional[bytes] = ..., projections: _Optional[_Iterable[_Union[_records_pb2.Envelope, _Mapping]]] = ..., run_head: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., opened_chunks: _Optional[int] = ..., more_results: _Optional[int] = ..., more_projections: _Optional[int] = ..., tolerance: _Optional[str] = ...) -> None: ...

class AuditPiece(_message.Message):
    __slots__ = ("file", "chunk", "projection", "audit_result")
    FILE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    AUDIT_RESULT_FIELD_NUMBER: _ClassVar[int]
    file: AuditFile
    chunk: _records_pb2.OpenedChunk
    projection: _records_pb2.Envelope
    audit_result: _records_pb2.Envelope
    def __init__(self, file: _Optional[_Union[AuditFile, _Mapping]] = ..., chunk: _Optional[_Union[_records_pb2.OpenedChunk, _Mapping]] = ..., projection: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ..., audit_result: _Optional[_Union[_records_pb2.Envelope, _Mapping]] = ...) -> None: ...

class DialBackRequest(_message.Message):
    __slots__ = ("run_id", "ports")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    ports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run_id: _Optional[bytes] = ..., ports: _Optional[_Iterable[int]] = ...) -> None: ...

class DialBackReply(_message.Message):
    __slots__ = ("address", "reachable")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    address: str
    reachable: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, address: _Optional[str] = ..., reachable: _Optional[_Iterable[int]] = ...) -> None: ...
