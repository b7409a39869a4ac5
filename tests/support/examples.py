"""How many examples a property looks at that is dear, or says little more after a few: a share of the profile's."""

from __future__ import annotations

from hypothesis import settings


def a_share(divisor: int) -> settings:
    """Settings with so much fewer examples than the profile has; `nightly` still looks at many."""
    return settings(max_examples=max(1, settings().max_examples // divisor))
