"""examples/minimal.py: short enough to be read first, and it learns."""

import re
import runpy

from commands import ROOT

SOURCE = (ROOT / "examples/minimal.py").read_text()
LONG = "EPOCHS, IMAGES, SEED = 5, 4000, 0"
ROW = r"epoch \d: loss (\d\.\d\d), test accuracy (\d+\.\d)%\n"


def test_it_is_one_page_of_public_names():
    assert len(SOURCE.splitlines()) <= 50
    modules = re.findall(r"^(?:import|from) (\S+)", SOURCE, re.MULTILINE)
    assert set(modules) == {"tinyalex", "tinyalex.functional", "tinyalex.data"}


def test_a_short_run_learns_and_says_so(tmp_path, capsys):
    short = tmp_path / "minimal.py"
    assert LONG in SOURCE
    short.write_text(SOURCE.replace(LONG, "EPOCHS, IMAGES, SEED = 4, 160, 0"))
    runpy.run_path(str(short), run_name="__main__")
    said = capsys.readouterr().out
    assert re.fullmatch(ROW * 4, said)
    first, *_, last = (float(loss) for loss, _ in re.findall(ROW, said))
    assert last < first - 0.3, said  # of losses that differ by 0.1 where nothing is learned
