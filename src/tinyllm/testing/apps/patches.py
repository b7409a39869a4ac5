"""Time, chance and ids of the world, for programs that take them from the standard library.

Inside the `with` the modules `time`, `datetime`, `random`, `secrets` and `uuid`, and `os.urandom`, give what the world
gives: its time, and numbers that follow from one seed. Only the thread that entered sees it; other threads of the
process, those of a test runner for example, keep the real ones.

What stays real, and is left to the check for determinism: functions of `time` that somebody took hold of
earlier in another way than by `from time import ...` in a module of their own, as a default argument or in an
installed package; bound methods like `default_factory=datetime.now`; `time.clock_gettime`; the generators of
numpy and of OpenSSL; numbers that were drawn before. `datetime.now` and `utcnow` are replaced inside the class
itself, which stays the class that it is: a subclass in its place would break pydantic's models and pickles, and
miss those who imported it before.

Local time is that of the machine's time zone, here as outside: set TZ where runs are compared between machines.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from functools import partial
from math import isfinite
from random import Random
from threading import get_ident
from time import struct_time
from typing import Any, Final, NoReturn, Self

from tinyllm.testing.apps.borrowed_names import BorrowedNames
from tinyllm.testing.apps.replacements import Replacements
from tinyllm.testing.clocks import WallClock
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.loop_errors import FencedError, SimulationError
from tinyllm.testing.units import NS_PER_S

__all__ = ["Patches"]

#: So often one step may sleep before it counts as waiting for somebody else, who can do nothing meanwhile.
SLEEPS_PER_STEP_MAX: Final = 10_000
#: The address of the network card in `uuid1`: a locally administered one.
_NODE: Final = 0x02_00_00_00_00_01

_TIME_NAMES: Final = (
    "asctime", "ctime", "gmtime", "localtime", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
    "process_time", "process_time_ns", "sleep", "strftime", "time", "time_ns",
)  # fmt: skip
_REAL: Final[dict[str, Callable[..., Any]]] = {name: getattr(time, name) for name in _TIME_NAMES}
_REAL_URANDOM: Final = os.urandom
_REAL_SEED: Final = Random.seed
_REAL_NEW_LOOP: Final = asyncio.new_event_loop
_REAL_ALL_TASKS: Final = asyncio.all_tasks
_REAL_AS_COMPLETED: Final = asyncio.as_completed
_REAL_METHODS: Final = {name: vars(datetime)[name] for name in ("now", "utcnow")}
_borrowed: Final = BorrowedNames({**_REAL, "urandom": _REAL_URANDOM})

# The threads that are inside, the innermost last. Two at once would put back each other's patches.
_inside: Final[list[int]] = []


class Patches:
    """While the `with` lasts, this thread lives in the time of *loop* and by the chance of *seed*.

    *clock_of* gives the wall clock of the host whose code runs now. `time.sleep` takes no time really: it lets
    the host be busy through *block_ns*, and the code that slept sees its clocks moved on. What was drawn is not drawn
    again when the same object is entered a second time.

    Raises:
        SimulationError: on entering, if another thread is inside patches of its own.
        FencedError: inside, for a second event loop, and for a loop of `time.sleep` that waits for others.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        *,
        seed: int,
        clock_of: Callable[[], WallClock],
        block_ns: Callable[[int], object],
    ) -> None:
        self._loop = loop
        self._clock_of = clock_of
        self._block_ns = block_ns
        self._random = Random(seed)
        self._replacements = Replacements()
        self._outer_state: Any = None
        self._sleeps = (0, 0)
        self._last_uuid1: int | None = None
        self._made_for: int | None = None

    def __enter__(self) -> Self:
        thread = get_ident()
        if _inside and _inside[-1] != thread:
            raise SimulationError("another thread lives in a simulated world; one process has one at a time")
        self._outer_state = random.getstate()
        _inside.append(thread)
        try:
            self._replace(thread)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._last_uuid1 = uuid._last_timestamp  # type: ignore[attr-defined]
        self._replacements.undo()
        random.setstate(self._outer_state)
        _inside.pop()

    # --- what the program sees -----------------------------------------------------------------------

    def monotonic_ns(self) -> int:
        """Nanoseconds of the world's time, and what the running code has slept in this step."""
        return self._loop.time_ns + (self._loop.job_cost_ns or 0)

    def monotonic(self) -> float:
        return self.monotonic_ns() / NS_PER_S

    def time_ns(self) -> int:
        """What the host's wall clock shows, in nanoseconds since 1970."""
        return self._clock_of().time_ns() + self.monotonic_ns() - self._loop.time_ns

    def time(self) -> float:
        return self.time_ns() / NS_PER_S

    def sleep(self, seconds: float) -> None:
        """Block the thread that runs now, without waiting: that of the host's tasks, or that of a job.

        Raises:
            TypeError, ValueError: as `time.sleep`, if *seconds* is no number, negative or not finite.
            FencedError: one step sleeps again and again.
        """
        duration_ns = _whole_ns(seconds)
        self._count_sleep()
        self._block_ns(duration_ns)

    def _count_sleep(self) -> None:
        step, times = self._sleeps
        times = times + 1 if step == self._loop.steps else 1
        self._sleeps = (self._loop.steps, times)
        if times > SLEEPS_PER_STEP_MAX:
            what = f"time.sleep, {times} times in one step,"
            raise FencedError(what, "await whatever is waited for: nobody else can run meanwhile")

    def gmtime(self, seconds: float | None = None) -> struct_time:
        return struct_time(_REAL["gmtime"](self.time() if seconds is None else seconds))

    def localtime(self, seconds: float | None = None) -> struct_time:
        return struct_time(_REAL["localtime"](self.time() if seconds is None else seconds))

    def ctime(self, seconds: float | None = None) -> str:
        return str(_REAL["ctime"](self.time() if seconds is None else seconds))

    def asctime(self, moment: Any = None) -> str:
        return str(_REAL["asctime"](self.localtime() if moment is None else moment))

    def strftime(self, form: str, moment: Any = None) -> str:
        return str(_REAL["strftime"](form, self.localtime() if moment is None else moment))

    def datetime_now(self, cls: type[datetime], tz: tzinfo | None = None) -> datetime:
        seconds, ns = divmod(self.time_ns(), NS_PER_S)
        # Made of whole seconds, because a float of today's seconds is not exact to the microsecond.
        return cls.fromtimestamp(seconds, tz).replace(microsecond=ns // 1_000)

    def datetime_utcnow(self, cls: type[datetime]) -> datetime:
        return self.datetime_now(cls, UTC).replace(tzinfo=None)

    def urandom(self, size: int) -> bytes:
        if size < 0:
            raise ValueError(f"size is at least 0, not {size}")
        return self._random.randbytes(size)

    # --- putting it there ----------------------------------------------------------------------------

    def _replace(self, thread: int) -> None:
        put = self._replacements.put
        if thread != self._made_for:
            self._make(thread)
            self._made_for = thread
        self._replacements.put_all(self._plain)
        for module, attribute, name in _borrowed.found():
            put(module, attribute, self._functions[name])
        for name, method in self._methods:
            self._replacements.put_into_builtin(datetime, name, method)
        put(uuid, "_last_timestamp", self._last_uuid1)  # two of one moment must differ
        random.seed(self._random.getrandbits(64))

    def _make(self, thread: int) -> None:
        """Make what is put in place: the same functions each time that this thread enters."""
        ours = {name: getattr(self, _OURS.get(name, name)) for name in _REAL}
        functions = {name: _only_here(thread, ours[name], real) for name, real in _REAL.items()}
        urandom = functions["urandom"] = _only_here(thread, self.urandom, _REAL_URANDOM)
        seed = _only_here(thread, self._seed_generator, _REAL_SEED)
        new_loop = _only_here(thread, _refuse_loop, _REAL_NEW_LOOP)
        all_tasks = _only_here(thread, _all_tasks, _REAL_ALL_TASKS)
        as_completed = _only_here(thread, _as_completed, _REAL_AS_COMPLETED)
        self._functions = functions
        self._methods = [
            (name, classmethod(_only_here(thread, ours, _of_class(_REAL_METHODS[name]))))
            for name, ours in (("now", self.datetime_now), ("utcnow", self.datetime_utcnow))
        ]
        self._plain = [
            *((time, name, functions[name]) for name in _REAL),
            (os, "urandom", urandom),
            (random, "_urandom", urandom),  # SystemRandom, and with it `secrets`
            (Random, "seed", seed),
            (random, "seed", partial(seed, random._inst)),
            (uuid, "_node", _NODE),
            (uuid, "_generate_time_safe", None),  # the system's own, with the real time in it
            (asyncio, "new_event_loop", new_loop),
            (asyncio.events, "new_event_loop", new_loop),
            (asyncio, "as_completed", as_completed),
            (asyncio.tasks, "as_completed", as_completed),
            (asyncio, "all_tasks", all_tasks),
            (asyncio.tasks, "all_tasks", all_tasks),
        ]

    def _seed_generator(self, generator: Random, a: Any = None, version: int = 2) -> None:
        """`Random.seed` that takes the world's chance where it would ask the system."""
        _REAL_SEED(generator, self._random.getrandbits(256) if a is None else a, version)


_OURS: Final = {
    "perf_counter": "monotonic",
    "perf_counter_ns": "monotonic_ns",
    "process_time": "monotonic",
    "process_time_ns": "monotonic_ns",
}


def _only_here(thread: int, ours: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    """*ours* for one thread, *real* for all others."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs) if get_ident() == thread else real(*args, **kwargs)

    return call


def _of_class(method: Any) -> Callable[..., Any]:
    """A class method of any kind as a function of the class and its arguments."""

    def call(cls: type, *args: Any, **kwargs: Any) -> Any:
        return method.__get__(None, cls)(*args, **kwargs)

    return call


def _all_tasks(loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
    """`asyncio.all_tasks` of the simulated process that asks: the others have loops of their own, in earnest.

    In one order; asyncio's goes by the addresses of all tasks of the whole real process.
    """
    loop = asyncio.get_running_loop() if loop is None else loop
    return loop.tasks_here() if isinstance(loop, SimulatedLoop) else _REAL_ALL_TASKS(loop)


def _as_completed(fs: Any, *, timeout: float | None = None) -> Any:
    """`asyncio.as_completed` in one order: asyncio's puts coroutines into a set, by their addresses."""
    if asyncio.isfuture(fs) or asyncio.iscoroutine(fs) or hasattr(fs, "__aiter__"):
        return _REAL_AS_COMPLETED(fs, timeout=timeout)  # which refuses it
    # Once each, as there: from a dict they come in the order in which they were given.
    return _REAL_AS_COMPLETED([asyncio.ensure_future(one) for one in dict.fromkeys(fs)], timeout=timeout)


def _refuse_loop() -> NoReturn:
    raise FencedError("a second event loop, asyncio.run for example,", "await the work on the loop of the world")


def _whole_ns(seconds: Any) -> int:
    if not isinstance(seconds, int | float) and not hasattr(seconds, "__float__"):
        raise TypeError(f"seconds is a number, not {seconds!r}")
    length = float(seconds)
    if not isfinite(length) or length < 0:
        raise ValueError(f"sleep length must be finite and at least 0, not {seconds!r}")
    return round(length * NS_PER_S)
