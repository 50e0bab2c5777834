"""Every barrier is needed: without it, some exercise fails."""

import re
import shutil

import pytest
from simt import mutations

from tinyalex.backends.cuda import launch

pytestmark = pytest.mark.usefixtures("standin")


def survivors(results):
    return [f"{b.file}:{b.line} {b.text}" for b, missed_by in results if missed_by is None]


def test_every_barrier_is_missed():
    results = mutations.run_all()
    print(mutations.table(results))
    text = "\n".join(path.read_text() for path in launch.source_folder().glob("*.cu"))
    assert len(results) >= text.count("__syncthreads();") > 0
    assert not survivors(results), f"no exercise missed\n{mutations.table(results)}"


def test_a_barrier_that_nobody_needs_is_found(tmp_path):
    folder = tmp_path / "kernels"
    shutil.copytree(launch.source_folder(), folder)
    code = (folder / "relu.cu").read_text()
    entry = re.search(r'extern "C"[^{]*relu_float\([^{]*\{\n', code)
    needless = f"{code[: entry.end()]}  __syncthreads();  // in vain\n{code[entry.end() :]}"
    (folder / "relu.cu").write_text(needless)
    results = mutations.run_all(folder, ["relu.cu"])
    line = 1 + code.count("\n", 0, entry.end())
    assert survivors(results) == [f"relu.cu:{line} __syncthreads();"]
