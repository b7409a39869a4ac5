"""Two network namespaces joined by one link, and `tc netem` on it: real TCP over a link that delays and loses.

What a proxy cannot do happens here below TCP: packets are lost and sent again, and opening a connection takes
its round trip. It needs Linux, the programs `ip` and `tc` (iproute2), and CAP_NET_ADMIN and CAP_SYS_ADMIN; netem
also needs a kernel that has it. `unavailable` and `netem_unavailable` try it out and say what is missing.

Looked at before: pyroute2, well kept, speaks to the kernel without the two programs, but is a dependency more in
place of a dozen commands, and a process inside still starts by `ip netns exec`. mininet and `testgres_exts.pglab`
do the same with whole topologies and PostgreSQL clusters around it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

__all__ = ["Namespace", "NamespaceError", "NamespacePair", "namespace_pair", "netem_unavailable", "unavailable"]

#: The name of the interface at both ends.
_LINK: Final = "wire"
#: `tc` takes up to 274 s: 32 bits of its ticks.
_DELAY_MS_MAX: Final = 60_000
#: Where `ip` and `tc` are for root, if not on the PATH of others.
_SBIN: Final = "/usr/sbin:/sbin"


class NamespaceError(RuntimeError):
    """A command of `ip` or `tc` could not be run or failed; says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One end of the link: a network of its own, with a loopback and the link."""

    name: str
    address: str
    mac: str

    def command(self, *argv: str) -> list[str]:
        """The command that runs *argv* in here; the process that it starts becomes *argv*'s."""
        return [_program("ip"), "netns", "exec", self.name, *argv]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePair:
    """Two namespaces and their link. Each method concerns both directions and replaces what was before."""

    client: Namespace
    server: Namespace

    def impair(self, *, delay_ms: int = 0, loss_percent: int = 0) -> None:
        """Delay each packet by `delay_ms`, and lose each with a chance of `loss_percent`, by netem.

        Raises:
            ValueError: a number out of its bounds.
            NamespaceError: the kernel has no netem.
        """
        _require("delay_ms", delay_ms, _DELAY_MS_MAX)
        _require("loss_percent", loss_percent, 100)
        self._queue("netem", "delay", f"{delay_ms}ms", "loss", f"{loss_percent}%")

    def drop_all(self) -> None:
        """Lose every packet. Needs no netem."""
        self._queue("blackhole")

    def heal(self) -> None:
        """Let packets pass again, all and at once. What was lost or still under way, TCP sends again."""
        # The plain queue in place of whatever there is: removing would fail where nothing was set.
        self._queue("pfifo")

    def _queue(self, *discipline: str) -> None:
        for end in (self.client, self.server):
            _run("tc", "-n", end.name, "qdisc", "replace", "dev", _LINK, "root", *discipline)


@contextmanager
def namespace_pair() -> Iterator[NamespacePair]:
    """Two joined namespaces for as long as the block runs; they are removed in any case.

    A process that still runs in one keeps its network, but without a name: end it before.

    Raises:
        NamespaceError: they cannot be made here.
    """
    prefix = _free_prefix()
    # Addresses for documentation (RFC 5737): nothing else is reached from in there.
    pair = NamespacePair(
        client=Namespace(name=f"{prefix}-client", address="192.0.2.1", mac="02:00:00:00:00:01"),
        server=Namespace(name=f"{prefix}-server", address="192.0.2.2", mac="02:00:00:00:00:02"),
    )
    with ExitStack() as stack:
        for end in (pair.client, pair.server):
            # Registered first: `ip` may be interrupted when the namespace is there already.
            stack.callback(_remove, end.name)
            _run("ip", "netns", "add", end.name)
        _join(pair)
        yield pair


def unavailable() -> str | None:
    """Why a pair of namespaces cannot be had here; None if it can."""
    reason = _failure("ip", "link", "add", _LINK, "type", "veth", "peer", "name", f"{_LINK}-peer")
    return None if reason is None else f"no network namespaces here: {reason}"


def netem_unavailable() -> str | None:
    """Why a link with netem cannot be had here; None if it can."""
    if (reason := unavailable()) is not None:
        return reason
    reason = _failure("tc", "qdisc", "add", "dev", "lo", "root", "netem")
    return None if reason is None else f"no netem here (CONFIG_NET_SCH_NETEM, module sch_netem): {reason}"


def _failure(program: str, *arguments: str) -> str | None:
    """What goes wrong with one command in a new namespace; None if nothing does.

    Only the least that has to work is tried, so that a mistake in this file fails tests and does not skip them.
    """
    try:
        _program("tc")
        name = f"{_free_prefix()}-probe"
        with ExitStack() as stack:
            stack.callback(_remove, name)
            _run("ip", "netns", "add", name)
            _run(program, "-n", name, *arguments)
    except NamespaceError as error:
        return str(error)
    return None


def _join(pair: NamespacePair) -> None:
    """Make the link inside the namespaces: no name outside them is taken, not even for a moment."""
    here, there = pair.client, pair.server
    peer = ("peer", "name", _LINK, "address", there.mac, "netns", there.name)
    _run("ip", "-n", here.name, "link", "add", _LINK, "address", here.mac, "type", "veth", *peer)
    for end in (here, there):
        _run("ip", "-n", end.name, "address", "add", f"{end.address}/30", "dev", _LINK)
        _run("ip", "-n", end.name, "link", "set", "lo", "up")
        _run("ip", "-n", end.name, "link", "set", _LINK, "up")
    for end, other in ((here, there), (there, here)):
        # Known for good, or a lost ARP packet would fail a connection that TCP alone would have got through.
        neighbour = ("neighbour", "replace", other.address, "lladdr", other.mac, "dev", _LINK, "nud", "permanent")
        _run("ip", "-n", end.name, *neighbour)


def _free_prefix() -> str:
    """A beginning of names that none has: a killed run may have left some, and its process id be ours now."""
    taken = _names()
    for number in count():
        prefix = f"tinyllm-{os.getpid()}-{number}"
        if not any(name.startswith(f"{prefix}-") for name in taken):
            return prefix
    raise AssertionError("numbers do not end")


def _names() -> list[str]:
    """The namespaces that have a name. After some of them `ip` prints more."""
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line]


def _remove(name: str) -> None:
    if name in _names():
        _run("ip", "netns", "delete", name)


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run([_program(program), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        command = " ".join((program, *arguments))
        raise NamespaceError(f"`{command}` failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _program(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), _SBIN)))
    if path is None:
        raise NamespaceError(f"the program `{name}` (iproute2) is not installed")
    return path


def _require(name: str, value: int, high: int) -> None:
    if type(value) is not int or not 0 <= value <= high:
        raise ValueError(f"{name} is a whole number from 0 to {high}, not {value!r}")
