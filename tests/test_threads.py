"""The number of threads: what is asked for runs, or is refused."""

import pytest
from commands import run
from helpers import run_python

from tinyalex import threads

SETTING = "TINYALEX_NUM_THREADS"
MOST = threads.get_num_threads()
NONE_AT_ALL = ("0", "-1", "2.0", " 1 ", "+1", "01", "1e0", "many")
TOO_MANY = (str(MOST + 1), "1000000")


@pytest.fixture
def undecided(monkeypatch):
    """Let the environment decide, as in a new process."""
    monkeypatch.setattr(threads, "_chosen", None)


@pytest.mark.parametrize("value", [*NONE_AT_ALL, *TOO_MANY])
def test_a_number_that_cannot_run_is_refused_wherever_it_comes_from(value, undecided, monkeypatch):
    reason = "at most" if value in TOO_MANY else "a whole number >= 1"
    with pytest.raises(ValueError, match=f"the number of threads must be {reason}"):
        threads.set_num_threads(int(value) if value in TOO_MANY else value)
    monkeypatch.setenv(SETTING, value)
    with pytest.raises(ValueError, match=rf"{SETTING} must be {reason}"):
        threads.get_num_threads()


@pytest.mark.parametrize("value", ["", str(MOST), "1"])
def test_a_number_that_can(value, undecided, monkeypatch):
    monkeypatch.setenv(SETTING, value)
    assert threads.get_num_threads() == int(value or MOST)


@pytest.mark.parametrize("value", ["many", "1000000"])
@pytest.mark.parametrize(
    "command", ["evaluate", "gradient_check", "look", "predict", "train_alexnet"]
)
def test_a_command_says_so_in_one_sentence(command, value, undecided, monkeypatch):
    monkeypatch.setenv(SETTING, value)
    code, said, complaints = run(command)
    assert (code, said) == (2, "")
    assert complaints.splitlines()[-1].count(f"{SETTING} must be ") == 1
    assert "Traceback" not in complaints


REAL = """
import numba, tinyalex as ta, tinyalex.functional as F
from threadpoolctl import threadpool_info
F.relu(ta.ones(2))
blas = {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}
print(ta.threads.get_num_threads(), max(blas), numba.get_num_threads())
"""


@pytest.mark.parametrize("variable", [SETTING, "NUMBA_NUM_THREADS"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_said_is_what_runs(variable, backend):
    said = run_python(REAL, **{variable: "1", "TINYALEX_BACKEND": backend})
    ours, blas, numbas = map(int, said.split())
    assert (ours, blas) == (1, 1)
    assert numbas == 1 or backend == "reference"  # which leaves Numba alone


def test_numbas_own_setting_is_read_as_carefully():
    code = "import tinyalex as ta; ta.threads.get_num_threads()"
    for value in ("many", "0"):
        with pytest.raises(AssertionError, match="NUMBA_NUM_THREADS must be a whole number"):
            run_python(code, NUMBA_NUM_THREADS=value)
