"""The table of faults against the tests: a fault that no test makes happen is only a name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinyllm.testing.faults import FAULTS

pytestmark = pytest.mark.chaos

TESTS = Path(__file__).parent.parent
#: Where faults are made to bite and to heal.
TOLD = (
    "chaos/test_http_faults.py",
    "chaos/test_stream_faults.py",
    "chaos/test_lasting_faults.py",
    "chaos/test_disk_faults.py",
    "unit/kit/test_tool_faults.py",
    "unit/kit/test_world.py",
)


@pytest.mark.parametrize("kind", FAULTS.values(), ids=FAULTS)
def test_every_fault_of_the_table_is_made_to_happen_by_some_test(kind):
    made = re.compile(rf"\b{kind.__name__}\(")
    assert any(made.search((TESTS / name).read_text()) for name in TOLD)
