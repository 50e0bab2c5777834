"""Requests that ranks make of each other, under a real MPI."""

import numpy as np
import pytest
from ranks import run, said

from tinyalex.distributed.communicator import Single

ORDERS = {
    1: [0],
    2: [(0, 1), (1, 0), 1],
    3: [((0, 1), 2), (0, (1, 2)), (2, 1), 1],
    4: [((0, 1), (2, 3)), (((0, 1), 2), 3), (1, (3, 0))],
    5: [((0, 1), ((2, 3), 4))],
    6: [((0, (1, 2)), (3, (4, 5)))],
    7: [((0, (1, 2)), ((3, 4), (5, 6)))],
    8: [(((0, 1), (2, 3)), ((4, 5), (6, 7))), (5, (7, (1, 3)))],
}
"""For each number of ranks, orders of a sum; some leave ranks out."""


@pytest.mark.parametrize("count", ORDERS)
def test_a_sum_is_taken_in_the_order_of_its_tree(count):
    """Another order has other bits: terms are of very different sizes."""
    script = """
    from functools import reduce
    from tinyalex.distributed.communicator import ranks_of

    def add(tree, terms):
        if isinstance(tree, int):
            return terms[tree]
        return add(tree[0], terms) + add(tree[1], terms)

    for tree in eval(sys.argv[1]):
        for size in (0, 1, 2, 7, 1000, 200_001):
            random = np.random.default_rng(size)
            scales = 10.0 ** random.integers(-3, 4, size=(ranks.size, size))
            terms = (random.normal(size=scales.shape) * scales).astype(np.float32)
            mine = terms[ranks.rank].copy()
            ranks.sum(f"sum of {size}", mine, tree).wait()
            assert mine.tobytes() == add(tree, terms).tobytes(), (tree, size)
        there = ranks_of(tree, ranks.size)
        rows = reduce(np.add, terms[there]), reduce(np.add, terms[there[::-1]])
        say(len(there) < 3 or any((mine != row).any() for row in rows))
    """
    assert set(said(count, script, ORDERS[count])) == {"True"}


def test_arrays_of_any_layout_dtype_and_length_are_summed():
    """Those of many blocks, too, of which some are under way at a time."""
    script = """
    from tinyalex.distributed import mpi
    mpi.PIECE, mpi.BLOCK = 1 << 12, 1 << 14
    for dtype in (np.float32, np.float64, np.int64):
        whole = np.arange(3 * 50_000).reshape(3, 50_000).astype(dtype)
        for array in (whole.copy(), np.asfortranarray(whole), whole.copy()[::2, ::3], whole[1:1]):
            expected = array * 3
            array *= ranks.rank
            ranks.sum("sum", array, ((0, 1), 2)).wait()
            assert (array == expected).all()
    say("equal")
    """
    assert said(3, script) == ["equal"] * 3


