"""Worlds: equal values live equal lives, in every process, and all that breaks is put down."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.unit
