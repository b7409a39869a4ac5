"""What began and ended when, in the reference interpreter, and how the stories of targets are put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from tinyllm.message import ErrorInfo
from tinyllm.testing.reference_text import Token

T = TypeVar("T")

Caller: TypeAlias = tuple[str, str]  #: A node and the branch on which it calls.
Story: TypeAlias = "tuple[Event, ...]"
Lanes: TypeAlias = "Sequence[Ran[Token]]"  #: A fanout's targets that started; each story begins with its step.


@dataclass(frozen=True, slots=True)
class Event:
    """A step or an attempt began, a step of this path ended, a call ended with `tokens`, or one of `caller` began.

    The beginning of a call counts nothing. Unless `is_certain`, a cut left open whether it happened. Unless
    `is_ordered`, other things of its moment may come before or after it, wherever they stand in the story.
    """

    at_ns: int
    steps: int = 0
    attempts: int = 0
    tokens: int = 0
    caller: Caller | None = None
    ended: bool = False
    path: str = ""
    is_certain: bool = True
    is_ordered: bool = True


@dataclass(frozen=True, slots=True)
class Ran(Generic[T]):
    """A job ended at `end_ns` with a result, with an error (or one of `others`), or was cut off there (None)."""

    end_ns: int
    result: T | ErrorInfo | None
    story: Story = ()
    others: tuple[ErrorInfo, ...] = ()


def steps_of(story: Iterable[Event]) -> int:
    """The steps that began for certain."""
    return sum(event.steps for event in story if event.is_certain)


def side_by_side(lanes: Lanes, slots: int, end_ns: int, led_by: Lanes) -> Story:
    """The story of a fanout up to `end_ns`, when these targets ended it, if any.

    `slots` targets begin with it, and do so before anything else of that moment. What happens as it ends is open
    but for what led there: the only target that ended it, and targets that ended then while nothing else happened.
    """
    crowded = _crowded(lanes, slots)
    story = [lane.story[0] for lane in lanes[:slots]]
    for index, lane in enumerate(lanes):
        led = [id(lane)] == [id(it) for it in led_by] or (lane.end_ns == end_ns and end_ns not in crowded)
        for event in lane.story[int(index < slots) :]:
            if event.at_ns <= end_ns:
                is_certain = event.is_certain and (led or event.at_ns < end_ns)
                is_ordered = event.is_ordered and event.at_ns not in crowded
                story.append(replace(event, is_certain=is_certain, is_ordered=is_ordered))
    return tuple(story)


def _crowded(lanes: Lanes, slots: int) -> set[int]:
    """When several targets do something, other than begin, and not each when the one before left it its slot."""
    crowded: set[int] = set()
    latest: dict[int, Ran[Token]] = {}
    for index, lane in enumerate(lanes):
        for at_ns in {lane.end_ns, *(event.at_ns for event in lane.story[1:] if event.caller is None)}:
            before = latest.get(at_ns, lane)
            if before is not lane and not (before.end_ns == at_ns == lane.story[0].at_ns and index >= slots):
                crowded.add(at_ns)
            latest[at_ns] = lane
    return crowded


def counted(numbers: Mapping[Caller, set[int]], story: Story) -> dict[Caller, set[int]]:
    """How many calls each caller may have made after `story`; those of work that was cut off no longer count."""
    after = dict(numbers)
    for event in story:
        if event.caller is not None:
            known = after.get(event.caller, {0})
            made = {number + 1 for number in known}
            after[event.caller] = made if event.is_certain else known | made
    return after


# --- limits --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """What a run has left before its limits: certainly, and beside that what may have been used already."""

    steps: int
    tokens: int | None
    steps_open: int = 0
    tokens_open: int = 0

    def after(self, story: Story) -> Room:
        sure, unsure = [it for it in story if it.is_certain], [it for it in story if not it.is_certain]
        tokens = None if self.tokens is None else self.tokens - sum(it.tokens for it in sure)
        return Room(
            self.steps - sum(it.steps for it in sure),
            tokens,
            self.steps_open + sum(it.steps for it in unsure),
            self.tokens_open + sum(it.tokens for it in unsure),
        )


class OpenLimitError(Exception):
    """What may or may not have happened decides when a limit is met."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit is met at `at_ns`; `is_steps` if it is that of the steps and no other."""

    at_ns: int
    is_steps: bool


