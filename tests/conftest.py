"""The suite's profile: `TINYLLM_PROFILE` names it, dev by default."""

from tinyllm_strategies import profiles

profiles.register()
