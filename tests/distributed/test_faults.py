"""Faults of one rank, which end all ranks and name it.

A test run has one or two ranks per fault; with ``--hypothesis-profile=campaign`` it is each of two,
three and four.
"""

import os
import time

import pytest
from hypothesis import settings
from networks import network
from ranks import pause, run, started, wait_for

LIMIT = 2
"""Seconds of silence until the others give up."""

LOST = "rank {rank} ({host}, process {pid}) has ended before the other ranks on its host\n"
SILENT = "({host}): step 17, fc6.weight: nothing came for 2 s from rank {rank}\n"
FAULTS = {
    "raise ValueError('broken')": ("rank {rank} ({host}): ValueError: broken\n", 1),
    "sys.exit(3)": ("rank {rank} ({host}): exit code 3\n", 3),
    "sys.exit()": ("and rank {rank} for share end\n", 1),
    "os._exit(0)": (LOST, None),
    "os._exit(3)": (LOST, None),
    "os.kill(os.getpid(), signal.SIGKILL)": (LOST, None),
    "os.kill(os.getpid(), signal.SIGSTOP)": (SILENT, 1),
    "time.sleep(100)": (SILENT, 1),
}

SCRIPT = """
ranks.step = 17
weight = np.zeros(300_000, np.float32)
ranks.sum("fc6.weight", weight, 0).wait()
if ranks.rank == int(sys.argv[1]):
    say("at", time.time(), os.getpid(), os.uname().nodename)
    exec(sys.argv[2])
say("ready")
while True:
    ranks.sum("fc6.weight", weight, 0).wait()
"""

RANKS = [(count, rank) for count in (2, 3, 4) for rank in range(count)]
CASES = [
    pytest.param(count, rank, fault, id=f"{fault} on {rank} of {count}")
    for number, fault in enumerate(FAULTS)
    for count, rank in (RANKS if settings.default.max_examples > 100 else RANKS[number % 5 :: 5])
]


@pytest.mark.parametrize(("count", "rank", "fault"), CASES)
def test_a_fault_of_one_rank_ends_all(count, rank, fault):
    ended = run(count, SCRIPT, rank, fault, limit=LIMIT)
    (begun, pid, host), *_ = filter(None, (line.split()[1:] for line in ended.out))
    seconds = time.time() - float(begun)
    message, code = FAULTS[fault]
    assert message.format(rank=rank, pid=pid, host=host) in ended.err
    assert ("Traceback" in ended.err) == ("ValueError" in fault)
    assert seconds < LIMIT + 2
    assert ended.code == code if code else ended.code > 0, ended.err


SPOILT = """
name, fault = sys.argv[2:]
owner = ranks._calls if name == "MPI_Finalize" else ranks
if ranks.rank == int(sys.argv[1]):
    setattr(owner, name, lambda: exec(fault))
"""
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"
LATE = [
    (0, "_end", STOP, "nothing came for 2 s from rank 0"),
    (1, "_finish", STOP, "nothing came for 2 s from rank 1"),
    (1, "MPI_Finalize", "time.sleep(100)", "rank 1 ({host}): end: MPI has not answered within 2 s"),
]


@pytest.mark.parametrize(("rank", "name", "fault", "expected"), LATE)
def test_a_fault_at_the_very_end_ends_all(rank, name, fault, expected):
    """All ranks have agreed to end, and wait for each other's last word, or for MPI."""
    ended = run(3, SPOILT, rank, name, fault, limit=LIMIT, seconds=20)
    assert expected.format(host=os.uname().nodename) in ended.err
    assert ended.code > 0


CUTS = RANKS if settings.default.max_examples > 100 else [(3, 1)]


@pytest.mark.parametrize(("count", "rank"), CUTS)
def test_a_cut_link_ends_all(count, rank, tmp_path):
    """The launcher, like all other ranks, has no way to the one beyond the link."""
    with (
        network(count, tmp_path) as hosts,
        started(count, SCRIPT, -1, "", limit=LIMIT, network=hosts) as job,
    ):
        wait_for(job, count)
        hosts.cut(rank)
        begun = time.monotonic()
        _, err = job.communicate(timeout=20)
        assert time.monotonic() - begun < LIMIT + 2
    assert SILENT.format(rank=rank, host=os.uname().nodename) in err
    assert job.returncode > 0


def test_a_rank_that_never_starts_ends_all():
    """MPI's own start waits for all ranks, and for ever."""
    before = "os.environ['PMI_RANK'] == '1' and sys.exit(5)"
    ended = run(3, "pass", limit=LIMIT, BEFORE=before, seconds=20)
    assert "MPI has not started on all ranks within 2 s" in ended.err
    assert ended.code > 0


PAUSED = """
say(os.getpid())
say("ready")
if ranks.rank == 0:
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        sum(range(10_000))
ranks.share("after a pause", 0).wait()
"""


def test_a_job_that_was_paused_for_longer_than_the_limit_continues():
    """As schedulers do for another one that comes first; three of its ranks wait meanwhile."""
    with started(4, PAUSED, limit=1) as job:
        pause(job, 4, 1.5)
        _, err = job.communicate(timeout=20)
    assert (job.returncode, err) == (0, "")
