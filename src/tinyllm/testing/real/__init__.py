"""Faults between a real client and a real server: a proxy on the loopback, and namespaces with a bad link."""

from tinyllm.testing.real.netns import (
    Namespace,
    NamespaceError,
    NamespacePair,
    namespace_pair,
    netem_unavailable,
    unavailable,
)
from tinyllm.testing.real.proxy import FaultyProxy
from tinyllm.testing.real.toxics import Bandwidth, Cut, Jitter, Latency, Partition, Reset, Toxic, ToxicError

__all__ = [
    "Bandwidth",
    "Cut",
    "FaultyProxy",
    "Jitter",
    "Latency",
    "Namespace",
    "NamespaceError",
    "NamespacePair",
    "Partition",
    "Reset",
    "Toxic",
    "ToxicError",
    "namespace_pair",
    "netem_unavailable",
    "unavailable",
]