def test_a_sum_needs_memory_for_few_blocks():
    script = """
    from resource import RUSAGE_SELF, getrusage
    array = np.ones(1 << 24, np.float32)
    ranks.sum("a small sum", array[:1000], (0, 1)).wait()
    before = getrusage(RUSAGE_SELF).ru_maxrss
    ranks.sum("sum", array, (0, 1)).wait()
    say((getrusage(RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    assert max(map(int, said(2, script))) < 24  # MB, of an array of 64


def test_every_request_gives_what_all_ranks_sent():
    """In any order of waiting, with empty parts, views, and arrays of many messages."""
    script = """
    me, all_ = ranks.rank, range(ranks.size)
    rows = ranks.gather("rows", np.full((me, 700_000), me, np.float32)[:, ::-1])
    parts = [np.full((me * peer, 2), 10 * me + peer) for peer in all_]
    parts = ranks.exchange("parts", parts, [(me * peer, 2) for peer in all_])
    root = np.full((5, 3), me)
    sent = ranks.sum("root", root[:, 1], 2)
    words = ranks.share("words", {"rank": me, "pair": (me, None)})
    assert words.wait() == [{"rank": peer, "pair": [peer, None]} for peer in all_]
    sent.wait()
    assert (root == [me, 2, me]).all()
    for peer, part in enumerate(parts.wait()):
        assert part.shape == (me * peer, 2)
        assert (part == 10 * peer + me).all()
    for peer, row in enumerate(rows.wait()):
        assert row.shape == (peer, 700_000)
        assert (row == peer).all()
    payload = 2_800_000 * me * 2 + sum(16 * me * peer for peer in all_ if peer != me)
    payload += 8 * 5 if me == 2 else 0  # and each rank's chunk to the others
    assert 0 < ranks.sent - payload < 1500, ranks.sent - payload
    say("equal")
    """
    assert said(3, script) == ["equal"] * 3


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            "ranks.share('loss', 1)",
            "ranks.gather('loss', np.zeros(3))",
            "rank 0 asks for share loss, and rank 1 for gather loss <f8",
        ),
        (
            "ranks.sum('fc6', np.zeros(3, np.float32), 0)",
            "ranks.sum('fc6', np.zeros(4, np.float32), 0)",
            "rank 0 asks for sum fc6 <f4 3 0, and rank 1 for sum fc6 <f4 4 0",
        ),
        (
            "ranks.gather('rows', np.zeros((1, 2)))",
            "ranks.gather('rows', np.zeros((1, 3)))",
            "rank 0 asks for gather rows <f8 2, and rank 1 for gather rows <f8 3",
        ),
        (
            "ranks.exchange('half', [np.zeros(2)] * 2, [(2,), (3,)])",
            "ranks.exchange('half', [np.zeros(2)] * 2, [(2,), (2,)])",
            "half: rank 0 expects (3,) from rank 1, which sends (2,)",
        ),
    ],
    ids=["kinds", "shapes", "rows", "parts"],
)
def test_ranks_that_differ_are_told_so(first, second, expected):
    """At once, not as a wrong result or by running out of time."""
    script = f"({first} if ranks.rank == 0 else {second}).wait()\nranks.share('next', 0).wait()"
    ended = run(2, script)
    assert expected in ended.err
    assert ended.code == 1


BAD = {
    "a tree without a rank": ("sum", (np.zeros(3), (0, 1)), "each rank at most once"),
    "a tree with a rank twice": ("sum", (np.zeros(3), (0, 0)), "each rank at most once"),
    "no pair": ("sum", (np.zeros(3), (0,)), "a rank or a pair"),
    "no rank": ("sum", (np.zeros(3), -1), "all in 0 to 0"),
    "no axis": ("gather", (np.zeros(()),), "along axis 0"),
    "no numbers": ("gather", (np.array(["a"]),), "arrays of numbers, got dtype <U1"),
    "too many parts": ("exchange", ([np.zeros(3)] * 2, [(3,)]), "1 parts and 1 shapes"),
    "parts of two shapes": ("exchange", ([np.zeros(3)], [(4,)]), r"expects \(4,\) of itself"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case):
    method, arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        getattr(Single(), method)("label", *arguments)


def test_one_process_has_what_it_asks_for():
    one = Single()
    array = np.arange(3.0)
    assert one.gather("rows", array).wait()[0] is array
    assert one.exchange("parts", [array], [(3,)]).wait()[0] is array
    assert one.share("pair", (1, 2)).wait() == [[1, 2]]
    one.sum("sum", array, 0).wait()
    assert array.tolist() == [0, 1, 2]
    with pytest.raises(SystemExit, match="4"):
        one.abort("enough", 4)
    one.close()


def test_last_words_may_come_before_others():
    """A rank that has ended is not waited for, whenever its last messages are seen."""
    script = """
    from tinyalex.distributed import mpi_thread
    mpi_thread.BEAT = 0
    for number in range(20):
        ranks.share("number", number)
    """
    assert said(4, script, limit=5) == []


def test_a_header_is_a_sign_of_life_of_the_rank_that_sent_it():
    """Also where they come in another order than that of ranks."""
    script = """
    complete, status = ranks._complete, ranks._mpi.Status()
    def checked(messages):
        for request, peer in messages[2:]:  # after those that this rank sends
            request.Wait(status)
            assert status.source == peer
        complete(messages)
    ranks._complete = checked
    if ranks.rank == 1:
        time.sleep(0.5)
    ranks.share("header", 0).wait()
    ranks._complete = complete
    """
    assert said(3, script) == []


def test_waiting_costs_little_of_a_core():
    """Others compute meanwhile: MPI's own wait would take the whole core."""
    script = """
    if ranks.rank == 0:
        time.sleep(2)
    begun = time.process_time()
    ranks.share("late", 0).wait()
    say(ranks.rank, time.process_time() - begun, ranks.waited)
    """
    seconds, waited = map(float, said(2, script)[1].split()[1:])
    assert waited > 1.9
    assert seconds < 0.1 * waited
