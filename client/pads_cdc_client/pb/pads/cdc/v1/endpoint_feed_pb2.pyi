import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResetReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESET_REASON_UNSPECIFIED: _ClassVar[ResetReason]
    RESET_REASON_NO_TOKEN: _ClassVar[ResetReason]
    RESET_REASON_MALFORMED: _ClassVar[ResetReason]
    RESET_REASON_EXPIRED: _ClassVar[ResetReason]
    RESET_REASON_OTHER_SYSTEM: _ClassVar[ResetReason]
    RESET_REASON_TIMELINE: _ClassVar[ResetReason]
    RESET_REASON_UNKNOWN_REVISION: _ClassVar[ResetReason]
    RESET_REASON_GAP: _ClassVar[ResetReason]
    RESET_REASON_DIGEST_MISMATCH: _ClassVar[ResetReason]
    RESET_REASON_INCOMPLETE: _ClassVar[ResetReason]
RESET_REASON_UNSPECIFIED: ResetReason
RESET_REASON_NO_TOKEN: ResetReason
RESET_REASON_MALFORMED: ResetReason
RESET_REASON_EXPIRED: ResetReason
RESET_REASON_OTHER_SYSTEM: ResetReason
RESET_REASON_TIMELINE: ResetReason
RESET_REASON_UNKNOWN_REVISION: ResetReason
RESET_REASON_GAP: ResetReason
RESET_REASON_DIGEST_MISMATCH: ResetReason
RESET_REASON_INCOMPLETE: ResetReason

