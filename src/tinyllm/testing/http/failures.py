"""What a client is told when its request comes to nothing: the exceptions of its own module, by their names."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from tinyllm.testing.http.values import Break

__all__ = ["NAME_NOT_KNOWN", "UNKNOWN_NAME", "NetworkFailure", "Stage", "failure_of"]

#: How far an exchange has come: no connection yet, a connection, or all of the request sent.
Stage: TypeAlias = Literal["connecting", "connected", "sent"]

#: What breaks an exchange with a host whose name is not known, and what its client is told.
UNKNOWN_NAME: Final = Break(how="refused")
NAME_NOT_KNOWN: Final = "[Errno -2] Name or service not known"

# A client that cannot write on reads what there is to read: httpcore keeps the error of the write to itself.
_RESET: Final = {"connecting": "ConnectError", "connected": "ReadError", "sent": "ReadError"}


class NetworkFailure(Exception):
    """What the client's own module raises as its exception *kind*, "ReadTimeout" for example."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        super().__init__(text)


def failure_of(broken: Break, stage: Stage, read_bytes: int, length: int | None) -> NetworkFailure:
    """What *broken* means to a client that has read so much of a body of that *length*, None if it is not known."""
    if broken is UNKNOWN_NAME:
        return NetworkFailure("ConnectError", NAME_NOT_KNOWN)
    if broken.how == "refused":
        return NetworkFailure("ConnectError", "connection refused")
    if broken.how == "closed":
        return NetworkFailure("ReadError", "the client was closed")
    if broken.how == "reset":
        return NetworkFailure(_RESET[stage], "connection reset by peer")
    of_what = " bytes, before the end of the body" if length is None else f" of {length} bytes of the body"
    return NetworkFailure("RemoteProtocolError", f"peer closed the connection after {read_bytes}{of_what}")
