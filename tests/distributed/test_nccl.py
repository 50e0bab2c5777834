"""Requests of ranks on GPUs, which the stand-in plays."""

import socket
import textwrap

import pytest
from gpus import BEFORE
from ranks import pause, run, said, started

from tinyalex.backends import devices
from tinyalex.calls import pip_install
from tinyalex.distributed.nccl import obstacle

CONNECTED = """
from tinyalex.backends.devices import set_place, use
from tinyalex.distributed import nccl
set_place(ranks.place)
use("cuda")
ranks.connect("cuda")
"""
GRADIENT = "x = cupy.asarray(np.ones(8, np.float32))\n"
SUM = "ranks.step = 7\nranks.sum('the gradient of fc6', x, (0, 1)).wait()\n"
SECOND = """
def end(gpu):
    gpu._ranks.abort()
    time.sleep(30)
send, calls = nccl.GPULink.transfer, []
def first(*arguments):
    calls.append(send(*arguments))
    return calls[0]
nccl.GPULink.transfer = """
"""Code that spoils the second of the two transfers of a sum."""
STUCK = "the GPU, NCCL or MPI has not answered within"
NEVER = f"rank 0 ({{host}}): step 7, the gradient of fc6: {STUCK} 2 s\n"


def on_gpus(count, script, before="", **settings):
    """Run Python code on ranks whose GPUs are connected."""
    code = CONNECTED + textwrap.dedent(script)
    return run(count, code, BEFORE=BEFORE + textwrap.dedent(before), **settings)


@pytest.mark.parametrize("gpus", [3, 1], ids=["NCCL", "host"])
def test_requests_give_what_they_give_on_the_host(standin, gpus):
    """Sums bit for bit, in the order of the tree, for any layout, size and number of blocks."""
    script = """
    from tinyalex.distributed import mpi
    mpi.ROOM = 1 << 12
    asked = []
    for tree in (((0, 1), 2), (2, (1, 0)), 1):
        for size in (0, 1, 500):
            random = np.random.default_rng(size + ranks.rank)
            scales = 10.0 ** random.integers(-3, 4, size=(size, 6))
            host = (random.normal(size=scales.shape) * scales).astype(np.float32)
            for cut, order in ((np.s_[:], "C"), (np.s_[:], "F"), (np.s_[::-1, ::2], "C")):
                there = cupy.asarray(np.array(host, order=order))[cut]
                here = host.copy()[cut]
                asked.append((here, ranks.sum("here", here, tree)))
                asked.append((there, ranks.sum("there", there, tree)))
    for (here, first), (there, second) in zip(asked[::2], asked[1::2], strict=True):
        first.wait(), second.wait()
        assert here.tobytes() == there.get().tobytes()
    me, sent = ranks.rank, ranks.sent
    shapes = [(me + peer, 2) for peer in range(ranks.size)]
    parts = [np.full(shape, 10 * me + peer, np.int64) for peer, shape in enumerate(shapes)]
    received = ranks.exchange("parts", [cupy.asarray(part) for part in parts], shapes).wait()
    for peer, part in enumerate(received):
        assert part.shape == shapes[peer]
        assert (part.get() == 10 * peer + me).all()
    payload = sum(part.nbytes for peer, part in enumerate(parts) if peer != me)
    assert payload <= ranks.sent - sent < payload + 500
    say("equal", ranks.engine.partition("GPUs ")[2])
    """
    ended = on_gpus(3, script, GPUS=gpus)
    assert ended.code == 0, ended.err
    assert all(line.startswith("equal by") for line in ended.out)
    assert all(("NCCL 2.27.7" in line) == (gpus == 3) for line in ended.out)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("nccl.GPULink.transfer = lambda *arguments: time.sleep(30)", NEVER),
        (SECOND + "lambda *a: 0 if calls else first(*a)", NEVER),
        (
            SECOND + "lambda *a: end(a[0]) if calls else first(*a)",
            "CommunicationError: the gradient of fc6: NCCL_ERROR_REMOTE_ERROR",
        ),
        ("os.kill(os.getpid(), 9)", "rank 1 ({host}, process "),
    ],
    ids=["at first", "at last", "error", "killed"],
)
def test_a_message_that_never_comes_ends_all(standin, before, expected):
    """With the rank, the step and the layer."""
    spoilt = f"if ranks.rank == 1:\n{textwrap.indent(before, '    ')}\n"
    ended = on_gpus(2, GRADIENT + spoilt + SUM, limit=2, seconds=20)
    assert ended.code != 0
    assert expected.format(host=socket.gethostname()) in ended.err, ended.err


