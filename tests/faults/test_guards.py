"""Guards that `faults.py` removes are in the code as quoted."""

import pytest
from commands import ROOT
from faults_code import GUARDS


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard[0])
def test_each_guard_stands_in_one_place(guard):
    _, file, text, *_ = guard
    assert (ROOT / "tinyalex" / file).read_text().count(text) == 1