class WatchRequest(_message.Message):
    __slots__ = ("open", "acknowledge")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    open: Open
    acknowledge: Acknowledge
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., acknowledge: _Optional[_Union[Acknowledge, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("client_id", "resume_token")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    resume_token: bytes
    def __init__(self, client_id: _Optional[str] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class Acknowledge(_message.Message):
    __slots__ = ("token", "digest_mismatch")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    digest_mismatch: bool
    def __init__(self, token: _Optional[bytes] = ..., digest_mismatch: _Optional[bool] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("opened", "batch", "progress")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    batch: Batch
    progress: Progress
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("resumed", "reset", "progress_interval", "token")
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    resumed: Resumed
    reset: Reset
    progress_interval: _duration_pb2.Duration
    token: bytes
    def __init__(self, resumed: _Optional[_Union[Resumed, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., progress_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., token: _Optional[bytes] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reset(_message.Message):
    __slots__ = ("reason", "count")
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    reason: ResetReason
    count: int
    def __init__(self, reason: _Optional[_Union[ResetReason, str]] = ..., count: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("changes", "token", "checkpoint", "snapshot_end")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_END_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    token: bytes
    checkpoint: Checkpoint
    snapshot_end: bool
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., token: _Optional[bytes] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., snapshot_end: _Optional[bool] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("revision", "endpoint_id", "endpoint", "deleted")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    endpoint_id: str
    endpoint: bytes
    deleted: bool
    def __init__(self, revision: _Optional[int] = ..., endpoint_id: _Optional[str] = ..., endpoint: _Optional[bytes] = ..., deleted: _Optional[bool] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("revision", "count", "digest", "staleness", "unsettled")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    UNSETTLED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    count: int
    digest: bytes
    staleness: _duration_pb2.Duration
    unsettled: bool
    def __init__(self, revision: _Optional[int] = ..., count: _Optional[int] = ..., digest: _Optional[bytes] = ..., staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., unsettled: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("token", "checkpoint", "queued")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    checkpoint: Checkpoint
    queued: bool
    def __init__(self, token: _Optional[bytes] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., queued: _Optional[bool] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("epoch", "revision", "count", "digest", "staleness", "lag_bytes", "subscribers", "ready")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    LAG_BYTES_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    revision: int
    count: int
    digest: bytes
    staleness: _duration_pb2.Duration
    lag_bytes: int
    subscribers: int
    ready: bool
    def __init__(self, epoch: _Optional[str] = ..., revision: _Optional[int] = ..., count: _Optional[int] = ..., digest: _Optional[bytes] = ..., staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lag_bytes: _Optional[int] = ..., subscribers: _Optional[int] = ..., ready: _Optional[bool] = ...) -> None: ...

class MirrorRequest(_message.Message):
    __slots__ = ("open", "acknowledge")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    open: MirrorOpen
    acknowledge: MirrorAcknowledge
    def __init__(self, open: _Optional[_Union[MirrorOpen, _Mapping]] = ..., acknowledge: _Optional[_Union[MirrorAcknowledge, _Mapping]] = ...) -> None: ...

class MirrorOpen(_message.Message):
    __slots__ = ("client_id", "epoch", "timeline", "revision", "followed", "relay")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    epoch: str
    timeline: int
    revision: int
    followed: int
    relay: bool
    def __init__(self, client_id: _Optional[str] = ..., epoch: _Optional[str] = ..., timeline: _Optional[int] = ..., revision: _Optional[int] = ..., followed: _Optional[int] = ..., relay: _Optional[bool] = ...) -> None: ...

class MirrorAcknowledge(_message.Message):
    __slots__ = ("followed",)
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    followed: int
    def __init__(self, followed: _Optional[int] = ...) -> None: ...

class MirrorResponse(_message.Message):
    __slots__ = ("opened", "batch")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    opened: MirrorOpened
    batch: MirrorBatch
    def __init__(self, opened: _Optional[_Union[MirrorOpened, _Mapping]] = ..., batch: _Optional[_Union[MirrorBatch, _Mapping]] = ...) -> None: ...

class MirrorOpened(_message.Message):
    __slots__ = ("reset", "progress_interval")
    RESET_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    reset: bool
    progress_interval: _duration_pb2.Duration
    def __init__(self, reset: _Optional[bool] = ..., progress_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class MirrorBatch(_message.Message):
    __slots__ = ("entries", "seen", "state", "parents")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[MirrorEntry]
    seen: int
    state: MirrorState
    parents: _containers.RepeatedCompositeFieldContainer[MirrorParents]
    def __init__(self, entries: _Optional[_Iterable[_Union[MirrorEntry, _Mapping]]] = ..., seen: _Optional[int] = ..., state: _Optional[_Union[MirrorState, _Mapping]] = ..., parents: _Optional[_Iterable[_Union[MirrorParents, _Mapping]]] = ...) -> None: ...

class MirrorParents(_message.Message):
    __slots__ = ("anew", "table", "column", "at", "rows", "parents", "gone")
    ANEW_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    anew: bool
    table: str
    column: str
    at: int
    rows: _containers.RepeatedScalarFieldContainer[str]
    parents: _containers.RepeatedScalarFieldContainer[str]
    gone: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, anew: _Optional[bool] = ..., table: _Optional[str] = ..., column: _Optional[str] = ..., at: _Optional[int] = ..., rows: _Optional[_Iterable[str]] = ..., parents: _Optional[_Iterable[str]] = ..., gone: _Optional[_Iterable[str]] = ...) -> None: ...

class MirrorEntry(_message.Message):
    __slots__ = ("endpoint_id", "revision", "position", "endpoint", "deleted", "moved")
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    revision: int
    position: int
    endpoint: bytes
    deleted: bool
    moved: bool
    def __init__(self, endpoint_id: _Optional[str] = ..., revision: _Optional[int] = ..., position: _Optional[int] = ..., endpoint: _Optional[bytes] = ..., deleted: _Optional[bool] = ..., moved: _Optional[bool] = ...) -> None: ...

class MirrorState(_message.Message):
    __slots__ = ("epoch", "revision", "system", "timeline", "position", "followed", "followed_since", "whole", "count", "digest", "owed", "switches", "left", "staleness", "server_end", "encoding", "mapping", "forgotten")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_SINCE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OWED_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_END_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MAPPING_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    revision: int
    system: str
    timeline: int
    position: int
    followed: int
    followed_since: int
    whole: bool
    count: int
    digest: bytes
    owed: str
    switches: _containers.RepeatedCompositeFieldContainer[TimelineSwitch]
    left: _containers.RepeatedScalarFieldContainer[str]
    staleness: float
    server_end: int
    encoding: int
    mapping: int
    forgotten: int
    def __init__(self, epoch: _Optional[str] = ..., revision: _Optional[int] = ..., system: _Optional[str] = ..., timeline: _Optional[int] = ..., position: _Optional[int] = ..., followed: _Optional[int] = ..., followed_since: _Optional[int] = ..., whole: _Optional[bool] = ..., count: _Optional[int] = ..., digest: _Optional[bytes] = ..., owed: _Optional[str] = ..., switches: _Optional[_Iterable[_Union[TimelineSwitch, _Mapping]]] = ..., left: _Optional[_Iterable[str]] = ..., staleness: _Optional[float] = ..., server_end: _Optional[int] = ..., encoding: _Optional[int] = ..., mapping: _Optional[int] = ..., forgotten: _Optional[int] = ...) -> None: ...

class TimelineSwitch(_message.Message):
    __slots__ = ("timeline", "position")
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    timeline: int
    position: int
    def __init__(self, timeline: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Page(_message.Message):
    __slots__ = ("line", "number", "start", "first", "opening", "total", "older", "entries", "checkpoint", "seen", "complete", "epoch", "timeline", "position", "generation", "generating", "part", "part_start", "part_total", "part_digest")
    LINE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    OLDER_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GENERATING_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PART_START_FIELD_NUMBER: _ClassVar[int]
    PART_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PART_DIGEST_FIELD_NUMBER: _ClassVar[int]
    line: str
    number: int
    start: int
    first: bool
    opening: bool
    total: int
    older: bool
    entries: _containers.RepeatedCompositeFieldContainer[MirrorEntry]
    checkpoint: MirrorState
    seen: int
    complete: bool
    epoch: str
    timeline: int
    position: int
    generation: int
    generating: bool
    part: bytes
    part_start: int
    part_total: int
    part_digest: bytes
    def __init__(self, line: _Optional[str] = ..., number: _Optional[int] = ..., start: _Optional[int] = ..., first: _Optional[bool] = ..., opening: _Optional[bool] = ..., total: _Optional[int] = ..., older: _Optional[bool] = ..., entries: _Optional[_Iterable[_Union[MirrorEntry, _Mapping]]] = ..., checkpoint: _Optional[_Union[MirrorState, _Mapping]] = ..., seen: _Optional[int] = ..., complete: _Optional[bool] = ..., epoch: _Optional[str] = ..., timeline: _Optional[int] = ..., position: _Optional[int] = ..., generation: _Optional[int] = ..., generating: _Optional[bool] = ..., part: _Optional[bytes] = ..., part_start: _Optional[int] = ..., part_total: _Optional[int] = ..., part_digest: _Optional[bytes] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("line", "revision", "staleness", "at", "server_end", "position", "seen", "consistent", "number")
    LINE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    SERVER_END_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    CONSISTENT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    line: str
    revision: int
    staleness: float
    at: float
    server_end: int
    position: int
    seen: int
    consistent: bool
    number: int
    def __init__(self, line: _Optional[str] = ..., revision: _Optional[int] = ..., staleness: _Optional[float] = ..., at: _Optional[float] = ..., server_end: _Optional[int] = ..., position: _Optional[int] = ..., seen: _Optional[int] = ..., consistent: _Optional[bool] = ..., number: _Optional[int] = ...) -> None: ...