LATE = """
if ranks.rank == 1:
    send = nccl.GPULink.transfer
    def late(*arguments):
        nccl.GPULink.transfer = send
        time.sleep(1)
        return send(*arguments)
    nccl.GPULink.transfer = late
say(os.getpid())
say("ready")
"""


def test_a_job_that_was_paused_for_longer_than_the_limit_continues(standin):
    with started(2, CONNECTED + GRADIENT + LATE + SUM, limit=2, BEFORE=BEFORE) as job:
        pause(job, 2, 2.5)
        _, err = job.communicate(timeout=20)
    assert (job.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("time.sleep(30)", "the start of NCCL: nothing came for 1 s from rank 1"),
        (
            "nccl.GPULink.join = lambda *arguments: time.sleep(30)",
            f"rank 0 ({{host}}): the start of NCCL: {STUCK} 1 s",
        ),
    ],
    ids=["before", "within"],
)
def test_a_rank_that_does_not_connect_ends_all(standin, before, expected):
    spoil = f"from tinyalex.distributed import nccl\nif ranks.rank == 1:\n    {before}\n"
    ended = run(2, spoil + CONNECTED, BEFORE=BEFORE, limit=1, seconds=20)
    assert ended.code != 0
    assert expected.format(host=socket.gethostname()) in ended.err, ended.err


LEAVING = """
from tinyalex.interrupts import leaving_on_signals
with leaving_on_signals(pause=True, silent=True):
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    ranks.share("after", 0).wait()
"""
UNTIL_THE_END = "ranks.sum('x', x, (0, 1))\nranks.close()\nassert x.get().tolist() == [2] * 8"


@pytest.mark.parametrize("script", [SUM, LEAVING, UNTIL_THE_END], ids=["end", "leave", "close"])
def test_the_end_does_not_wait_for_nccl(standin, script):
    """But for what was asked for; what frees its memory may never return."""
    ended = on_gpus(2, GRADIENT + script, limit=3, seconds=20)
    assert (ended.code, ended.err) == (0, "")


def test_ranks_without_nccl_send_by_way_of_the_host(standin):
    before = """
    from cupy.cuda import nccl
    nccl.available = False
    """
    code = CONNECTED + GRADIENT + SUM + "say(x.get().tolist(), ranks.engine)"
    lines = said(2, code, BEFORE=BEFORE + textwrap.dedent(before))
    for line in lines:
        assert line.startswith("[2.0, 2.0")
        assert "by way of the host (rank 0: NCCL is not there: " in line
        assert pip_install("tinyalex[nccl13]") in line


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ("nccl.GPULink.now = lambda self: cupy.cuda.Event()", "may still be using"),
        ("nccl.GPULink.ended = lambda *arguments: True", "no wait for the end"),
    ],
    ids=["start", "end"],
)
def test_streams_that_do_not_wait_for_each_other_are_noticed(standin, patch, expected):
    ended = on_gpus(2, f"{patch}\n{GRADIENT}x += 1\n{SUM}x += 1", limit=3, seconds=20)
    assert ended.code != 0
    assert expected in ended.err


def test_the_first_obstacle_is_named():
    free = [("a 0", "id", ""), ("a 1", "", ""), ("b 0", "", "")]
    assert obstacle(free) is None
    assert obstacle([*free, ("a 1", "", "")]) == (
        "ranks 1 and 3 have the same GPU, which NCCL refuses"
    )
    assert obstacle([*free, ("", "", "no library")]) == "rank 3: no library"


def test_each_process_of_a_host_has_a_gpu(standin, monkeypatch):
    monkeypatch.setattr(devices, "_place", 0)
    for place, expected in enumerate(["cuda:0", "cuda:1", "cuda:0"]):
        devices.set_place(place)
        assert devices.parse("cuda") == expected
        assert devices.parse("cuda:5") == "cuda:5"
        assert devices.parse("cpu") == "cpu"
