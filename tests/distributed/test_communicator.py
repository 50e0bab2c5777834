"""Requests that ranks make of each other, under a real MPI."""

import pytest
from ranks import said

COUNTS = [1, 2, 3, 4, 8]


def tree_of(ranks):
    """Return a tree of halves."""
    if len(ranks) == 1:
        return ranks[0]
    half = len(ranks) // 2
    return tree_of(ranks[:half]), tree_of(ranks[half:])


@pytest.mark.parametrize("count", COUNTS)
def test_a_sum_is_taken_in_the_order_of_its_tree(count):
    """Every order gives other bits: terms of very different sizes cancel."""
    script = """
    for label, (tree, size) in enumerate(eval(sys.argv[1])):
        terms = [
            np.random.default_rng([size, rank]).normal(size=size).astype(np.float32)
            * np.float32(1e4) ** np.random.default_rng([rank]).integers(-3, 3)
            for rank in range(ranks.size)
        ]
        add = lambda node: terms[node] if isinstance(node, int) else add(node[0]) + add(node[1])
        mine = terms[ranks.rank].copy()
        ranks.sum(f"sum {label}", mine, tree).wait()
        assert (mine.view(np.uint32) == add(tree).view(np.uint32)).all(), (tree, size)
    say(ranks.rank)
    """
    row = 0
    for rank in range(1, count):
        row = (row, rank)
    trees = [tree_of(range(count)), row, tree_of(range(count)[::-1]), count - 1]
    if count > 2:
        trees.append(tree_of(range(count)[1:]))
    cases = [(tree, size) for tree in trees for size in (0, 1, 2, 5, 1000, 300_001)]
    assert said(count, script, cases) == [str(rank) for rank in range(count)]
