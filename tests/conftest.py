"""The suite's profile: `TINYLLM_PROFILE` names it, dev by default."""

from functools import cache

from hypothesis.internal.conjecture import providers

from tinyllm_strategies import profiles

profiles.register()

# Hypothesis takes constants out of the source of what is imported, and draws them now and then. Which modules of
# the testing kit are imported depends on the tests that ran before in the process; only the engine's shall count, or
# a hunt for a defect would draw other lives in another order of tests.
_is_local = providers.is_local_module_file


@cache
def _is_engine(path: str) -> bool:
    return _is_local(path) and "/tinyllm/testing/" not in path and "/benchmarks/" not in path


providers.is_local_module_file = _is_engine
