"""Faults of one rank, which end all ranks and name it.

A test run has one or two ranks per fault; with ``--hypothesis-profile=campaign`` it is each of two,
three and four.
"""

import time

import pytest
from hypothesis import settings
from ranks import run

LIMIT = 2
"""Seconds of silence until the others give up."""

LOST = "rank {rank} ({host}, process {pid}) has ended before the other ranks on its host\n"
SILENT = "({host}): step 17, fc6.weight: nothing came for 2 s from rank {rank}\n"
FAULTS = {
    "raise ValueError('broken')": ("rank {rank} ({host}): ValueError: broken\n", 1),
    "sys.exit(3)": ("rank {rank} ({host}): exit code 3\n", 3),
    "sys.exit()": ("and rank {rank} for share end\n", 1),
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
    say(time.time(), os.getpid(), os.uname().nodename)
    exec(sys.argv[2])
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
    seconds = time.time() - float(ended.out[0].split()[0])
    _, pid, host = ended.out[0].split()
    message, code = FAULTS[fault]
    assert message.format(rank=rank, pid=pid, host=host) in ended.err
    assert seconds < LIMIT + 2
    assert ended.code == code if code else ended.code > 0, ended.err
