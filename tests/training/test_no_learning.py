"""The page on networks that do not learn: symptoms as printed."""

import math
import re

import pytest
from commands import ROOT

pytestmark = pytest.mark.documents

PAGE = (ROOT / "docs" / "no-learning.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"nan|\d[\d.]*(?:e-\d+)?")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def size(number):
    """Return a number, or the power of ten of one that is written as such."""
    return math.log10(float(number)) if "e" in number else float(number)


def test_each_symptom_is_as_printed(capsys):
    exec("\n".join(blocks("python")), {})
    printed, wanted = capsys.readouterr().out, "".join(blocks("text"))
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(wanted), strict=True)
    for got, expected in pairs:
        # Other processors round differently, and forty steps later it shows.
        margin = max(0.2, 0.2 * abs(size(expected)))
        assert size(got) == pytest.approx(size(expected), abs=margin, nan_ok=True)
