"""Hypothesis profiles: how long to look, and whether to look at the same things every time."""

from __future__ import annotations

import os
from typing import Literal

from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

ProfileName = Literal["dev", "ci", "nightly"]
PROFILES: tuple[ProfileName, ...] = ("dev", "ci", "nightly")
MAX_EXAMPLES = {"dev": 200, "ci": 1_000, "nightly": 50_000}
EXAMPLES_DIRECTORY = ".hypothesis/examples"


def profile_settings(name: ProfileName) -> settings:
    """The settings of a profile.

    No deadline anywhere: machines are noisy and simulated time is what counts. `ci` draws the same examples
    every time and keeps none; `nightly` looks for hours with fresh seeds.
    """
    database = None if name == "ci" else DirectoryBasedExampleDatabase(EXAMPLES_DIRECTORY)
    # Everything is said: what is left out would be taken from the profile that is loaded at the moment.
    return settings(
        max_examples=MAX_EXAMPLES[name],
        deadline=None,
        derandomize=name == "ci",
        database=database,
        print_blob=True,
    )


def register(default: ProfileName = "dev") -> ProfileName:
    """Register all profiles and load the one that `TINYLLM_PROFILE` names, else `default`."""
    for name in PROFILES:
        settings.register_profile(name, profile_settings(name))
    chosen = os.environ.get("TINYLLM_PROFILE", default)
    if chosen not in PROFILES:
        raise ValueError(f"TINYLLM_PROFILE is {chosen!r}; there are {', '.join(PROFILES)}")
    settings.load_profile(chosen)
    return chosen
