"""The CPU kernels' threads beside other processes, threads and forks."""

import ast
import sys
from pathlib import Path

import pytest
from helpers import run_python

import tinyalex

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are Numba's")

# A process that trains a little through all kinds of parallel kernels, and knows the right bits.
# It ends, with the place where it hangs, when it takes too long.
BEGIN = """
import contextlib, faulthandler, os, signal, subprocess, sys, threading, time, warnings, zlib
faulthandler.dump_traceback_later(100, exit=True)
warnings.simplefilter("ignore")  # of forks beside threads: it is they that are tested
import numpy as np
import tinyalex as ta, tinyalex.functional as F

rng = np.random.default_rng(0)
shapes = (3, 3, 63, 63), (24, 3, 11, 11), (32, 12, 5, 5), (48, 32, 2, 3), (40, 432)
arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]

def work(_=None):
    x, first, second, third, last = leaves = [ta.Tensor(a, requires_grad=True) for a in arrays]
    h = F.relu(F.conv2d(x, first, stride=4, padding=2))
    h = F.max_pool2d(F.local_response_norm(h, 5), 3, 2)
    h = F.relu(F.conv2d(h, second, padding=2, groups=2))
    h = F.max_pool2d(F.conv2d(h, third, padding=1), 3, 2)
    loss = (F.linear(h.reshape(3, -1), last) ** 2).sum()
    loss.backward()
    results = loss.data, *(leaf.grad.data for leaf in leaves)
    return [zlib.crc32(np.ascontiguousarray(r).tobytes()) for r in results]

def is_right(rounds):
    return all(work() == expected for _ in range(rounds))

def forever():
    while True:
        work()

expected = work()
"""
CASES = {
    "a pool of children": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(8) as pool:
    assert pool.map(work, range(32)) == [expected] * 32
assert is_right(3)
""",
    "children that begin while another thread calculates": """
threading.Thread(target=forever, daemon=True).start()
for _ in range(10):
    child = os.fork()
    if not child:
        ta.empty_cache()  # takes the locks
        os._exit(0 if is_right(2) else 7)
    assert os.waitpid(child, 0)[1] == 0
assert is_right(3)
""",
    "four threads of the user's": """
wrong = []
def check():
    wrong.extend([1] * (not is_right(10)))
threads = [threading.Thread(target=check) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong
""",
    "three busy processes": """
loops = [subprocess.Popen([sys.executable, "-Sc", "while True: pass"]) for _ in range(3)]
try:
    assert is_right(10)
finally:
    for loop in loops: loop.kill()
""",
    "a number of threads that changes meanwhile": """
most = ta.threads.get_num_threads()
ta.threads.set_num_threads(1)
alone = work()
threading.Thread(target=forever, daemon=True).start()
for _ in range(10):
    ta.threads.set_num_threads(most)
    assert work() == expected
    ta.threads.set_num_threads(1)
    assert work() == alone
""",
    "loops of the user's own": """
import numba
from numba import prange
@numba.njit(parallel=True)
def add(values):
    total = 0.0
    for i in prange(values.size):
        total += values[i]
    return total, numba.get_num_threads()
values = rng.standard_normal(10_000)
numba.set_num_threads(1)
first = add(values)
assert np.isclose(first[0], values.sum()) and first[1] == 1
for _ in range(20):
    assert add(values) == first and is_right(1)
assert ta.threads.description().endswith("(tinyalex's own)")
""",
    "signals": """
interrupted = []
signal.signal(signal.SIGINT, lambda *_: interrupted.append(threading.current_thread()))
def interrupt():
    for _ in range(20):
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
while len(interrupted) < 10:
    assert is_right(1)
assert set(interrupted) == {threading.main_thread()}
faulthandler.cancel_dump_traceback_later()  # which has a thread of its own, for a moment still
for _ in range(100):
    time.sleep(0.01)
    blocked = []
    for number in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{number}/status") as status:
            mask = int(status.read().split("SigBlk:")[1].split()[0], 16)
            blocked.append(mask >> signal.SIGINT - 1 & 1)
    if sum(blocked) < ta.threads.get_num_threads():
        break
assert sum(blocked) == ta.threads.get_num_threads() - 1, blocked  # those of the pool
""",
    "an end in the midst of work": """
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
""",
    "a processor for each": """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone
assert is_right(3)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_results_are_right_and_nothing_hangs_beside(case):
    run_python(BEGIN + CASES[case])


END = """
import ctypes, os, weakref
import tinyalex as ta, tinyalex.functional as F
F.relu(ta.ones(100_000))
from tinyalex.backends.cpu import thread_pool
freed = weakref.ref(thread_pool._words, lambda _, write=os.write: write(1, b"freed"))
ctypes.pythonapi.Py_IncRef(ctypes.py_object(freed))  # it outlives all modules
"""


def test_the_memory_of_the_pool_is_there_until_the_process_ends():
    assert run_python(END) == ""


def test_the_pool_does_not_matter_to_the_results():
    code = BEGIN + "print(expected)"
    assert run_python(code) == run_python(code, NUMBA_THREADING_LAYER="omp")


KERNELS = sorted((Path(tinyalex.__file__).parent / "backends" / "cpu").glob("*.py"))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_result_depends_on_which_thread_takes_a_task(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loops = [n for n in ast.walk(tree) if isinstance(n, ast.For) and "prange" in ast.dump(n.iter)]
    for loop in loops:  # Numba gives each thread its own sum, and adds them in the threads' order
        inside = {n.id for n in ast.walk(loop) if is_name(n, ast.Store) and not is_sum(n, loop)}
        sums = {n.id for n in ast.walk(loop) if is_name(n, ast.Store) and is_sum(n, loop)}
        assert sums <= inside, f"line {loop.lineno}: {sums - inside} over prange: one for each task"
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and "thread_id" in ast.unparse(node.slice):
            assert ast.unparse(node.value) == "space", f"line {node.lineno}: more than scratch"


ENGINE = [Path(tinyalex.__file__).parent / room for room in ("ops", "backends")]


@pytest.mark.parametrize("room", ENGINE, ids=lambda path: path.name)
def test_no_thread_aborts_the_process_that_ends_beside_it(room):
    """Python ends daemon threads where they ask for its lock: np.unique, in C++, aborts then."""
    assert not [path for path in room.rglob("*.py") if "np.unique" in path.read_text("utf-8")]


def is_name(node, context):
    return isinstance(node, ast.Name) and isinstance(node.ctx, context)


def is_sum(name, loop):
    return any(isinstance(n, ast.AugAssign) and n.target is name for n in ast.walk(loop))


WHICH = """
import os, platform  # and BLAS with one thread, so that all others are of Numba or the pool
{before}
import numpy as np
import tinyalex as ta, tinyalex.functional as F
F.relu(ta.ones(100_000))
print(ta.threads.description(), len(os.listdir("/proc/self/task")))
"""
ONE_CORE = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
ELSEWHERE = "platform.machine = lambda: 'riscv64'"  # whose system calls the pool does not know


@pytest.mark.parametrize(
    ("before", "environment", "expected"),
    [
        ("", {"NUMBA_THREADING_LAYER": "workqueue"}, "(Numba's workqueue)"),
        (ELSEWHERE, {}, "(Numba's "),
        (ONE_CORE, {}, "1 thread (tinyalex's own) 1"),
        ("", {"TINYALEX_NUM_THREADS": "1"}, "1 thread (tinyalex's own) 1"),
    ],
    ids=["the user's choice", "another processor", "one core", "one thread"],
)
def test_threads_say_which_they_are(before, environment, expected):
    assert expected in run_python(
        WHICH.format(before=before), OPENBLAS_NUM_THREADS="1", **environment
    )
