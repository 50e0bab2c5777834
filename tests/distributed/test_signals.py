"""Signals to the launcher, which end all ranks at one step.

A test run sends three of each; with ``--hypothesis-profile=campaign`` it is twenty.
"""

import random
import signal
import time

import pytest
from hypothesis import settings
from ranks import Ended, run, started, wait_for

COUNT = 3
TIMES = 20 if settings.default.max_examples > 100 else 3

SCRIPT = """
from tinyalex.interrupts import StopRequest
with StopRequest() as stop:
    say("ready")
    while not any(ranks.share("stop", bool(stop)).wait()):
        stop.step += 1
say(stop.step)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("attempt", range(TIMES))
def test_a_signal_to_the_launcher_ends_all_at_one_step(name, attempt):
    with started(COUNT, SCRIPT) as job:
        before = wait_for(job, COUNT)
        time.sleep(random.Random(f"{name} {attempt}").uniform(0, 0.1))
        job.send_signal(getattr(signal, name))
        out, err = job.communicate(timeout=20)
    steps = [line for line in [*before, *out.split()] if line != "ready"]
    assert len(steps) == COUNT
    assert len(set(steps)) == 1
    assert job.returncode == 0, err


LEAVING = """
from tinyalex.interrupts import leaving_on_signals
terms = np.zeros(300_000, np.float32)
for _ in range(10):
    ranks.sum("before", terms, ((0, 1), 2))
with leaving_on_signals(pause=True, silent=True):
    if ranks.rank == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGUSR1)
    while True:
        ranks.sum("after", terms, ((0, 1), 2))
        ranks.share("after", ranks.rank).wait()
"""


@pytest.mark.parametrize("rank", range(COUNT))
def test_a_signal_to_one_rank_that_has_nothing_to_save_lets_all_leave(rank):
    assert run(COUNT, LEAVING, rank, seconds=20) == Ended(0, [], "")


AT_THE_END = """
from tinyalex.interrupts import leaving_on_signals
leaving = leaving_on_signals(pause=True, silent=True)
leaving.__enter__()
name = sys.argv[2]
if ranks.rank == int(sys.argv[1]):
    if name == "after":
        ranks.close()
        os.kill(os.getpid(), signal.SIGUSR1)
    function = getattr(ranks, name)
    def late():
        setattr(ranks, name, function)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        function()
    setattr(ranks, name, late)
"""


@pytest.mark.parametrize("when", ["_end", "_finish", "after"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_the_end_does_not_keep_the_others(rank, when):
    assert run(2, AT_THE_END, rank, when, limit=4, seconds=20) == Ended(0, [], "")
