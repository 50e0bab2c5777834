"""Messages while kernels are compiled."""

from helpers import run_python

CODE = """
import numpy as np
import tinyalex.functional as F
import tinyalex as ta
print(F.relu(ta.Tensor(np.array([-1.0, 2.0], np.float32))).data)
"""


def test_the_first_process_says_that_it_compiles_and_the_second_has_nothing_to_say(tmp_path):
    first, second = (run_python(CODE, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.startswith("compiling kernels that are used for the first time: ")
    assert second == "[0. 2.]\n"
    assert first.endswith(second)


def test_ranks_say_it_once(tmp_path):
    silent = "import sys; sys.stdout = None" + CODE
    assert run_python(silent, NUMBA_CACHE_DIR=str(tmp_path)) == ""
