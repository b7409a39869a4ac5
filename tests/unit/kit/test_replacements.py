"""What is replaced is put back exactly, however it came to stand there."""

from __future__ import annotations

from datetime import UTC, datetime
from types import ModuleType

import pytest

from tinyllm.testing.apps.replacements import Replacements

pytestmark = pytest.mark.unit


class Base:
    def inherited(self):
        return "of the base"


class Thing(Base):
    @classmethod
    def made(cls):
        return cls()

    @staticmethod
    def alone():
        return "alone"


def test_an_attribute_of_a_module_is_replaced_and_put_back():
    module, replacements = ModuleType("module"), Replacements()
    module.name = "before"
    replacements.put(module, "name", "after")
    assert "after" == module.name
    replacements.undo()
    assert "before" == module.name


def test_methods_keep_their_kind_and_inherited_ones_go_again():
    before, replacements = dict(vars(Thing)), Replacements()
    replacements.put_all((Thing, name, lambda *_: "replaced") for name in ("made", "alone", "inherited"))
    assert {"replaced"} == {Thing().made(), Thing().alone(), Thing().inherited()}
    replacements.undo()
    assert before == dict(vars(Thing))
    assert "of the base" == Thing().inherited()


def test_what_is_replaced_twice_is_put_back_to_the_first():
    module, replacements = ModuleType("module"), Replacements()
    module.name = "first"
    for name in ("second", "third"):
        replacements.put(module, "name", name)
    replacements.undo()
    assert "first" == module.name


def test_undoing_twice_is_the_same_as_once():
    module, replacements = ModuleType("module"), Replacements()
    replacements.put(module, "name", "after")
    replacements.undo()
    module.name = "later"
    replacements.undo()
    assert "later" == module.name


def test_a_method_of_a_class_in_c_is_replaced_and_put_back_however_often_it_was_called():
    def year():
        return datetime.now(UTC).year

    before, replacements = vars(datetime)["now"], Replacements()
    # So often that the interpreter has taken a short cut to the method.
    assert 9999 not in {year() for _ in range(100)}
    replacements.put_into_builtin(datetime, "now", classmethod(lambda cls, tz: cls.max.replace(tzinfo=tz)))
    assert {9999} == {year() for _ in range(100)}
    replacements.undo()
    assert 9999 not in {year() for _ in range(100)}
    assert before is vars(datetime)["now"]
