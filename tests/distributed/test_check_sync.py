"""Comparison of the weights of ranks."""

from pathlib import Path

import pytest
from ranks import said

SUPPORT = Path(__file__).parents[1] / "support"
SCRIPT = """
sys.path.insert(0, sys.argv[2])
from commands import TINY
from tinyalex import random
from tinyalex.models import AlexNet
from tinyalex.training.ranks import Ranks
from tinyalex.training.sharded_step import RankError, check_equal

random.manual_seed(0)
model = AlexNet(TINY, 3)
check_equal(Ranks(ranks, 2), model)
if ranks.rank == int(sys.argv[1]):
    weight = next(model.parameters()).data
    weight[0, 0, 0, 0] = np.nextafter(weight[0, 0, 0, 0], np.float32(1))
try:
    check_equal(Ranks(ranks, 2), model)
except RankError as error:
    say(error)
"""


@pytest.mark.parametrize(("rank", "named"), [(1, 1), (2, 2), (0, 1)])
def test_a_change_of_one_bit_is_found_on_all_ranks(rank, named):
    lines = said(3, SCRIPT, rank, SUPPORT)
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert f"the weights of rank {named} " in lines[0]
