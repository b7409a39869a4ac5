"""Faults: small frozen values that say what goes wrong, print as the code that makes them, and end.

A fault of one moment strikes at a *point*, a place in the world where something is asked for: the third
request to a host, the first read of a disk. It ends with what it struck. A fault that lasts has a start and
a duration, and healing the world ends all of them at once. Nothing here acts: these are values, and the
parts of the world that act on them look at their types. `FAULTS` names every kind; strategies, stories and
JSON go through that table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Final

MS_MAX = 24 * 3_600_000
#: The host on which a program runs that names none.
HOME: Final = "local"


class FaultError(ValueError):
    """A value that is no fault: says which part and what is allowed there."""


def shortest_code(value: Any) -> str:
    """The code that makes this dataclass, without the settings that are as usual."""
    told = []
    for one in fields(value):
        usual = one.default if one.default_factory is MISSING else one.default_factory()
        if (setting := getattr(value, one.name)) != usual:
            told.append(f"{one.name}={setting!r}")
    return f"{type(value).__name__}({', '.join(told)})"


#: The points at which a fault of one moment can strike, by the first word of their names.
POINTS: Final = ("request", "connection", "datagram", "lookup", "tool", "read", "write", "sync", "await")


# --- network: faults of one moment -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Latency:
    """The host answers `delay_ms` later than it would; a connection or a datagram takes that much longer."""

    __repr__ = shortest_code

    name: ClassVar[str] = "latency"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request", "connection", "datagram", "lookup")
    delay_ms: int

    def __post_init__(self) -> None:
        _require("delay_ms", self.delay_ms, 0, MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Refused:
    """The host refuses the connection, at once."""

    __repr__ = shortest_code

    name: ClassVar[str] = "refused"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request", "connection")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reset:
    """The connection breaks when `after_bytes` of what the host sends have arrived.

    With 0 it breaks in the place of the first byte: of a request, where its answer would begin.
    """

    __repr__ = shortest_code

    name: ClassVar[str] = "reset"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request", "connection")
    after_bytes: int = 0

    def __post_init__(self) -> None:
        _require("after_bytes", self.after_bytes, 0, 1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReadTimeout:
    """The host takes what it is asked and never answers: only the client's own timeout ends it, or healing."""

    __repr__ = shortest_code

    name: ClassVar[str] = "read timeout"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request", "connection")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CutMidBody:
    """The answer's headers and the first half of its body arrive, then the connection is gone."""

    __repr__ = shortest_code

    name: ClassVar[str] = "cut mid-body"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CutMidStream:
    """The first `chunks` chunks of the answer's body arrive whole, then the connection is gone.

    Of an answer with fewer chunks all arrive but the end.
    """

    __repr__ = shortest_code

    name: ClassVar[str] = "cut mid-stream"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request",)
    chunks: int = 1

    def __post_init__(self) -> None:
        _require("chunks", self.chunks, 0, 1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SlowDrip:
    """What the host sends arrives in pieces of `size_bytes`, and each takes `delay_ms`."""

    __repr__ = shortest_code

    name: ClassVar[str] = "slow drip"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request", "connection")
    delay_ms: int = 1_000
    size_bytes: int = 16

    def __post_init__(self) -> None:
        _require("delay_ms", self.delay_ms, 0, MS_MAX)
        _require("size_bytes", self.size_bytes, 1, 1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DuplicateChunk:
    """Chunk `chunk` of the answer's body (from 0) arrives twice, or the last one if there are fewer.

    No transport does this, but proxies, retries and servers do. A datagram arrives twice.
    """

    __repr__ = shortest_code

    name: ClassVar[str] = "duplicate chunk"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request", "datagram")
    chunk: int = 0

    def __post_init__(self) -> None:
        _require("chunk", self.chunk, 0, 1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReorderedChunks:
    """Chunk `chunk` of the answer's body (from 0) and the one after it change places, or the last two.

    Nothing happens to a body of one chunk. A datagram arrives after the next one to the same address.
    """

    __repr__ = shortest_code

    name: ClassVar[str] = "reordered chunks"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("request", "datagram")
    chunk: int = 0

    def __post_init__(self) -> None:
        _require("chunk", self.chunk, 0, 1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DnsFailure:
    """The host's name cannot be resolved."""

    __repr__ = shortest_code

    name: ClassVar[str] = "DNS failure"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("lookup", "request")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LostPacket:
    """A datagram is lost. On a connection the first packet is, and sent again after 200 ms."""

    __repr__ = shortest_code

    name: ClassVar[str] = "lost packet"
    family: ClassVar[str] = "network"
    points: ClassVar[tuple[str, ...]] = ("datagram", "connection", "request")


# --- model servers: faults of one moment -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RateLimited:
    """The host answers 429, with a Retry-After of `retry_after_s` seconds unless that is None."""

    __repr__ = shortest_code

    name: ClassVar[str] = "429"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)
    retry_after_s: int | None = None

    def __post_init__(self) -> None:
        if self.retry_after_s is not None:
            _require("retry_after_s", self.retry_after_s, 0, MS_MAX // 1_000)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ServerError:
    """The host answers with a status of the 500s, 500 unless said otherwise."""

    __repr__ = shortest_code

    name: ClassVar[str] = "500"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)
    status: int = 500

    def __post_init__(self) -> None:
        _require("status", self.status, 500, 599)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NoSuchRoute:
    """The host knows no such route: 404 with the text of a web server, not the JSON of an API."""

    __repr__ = shortest_code

    name: ClassVar[str] = "no such route"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EmptyBody:
    """Status 200 with the right content type, and not a byte after the headers."""

    __repr__ = shortest_code

    name: ClassVar[str] = "empty body"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TruncatedJson:
    """The body ends in the middle of its JSON, and the connection is closed as if it were complete."""

    __repr__ = shortest_code

    name: ClassVar[str] = "truncated JSON"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WrongShape:
    """The body is JSON, but not of the shape that was promised: a list where an object should be."""

    __repr__ = shortest_code

    name: ClassVar[str] = "wrong JSON shape"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WrongContentType:
    """A proxy's page of HTML with status 200 in the place of the answer."""

    __repr__ = shortest_code

    name: ClassVar[str] = "wrong content type"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GarbageBytes:
    """The body is bytes that are no UTF-8."""

    __repr__ = shortest_code

    name: ClassVar[str] = "garbage bytes"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WrongModel:
    """A well-formed answer of another model than was asked."""

    __repr__ = shortest_code

    name: ClassVar[str] = "wrong model"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EndlessStream:
    """A streamed answer that does not end: the same piece again each `delay_ms`, until the client leaves.

    An answer that is not streamed never begins.
    """

    __repr__ = shortest_code

    name: ClassVar[str] = "never-ending stream"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)
    delay_ms: int = 100

    def __post_init__(self) -> None:
        _require("delay_ms", self.delay_ms, 1, MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Refusal:
    """The model declines to answer, in a well-formed answer."""

    __repr__ = shortest_code

    name: ClassVar[str] = "refusal"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EmptyAnswer:
    """The model answers with no text at all, in a well-formed answer."""

    __repr__ = shortest_code

    name: ClassVar[str] = "empty answer"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HugeAnswer:
    """The model answers with `size_bytes` of text, in a well-formed answer."""

    __repr__ = shortest_code

    name: ClassVar[str] = "huge answer"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)
    size_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        _require("size_bytes", self.size_bytes, 1, 64_000_000)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OutsideSchema:
    """The model answers with JSON that no schema of a request allows: `{"unexpected": [null]}`."""

    __repr__ = shortest_code

    name: ClassVar[str] = "answer outside the schema"
    family: ClassVar[str] = "model"
    points: ClassVar[tuple[str, ...]] = ("request",)


# --- tools: faults of one moment -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ToolRaises:
    """The tool raises RuntimeError in the place of its work."""

    __repr__ = shortest_code

    name: ClassVar[str] = "tool raises"
    family: ClassVar[str] = "tool"
    points: ClassVar[tuple[str, ...]] = ("tool",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ToolHangs:
    """The tool does not come back until it is cancelled, or the world healed."""

    __repr__ = shortest_code

    name: ClassVar[str] = "tool hangs"
    family: ClassVar[str] = "tool"
    points: ClassVar[tuple[str, ...]] = ("tool",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AnswerLost:
    """The tool does its work, and its caller gets ConnectionError in the place of the answer."""

    __repr__ = shortest_code

    name: ClassVar[str] = "effect done, answer lost"
    family: ClassVar[str] = "tool"
    points: ClassVar[tuple[str, ...]] = ("tool",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WrongType:
    """The tool does its work and gives a value of another type than it does otherwise: None, or 0 for None."""

    __repr__ = shortest_code

    name: ClassVar[str] = "wrong type"
    family: ClassVar[str] = "tool"
    points: ClassVar[tuple[str, ...]] = ("tool",)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ToolSlow:
    """The tool takes `delay_ms` longer."""

    __repr__ = shortest_code

    name: ClassVar[str] = "tool slow"
    family: ClassVar[str] = "tool"
    points: ClassVar[tuple[str, ...]] = ("tool",)
    delay_ms: int = 1_000

    def __post_init__(self) -> None:
        _require("delay_ms", self.delay_ms, 0, MS_MAX)


# --- tasks and disks: faults of one moment ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Cancelled:
    """The task is cancelled where it waits, as by a user who leaves or a timeout that passes at this await.

    That is `after_ms` after it has begun to wait, if it still does; None: when what it waits for is just there.
    """

    __repr__ = shortest_code

    name: ClassVar[str] = "cancel"
    family: ClassVar[str] = "process"
    points: ClassVar[tuple[str, ...]] = ("await",)
    after_ms: int | None = None

    def __post_init__(self) -> None:
        if self.after_ms is not None:
            _require("after_ms", self.after_ms, 0, MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DiskError:
    """The operation fails with EIO, an input/output error."""

    __repr__ = shortest_code

    name: ClassVar[str] = "I/O error"
    family: ClassVar[str] = "disk"
    points: ClassVar[tuple[str, ...]] = ("read", "write", "sync")


# --- faults that last ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Lasting:
    """What all faults that last have: from `start_ms` of the world's time for `duration_ms`.

    A duration of None lasts until the world is healed.
    """

    __repr__ = shortest_code

    name: ClassVar[str]
    family: ClassVar[str]
    start_ms: int = 0
    duration_ms: int | None = None

    def __post_init__(self) -> None:
        _require("start_ms", self.start_ms, 0, MS_MAX)
        if self.duration_ms is not None:
            _require("duration_ms", self.duration_ms, 0, MS_MAX)
        self._check_target()
        self._check()

    def _check_target(self) -> None:
        """Refuse names that no host can have."""

    def _check(self) -> None:
        """Refuse settings that a kind does not allow."""

    def ends_ms(self) -> float:
        """When it ends by itself; infinity if only healing ends it."""
        return float("inf") if self.duration_ms is None else self.start_ms + self.duration_ms


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OfHost(Lasting):
    """A fault that lasts and has one host for its target."""

    host: str = HOME

    def _check_target(self) -> None:
        _require_host("host", self.host)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HostDown(OfHost):
    """The host is down: it refuses connections, and those that are open when it goes down break."""

    name: ClassVar[str] = "host down"
    family: ClassVar[str] = "model"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OfLinks(Lasting):
    """A fault that lasts, of every link that has one of `hosts` at an end; of all links if there are none."""

    hosts: tuple[str, ...] = ()

    def _check_target(self) -> None:
        _require_hosts("hosts", self.hosts)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SlowLink(OfLinks):
    """Whatever is sent takes `delay_ms` longer."""

    name: ClassVar[str] = "slow link"
    family: ClassVar[str] = "network"
    delay_ms: int = 1_000

    def _check(self) -> None:
        _require("delay_ms", self.delay_ms, 0, MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Jitter(OfLinks):
    """Whatever is sent takes up to `delay_ms` longer, by the world's seed. Connections keep their order."""

    name: ClassVar[str] = "jitter"
    family: ClassVar[str] = "network"
    delay_ms: int = 100

    def _check(self) -> None:
        _require("delay_ms", self.delay_ms, 0, MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bandwidth(OfLinks):
    """No more than `bytes_per_s` pass in each direction of a link."""

    name: ClassVar[str] = "bandwidth"
    family: ClassVar[str] = "network"
    bytes_per_s: int = 1_000

    def _check(self) -> None:
        _require("bytes_per_s", self.bytes_per_s, 1, 1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PacketLoss(OfLinks):
    """So many in a hundred packets are lost, by the world's seed; connections send theirs again."""

    name: ClassVar[str] = "packet loss"
    family: ClassVar[str] = "network"
    percent: int = 10

    def _check(self) -> None:
        _require("percent", self.percent, 0, 100)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Partition(OfLinks):
    """Nothing passes from `hosts` to `others`, nor back unless `one_way`. Without others: to all the rest."""

    name: ClassVar[str] = "partition"
    family: ClassVar[str] = "network"
    hosts: tuple[str, ...] = (HOME,)
    others: tuple[str, ...] = ()
    one_way: bool = False

    def _check(self) -> None:
        _require_hosts("others", self.others)
        if not self.hosts:
            raise FaultError("hosts of a partition has one host at least; all links together can only be lost")
        if both := sorted(set(self.hosts) & set(self.others)):
            raise FaultError(f"a partition has {both[0]!r} on both sides")
        _require_bool("one_way", self.one_way)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Crash(OfHost):
    """The host loses power: its tasks stop where they are, no `finally` runs, and what was not synced is lost.

    When it ends the host starts again, with the programs that were started on it.
    """

    name: ClassVar[str] = "crash"
    family: ClassVar[str] = "process"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Restart(OfHost):
    """A crash after which the host starts again at once; healing and the duration mean nothing to it."""

    name: ClassVar[str] = "restart"
    family: ClassVar[str] = "process"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Pause(OfHost):
    """The host stands still, as in a long garbage collection; what reaches it waits, and is served afterwards."""

    name: ClassVar[str] = "pause"
    family: ClassVar[str] = "process"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OfDisk(OfHost):
    """A crash that leaves the disk with more than what was synced; `choice` picks one of the possibilities."""

    choice: int = 0

    def _check(self) -> None:
        _require("choice", self.choice, 0, 1 << 62)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LostWrites(OfDisk):
    """A crash after which only the first of the writes that were not synced are there."""

    name: ClassVar[str] = "lost unsynced writes"
    family: ClassVar[str] = "disk"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TornWrite(OfDisk):
    """A crash in the middle of a write: some of its sectors are there, and the writes before it."""

    name: ClassVar[str] = "torn write"
    family: ClassVar[str] = "disk"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReorderedWrites(OfDisk):
    """A crash after which any of the writes that were not synced are there, later ones without earlier ones."""

    name: ClassVar[str] = "reordered writes"
    family: ClassVar[str] = "disk"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DiskFull(OfHost):
    """No more than `free_bytes` can be added to the disk."""

    name: ClassVar[str] = "disk full"
    family: ClassVar[str] = "disk"
    free_bytes: int = 0

    def _check(self) -> None:
        _require("free_bytes", self.free_bytes, 0, 1 << 50)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SlowSync(OfHost):
    """Each sync takes `delay_ms`, and the thread that asks for it stands still meanwhile."""

    name: ClassVar[str] = "slow sync"
    family: ClassVar[str] = "disk"
    delay_ms: int = 1_000

    def _check(self) -> None:
        _require("delay_ms", self.delay_ms, 0, MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ClockJump(OfHost):
    """The host's wall clock jumps by `jump_ms`, back if that is negative, and back to the truth at the end."""

    name: ClassVar[str] = "clock jump"
    family: ClassVar[str] = "clock"
    jump_ms: int = 3_600_000

    def _check(self) -> None:
        _require("jump_ms", self.jump_ms, -365 * MS_MAX, 365 * MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ClockDrift(OfHost):
    """The host's wall clock gains `ppm` microseconds each second, or loses them; the truth comes at the end."""

    name: ClassVar[str] = "clock drift"
    family: ClassVar[str] = "clock"
    ppm: int = 10_000

    def _check(self) -> None:
        _require("ppm", self.ppm, -1_000_000, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MemoryPressure(OfHost):
    """The host has `budget_bytes` of memory: what needs more is refused, and its windows shrink."""

    name: ClassVar[str] = "memory pressure"
    family: ClassVar[str] = "resources"
    budget_bytes: int = 1_024

    def _check(self) -> None:
        _require("budget_bytes", self.budget_bytes, 0, 1 << 50)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CpuSaturation(OfHost):
    """Each step of a task of the host takes `step_us` microseconds, and they take turns."""

    name: ClassVar[str] = "CPU saturation"
    family: ClassVar[str] = "resources"
    step_us: int = 1_000

    def _check(self) -> None:
        _require("step_us", self.step_us, 0, MS_MAX * 1_000)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class QueueFull(OfHost):
    """Every bounded asyncio.Queue of the host is full: nothing more goes in until it ends."""

    name: ClassVar[str] = "queue full"
    family: ClassVar[str] = "resources"


# --- the table, and plans --------------------------------------------------------------------------------

Fault = (
    Latency | Refused | Reset | ReadTimeout | CutMidBody | CutMidStream | SlowDrip | DuplicateChunk | ReorderedChunks
    | DnsFailure | LostPacket
    | RateLimited | ServerError | NoSuchRoute | EmptyBody | TruncatedJson | WrongShape | WrongContentType
    | GarbageBytes | WrongModel | EndlessStream | Refusal | EmptyAnswer | HugeAnswer | OutsideSchema
    | ToolRaises | ToolHangs | AnswerLost | WrongType | ToolSlow
    | Cancelled | DiskError
)  # fmt: skip
"""A fault of one moment."""

LastingFault = (
    HostDown | SlowLink | Jitter | Bandwidth | PacketLoss | Partition
    | Crash | Restart | Pause | LostWrites | TornWrite | ReorderedWrites | DiskFull | SlowSync
    | ClockJump | ClockDrift | MemoryPressure | CpuSaturation | QueueFull
)  # fmt: skip

#: What can happen to one call of a model in the life of a graph.
CallFaultKind = Latency | Refused | CutMidBody | ServerError

FAULTS: Mapping[str, type[Fault] | type[LastingFault]] = {
    kind.name: kind for kind in (*Fault.__args__, *LastingFault.__args__)
}
FAMILIES: Final = ("network", "model", "tool", "process", "disk", "clock", "resources")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OnCall:
    """`fault` happens to one call: number `call` (from 0) of those that `node` makes in run `run` (from 0).

    Several steps of one node can run at once inside a fanout, so a call is counted per `branch`: the
    step's path without its first component, "" for a node that the token visits, ".2" for the second target.
    """

    __repr__ = shortest_code

    run: int
    node: str
    branch: str = ""
    call: int = 0
    fault: CallFaultKind


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class At:
    """`fault` strikes the `number`-th time (from 0) that the world comes to `point`.

    A point is one of `POINTS`, or that and a name: "request" counts every request, "request api" those to the
    host `api`, "tool search" the calls of one tool, "read db" the reads of one host's disk, "await worker"
    the awaits of the tasks whose coroutine function is `worker`.

    Raises:
        FaultError: no such point, a fault that cannot strike there, or a number below 0.
    """

    __repr__ = shortest_code

    point: str
    number: int = 0
    fault: Fault

    def __post_init__(self) -> None:
        kind = self.point.partition(" ")[0] if type(self.point) is str else self.point
        if kind not in POINTS:
            raise FaultError(f"point begins with one of {', '.join(POINTS)}, not {self.point!r}")
        if not isinstance(self.fault, Fault):
            raise FaultError(f"{self.fault!r} is no fault of one moment")
        if kind not in self.fault.points:
            raise FaultError(f"{self.fault.name!r} strikes at {' or '.join(self.fault.points)}, not at {kind!r}")
        _require("number", self.number, 0, 1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FaultPlan:
    """All that goes wrong in the life of a graph."""

    __repr__ = shortest_code

    calls: tuple[OnCall, ...] = ()
    lasting: tuple[HostDown, ...] = ()

    def __len__(self) -> int:
        return len(self.calls) + len(self.lasting)


def fault_to_json(fault: Fault | LastingFault) -> dict[str, Any]:
    """A fault as plain JSON: its name under `fault`, then its settings, when it lasts after whom it strikes."""
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(fault).items()}
    if isinstance(fault, Lasting):
        settings |= {"start_ms": settings.pop("start_ms"), "duration_ms": settings.pop("duration_ms")}
    return {"fault": fault.name, **settings}


def fault_from_json(value: Any) -> Any:
    """The fault that `fault_to_json` wrote; raises FaultError for anything else."""
    if not isinstance(value, Mapping):
        raise FaultError(f"a fault is an object with its name under `fault`, not {value!r}")
    kind = FAULTS.get(str(value.get("fault")))
    if kind is None:
        raise FaultError(f"unknown fault {value.get('fault')!r}; there are {', '.join(FAULTS)}")
    known = {field.name for field in fields(kind)}
    settings: dict[str, Any] = {
        str(key): tuple(setting) if isinstance(setting, list) else setting
        for key, setting in value.items()
        if key != "fault"
    }
    if unknown := sorted(settings.keys() - known):
        raise FaultError(f"{kind.name}: no setting {unknown[0]!r}; there are {', '.join(sorted(known)) or 'none'}")
    make: Any = kind
    try:
        return make(**settings)
    except TypeError as error:
        raise FaultError(f"{kind.name}: {error}") from None


def _require(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise FaultError(f"{name} is a whole number from {low} to {high}, not {value!r}")


def _require_bool(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise FaultError(f"{name} is true or false, not {value!r}")


def _require_host(name: str, value: Any) -> None:
    if type(value) is not str or not value:
        raise FaultError(f"{name} is the name of a host, not {value!r}")


def _require_hosts(name: str, value: Any) -> None:
    if type(value) is not tuple:
        raise FaultError(f"{name} is a tuple of names of hosts, not {value!r}")
    for host in value:
        _require_host(name, host)
    if len(set(value)) < len(value):
        raise FaultError(f"{name} names a host twice: {value!r}")