def limit_of(story: Story, room: Room) -> Limit | None:
    """When the first step too many would begin, or a step ends with too many tokens; None if neither happens.

    Raises OpenLimitError if that hangs on what may or may not have happened, or on the order of one moment.
    """
    step_ns = _first_too_many(story, room.steps, certain=True)
    token_ns = _token_limit_ns(story, room, step_ns)
    told = story if token_ns is None else tuple(event for event in story if event.at_ns <= token_ns)
    step_ns = _first_too_many(told, room.steps, certain=True)
    earliest_ns = _first_too_many(told, room.steps - room.steps_open, certain=False)
    if earliest_ns not in (step_ns, token_ns):
        raise OpenLimitError("steps that may or may not have begun decide when max_steps is reached")
    if token_ns is not None:
        return Limit(token_ns, is_steps=False)
    return None if step_ns is None else Limit(step_ns, is_steps=True)


def _first_too_many(story: Story, left: int, *, certain: bool) -> int | None:
    begun_ns = sorted(event.at_ns for event in story if event.steps and (event.is_certain or not certain))
    return begun_ns[max(left, 0)] if len(begun_ns) > left else None


def _token_limit_ns(story: Story, room: Room, last_ns: int | None) -> int | None:
    """The first moment, up to `last_ns`, at which a step ends when more tokens than allowed were used."""
    if room.tokens is None:
        return None
    moments = sorted({event.at_ns for event in story if event.ended and (last_ns is None or event.at_ns <= last_ns)})
    for at_ns in moments:
        left = room.tokens - sum(it.tokens for it in story if it.at_ns < at_ns and it.is_certain)
        maybe = room.tokens_open + sum(it.tokens for it in story if it.at_ns < at_ns and not it.is_certain)
        now = [it for it in story if it.at_ns == at_ns]
        if _surely_before_ends(now) > left:
            return at_ns
        if sum(it.tokens for it in now) + maybe > left:
            if all(it.is_certain and it.is_ordered for it in now) and not maybe:
                continue
            raise OpenLimitError("what happens at one moment in any order decides when max_tokens is exceeded")
    return None


def _surely_before_ends(now: Sequence[Event]) -> int:
    """The tokens of one moment that its last end of a step comes after, in whatever order things happen."""
    ends = [place for place, it in enumerate(now) if it.ended and it.is_certain]
    return sum(
        it.tokens
        for place, it in enumerate(now)
        if it.is_certain and any(place < end and (it.is_ordered or _encloses(now[end], it)) for end in ends)
    )


def _encloses(end: Event, inner: Event) -> bool:
    """Whether what happened in `inner` is part of the step that ends."""
    return f"{inner.path}.".startswith(f"{end.path}.")


def up_to_limit(story: Story, at_ns: int, room: Room) -> Story:
    """What of `story` had happened when, at `at_ns`, it met a limit."""
    earlier = tuple(event for event in story if event.at_ns < at_ns)
    now = tuple(event for event in story if event.at_ns == at_ns and event.caller is None)
    met = _met(now, room.after(earlier))
    starts = [event for event in now if event.steps and event.is_certain]
    # Of events that are all steps, as many count the same in any order.
    if len(starts) == len(now) or all(event.is_ordered and event.is_certain for event in now[: met + 1]):
        return (*earlier, *now[:met])
    return (*earlier, *(replace(event, is_certain=False) for event in now))


def _met(now: Sequence[Event], room: Room) -> int:
    """How many events of a moment come before the limit is met, if they come in this order."""
    for place, event in enumerate(now):
        if event.is_certain and event.steps > room.steps:
            return place
        room = room.after((event,))
        if event.ended and room.tokens is not None and room.tokens < 0:
            return place
    return len(now)
