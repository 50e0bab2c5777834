"""The number of threads: what is asked for runs, or is refused."""

import math
import os
import subprocess
import sys
from pathlib import Path

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
@pytest.mark.parametrize("command", ["evaluate", "gradcheck", "look", "predict", "train"])
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


V1, V2 = "cgroup cgroup rw,cpu,cpuacct", "cgroup2 cgroup2 rw"
OTHERS = "22 27 0:21 / /proc rw - proc p rw\n23 22 0:9 / /m rw shared:5 - cgroup m rw,memory\n"
QUOTAS = {
    "a container": ("0::/", f"/ /sys rw - {V2}", {"sys/cpu.max": "50000 100000"}, 0.5),
    "a service": (
        "1:memory:/m\n0::/user/job",
        f"/ /sys rw shared:4 - {V2}",
        {"sys/user/job/cpu.max": "max 100000", "sys/user/cpu.max": "150000 100000"},
        1.5,
    ),
    "the tighter of two": (
        "0::/user/job",
        f"/ /sys rw - {V2}",
        {"sys/user/job/cpu.max": "200000 100000", "sys/user/cpu.max": "100000 50000"},
        2,
    ),
    "another namespace": ("0::/../job", f"/ /sys rw - {V2}", {"sys/cpu.max": "3000 1000"}, 3),
    "no limit": ("0::/job", f"/ /sys rw - {V2}", {"sys/job/cpu.max": "max 100000"}, math.inf),
    "version 1": (
        "5:cpu,cpuacct:/job\n0::/",
        f"/ /sys/cpu rw - {V1}",
        {"sys/cpu/job/cpu.cfs_quota_us": "250000", "sys/cpu/job/cpu.cfs_period_us": "100000",
         "sys/cpu/cpu.cfs_quota_us": "-1", "sys/cpu/cpu.cfs_period_us": "100000"},
        2.5,
    ),
    "a container of version 1": (
        "5:cpuacct,cpu:/docker/7\n",
        f"/docker/7 /sys/cpu rw - {V1}",
        {"sys/cpu/cpu.cfs_quota_us": "100000", "sys/cpu/cpu.cfs_period_us": "100000"},
        1,
    ),
    "no files": ("0::/", f"/ /sys rw - {V2}", {}, math.inf),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTAS)
def test_the_quota_is_the_tightest_of_the_groups_around(tmp_path, case):
    groups, mount, files, expected = QUOTAS[case]
    files = files | {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": f"{OTHERS}31 23 0:26 {mount}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.cpu_quota(tmp_path) == expected


def test_no_linux_no_quota(tmp_path):
    assert threads.cpu_quota(tmp_path) == math.inf


CORES = """
import os, tinyalex.threads as t
from tinyalex.data import loader
from tinyalex.training.environment import environment
print(t.available_cores(), t.get_num_threads(), loader.WORKERS, environment("cpu")["threading"])
"""


def begun(prepare, **variables):
    """Run CORES in a process that calls `prepare` before."""
    own = {"PYTHONPATH": str(Path(__file__).parents[2]), "TINYALEX_BACKEND": "reference"}
    environment = {**os.environ, **own, **variables}
    command = [sys.executable, "-c", CORES]
    return subprocess.check_output(command, env=environment, preexec_fn=prepare, text=True)


def test_affinity_decides_on_threads_and_workers():
    one = {min(os.sched_getaffinity(0))}
    assert begun(lambda: os.sched_setaffinity(0, one)) == "1 1 1 1 thread\n"


@pytest.fixture
def half_a_core():
    """Make a control group of half a core; return the file that takes processes into it."""
    for files in (("cpu/", "cpu.cfs_quota_us", "50000"), ("", "cpu.max", "50000 100000")):
        group = Path(f"/sys/fs/cgroup/{files[0]}tinyalex-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / files[1]).write_text(files[2])
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group / "cgroup.procs"
        group.rmdir()
        return
    pytest.skip("control groups can be made by root only, or not at all")


@pytest.mark.skipif(MOST < 2, reason="one core leaves nothing to share out")
def test_a_real_quota_decides_unless_the_number_was_asked_for(half_a_core):
    def enter():
        half_a_core.write_text("0")

    note = f"CPU quota 0.5 of {MOST} cores"
    assert begun(enter) == f"1 1 1 1 thread ({note})\n"
    assert begun(enter, **{SETTING: "2"}) == f"1 2 1 2 threads ({note})\n"
