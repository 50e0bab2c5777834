"""``import tinyalex`` is fast and loads no heavy library."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {"numba", "llvmlite", "PIL", "cupy", "scipy", "matplotlib", "tqdm", "torch"}


def run(code):
    """Run ``code`` in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, text=True, cwd=ROOT).split()


def test_heavy_libraries_are_not_loaded():
    loaded = set(run("import sys, tinyalex; print(*{name.split('.')[0] for name in sys.modules})"))
    assert "tinyalex" in loaded
    assert not loaded & HEAVY


def test_the_list_of_commands_loads_no_command():
    code = "import sys, tinyalex.cli.main as cli; cli.make_parser(); print(*sys.modules)"
    loaded = set(run(code))
    assert not {name.partition(".")[0] for name in loaded} & HEAVY
    assert not loaded & {"tinyalex.cli.common", "tinyalex.data", "tinyalex.training"}


def test_using_the_reference_backend_needs_no_compiler():
    code = """
import sys, numpy as np, tinyalex as ta
ta.use_backend("reference")
x = ta.Tensor(np.ones((1, 3, 8, 8)), requires_grad=True)
ta.functional.conv2d(x, ta.ones(2, 3, 3, 3, dtype=np.float64)).sum().backward()
print(*{name.split('.')[0] for name in sys.modules})
"""
    assert not set(run(code)) & HEAVY


def test_import_is_fast():
    """Processor time, for a busy machine stretches the clock; the first run fills the caches."""
    code = """
import time, numpy
start = time.process_time()
import tinyalex
print(time.process_time() - start)
"""
    seconds = sorted(float(run(code)[0]) for _ in range(6))
    assert seconds[2] < 0.2, f"import tinyalex takes {seconds} s beyond NumPy"
