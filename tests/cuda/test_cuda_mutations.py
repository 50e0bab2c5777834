"""Every barrier is needed: without it, some exercise fails."""

import re
import shutil

import pytest
from simt import mutations

from tinyalex.backends.cuda import launch

pytestmark = pytest.mark.usefixtures("standin")


def test_every_barrier_is_missed_but_one_that_nobody_needs(tmp_path):
    """The needless one is planted in a kernel that reads what its launches before have written."""
    folder = tmp_path / "kernels"
    shutil.copytree(launch.source_folder(), folder)
    code = (folder / "step_report.cu").read_text()
    entry = re.search(r'extern "C"[^{]*report_step\([^{]*\{\n', code)
    needless = f"{code[: entry.end()]}  __syncthreads();  // in vain\n{code[entry.end() :]}"
    (folder / "step_report.cu").write_text(needless)
    results = mutations.run_all(folder)
    print(mutations.table(results))
    text = "\n".join(path.read_text() for path in folder.glob("*.cu"))
    assert len(results) >= text.count("__syncthreads();") > 1
    line = 1 + code.count("\n", 0, entry.end())
    survivors = [f"{b.file}:{b.line} {b.text}" for b, missed_by in results if missed_by is None]
    assert survivors == [f"step_report.cu:{line} __syncthreads();"], mutations.table(results)
