"""The errors with which a tool's call ends."""

from __future__ import annotations

from collections.abc import Iterable

from tinyllm.errors import ErrorCode, NodeError

MESSAGE_CHARS_MAX = 2_000


def refusal(reason: str) -> NodeError:
    """A failure that the same call would meet again: `TOOL_ERROR`, not recoverable."""
    return NodeError(ErrorCode.TOOL_ERROR, bounded(reason), recoverable=False)


def misfit(tool_id: str, what: str, problems: Iterable[str], hint: str = "") -> NodeError:
    """`VALIDATION_ERROR` for arguments or an output; `details.problems` lists what is wrong."""
    found = [bounded(problem) for problem in problems]
    # Each problem is cut before they are joined, so that a long first one does not hide the hint.
    listed = "; ".join(problem[:300] for problem in found[:3])
    if len(found) > 3:
        listed += f"; and {len(found) - 3} more"
    message = bounded(f"tool '{tool_id}': {what}: {listed}{hint}")
    return NodeError(ErrorCode.VALIDATION_ERROR, message, details={"tool_id": tool_id, "problems": found})


def raised(tool_id: str, error: BaseException) -> NodeError:
    """`TOOL_ERROR` for whatever a tool's function raised."""
    name = bounded(type(error).__name__, 100)
    message = bounded(f"tool '{tool_id}' failed: {name}: {text_of(error)}".removesuffix(": "))
    return NodeError(ErrorCode.TOOL_ERROR, message, details={"tool_id": tool_id, "exception": name})


def text_of(error: BaseException) -> str:
    """The bounded message of `error`, also when its `__str__` raises."""
    try:
        return bounded(str(error))
    except BaseException:  # noqa: BLE001 - the error that is being told matters, not the one in telling it
        return "(its message cannot be printed)"


def bounded(text: str, chars_max: int = MESSAGE_CHARS_MAX) -> str:
    """At most `chars_max` characters of `text`, without what no JSON can carry."""
    if len(text) > chars_max:
        text = f"{text[: chars_max - 3]}..."
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
