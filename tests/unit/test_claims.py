"""Whether what a backend still holds is believed to be the cluster's at all, before the log is asked."""

from dataclasses import replace

import pytest

from musidecar.claims import Former, may_restore
from musidecar.kept import Record
from musidecar.protocols.backend import Held

DATA = Held("r" * 40, 100, 100, 1, 50, False, "run", "")
RAN = Record("c", 1, 2, "f", 7, False, {1: 7}, filled=True)
STOPPED = replace(RAN, clean=True, data=DATA)


@pytest.mark.parametrize(
    ("former", "trusted"),
    [
        (Former(RAN, outlived=True, restored=False), True),
        (Former(replace(RAN, filled=False), outlived=True, restored=False), False),  # not of this one
        (Former(replace(RAN, generation=1), outlived=True, restored=False), False),
        (Former(replace(RAN, formation="g"), outlived=True, restored=False), False),  # two that began at the same time
        (Former(None, outlived=True, restored=False), False),
        (Former(RAN, outlived=False, restored=False), False),  # another Redis than before
        (Former(STOPPED, outlived=False, restored=True), True),
        (Former(replace(STOPPED, clean=False), outlived=False, restored=True), False),  # saved before the last life
        (Former(replace(STOPPED, generation=1), outlived=False, restored=True), False),
    ],
)
def test_what_a_redis_holds_is_of_this_formation(former: Former, trusted: bool) -> None:
    assert former.trusted(2, "f") is trusted


def test_what_was_saved_is_loaded_only_where_it_may_be_of_use() -> None:
    assert may_restore(STOPPED, 2)
    assert not may_restore(STOPPED, 3)
    assert not may_restore(RAN, 2)
    assert not may_restore(replace(STOPPED, data=None), 2)
    assert not may_restore(None, 1)
