"""Random folders, runs and machines in hundreds, and damaged kernel caches."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Iterator

import numpy as np
from commands import ROOT
from faults_code import pytest_output
from faults_row import Row, progress, temporary_folder

CAMPAIGN = {
    "test_any_folder": "folders with any names, links, pipes, sockets, devices, bombs, cut images, "
    "splits of all spellings: trained on, prepared, memorised",
    "test_any_change_after_training": "images renamed, added, copied, swapped, spoilt or moved "
    "after training, then all commands: none that was learned from is taken for held out",
    "test_any_damage_to_a_run": "files of a run removed, cut, garbled, linked, replaced by pipes "
    "and folders, values in checkpoints exchanged with the digest right, then all commands",
    "test_prepare_any_folder": "such folders prepared, changed, prepared again and verified: every "
    "image is there or named",
    "test_sort_any_folder": "such folders sorted: copies are whole, each once, in the class said",
    "test_any_machine": "matplotlib, tqdm, tensorboardX that raise anything; readers that are "
    "gone, full disks, ASCII, terminals of any width: the same results",
    "test_any_process": "processes without stdin, stdout, stderr, home or language: the same work",
}
"""The tests of tests/cli/test_campaign.py, and the faults that they draw."""

KERNEL = """
from tinyalex.backends.cpu.runtime import kernel

@kernel
def double(x):
    return x + x
"""


def campaigns(profile: str) -> Iterator[Row]:
    """Run the campaign of the tests with so many examples as a profile of conftest.py has."""
    options = (f"--hypothesis-profile={profile}", "--hypothesis-show-statistics", "--timeout=900")
    said = pytest_output(ROOT, "tests/cli/test_campaign.py", *options)
    for test, fault in CAMPAIGN.items():
        statistics = re.search(rf"::{test}:\n(.*?)(?=\n\S|\Z)", said, re.DOTALL)
        counts = re.findall(r"(\d+) passing[^,]*, (\d+) failing", statistics[1])
        passed, failed = (sum(int(pair[i]) for pair in counts) for i in (0, 1))
        result = f"{passed} of {passed + failed} right, or refused in one sentence that names it"
        yield Row(fault, result, passed > 0 and not failed)


def spoilt_kernels(count: int) -> Row:
    """Cut or change the files of a compiled kernel at random places: each is compiled again."""
    from tinyalex.backends.cpu import compiling

    rng, right = np.random.default_rng(0), 0
    with temporary_folder() as folder:
        path = folder / "little.py"
        path.write_text(KERNEL)
        for number in range(count):
            files = sorted(folder.glob("__pycache__/*.nb?"))
            if files:
                spoilt = files[number % len(files)]
                content = bytearray(spoilt.read_bytes())
                place = int(rng.integers(len(content)))
                content[place] ^= int(rng.integers(1, 256))
                spoilt.write_bytes(content if number % 4 < 2 else content[:place])
            compiling._said.clear()
            description = importlib.util.spec_from_file_location("little", path)
            module = importlib.util.module_from_spec(description)
            description.loader.exec_module(module)
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                right += module.double(1.5) == 3.0
            if files:
                right -= "kernels are compiled again" not in errors.getvalue()
            progress(number, count)
    sys.modules.pop("little", None)
    said = f"{right} of {count} times said, removed and compiled again"
    return Row("a byte of a compiled kernel changed, or its file cut there", said, right == count)
