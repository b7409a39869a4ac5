"""The suite's profile: `TINYLLM_PROFILE` names it, dev by default."""

from functools import cache

from hypothesis.internal.conjecture import providers

from tinyllm_strategies import profiles

profiles.register()


@cache
def _is_local(path: str) -> bool:
    return False


# Hypothesis takes constants out of the source of what is imported, and draws them now and then. What is imported
# depends on the tests that ran before in the process, and a hunt for a defect would draw other lives in another
# order of tests, or after a change elsewhere.
providers.is_local_module_file = _is_local
