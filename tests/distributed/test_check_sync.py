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


@pytest.mark.parametrize(("rank", "named"), [(1, 1), (2, 2), (0, 0)])
def test_a_change_of_one_bit_is_found_on_all_ranks(rank, named):
    lines = said(3, SCRIPT, rank, SUPPORT)
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert f"the weights of rank {named} " in lines[0]


STEPS = """
sys.path.insert(0, sys.argv[1])
from commands import tiny_settings, tiny_variant
from tinyalex.training import new_run
from tinyalex.training.ranks import Ranks
from tinyalex.training.sharded_step import RankError, ShardedSteps

with tiny_variant():
    settings = tiny_settings(None, data=None, batch_size=4, shards=2, workers=1)
    run = new_run(settings, mean=(120.0,) * 3, ranks=Ranks(ranks, 2, check_sync=2))
    steps = ShardedSteps(run.classifier.model, run.optimizer, run.ranks, run.train_data)
    if ranks.rank == 1:
        next(run.classifier.model.parameters()).data[0] += 1
    for ranks.step, batch in enumerate(run.batches(0), 1):
        try:
            steps.take(batch)
        except RankError as error:
            say(ranks.step, error)
            break
"""


def test_steps_compare_weights():
    lines = said(2, STEPS, SUPPORT)
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].startswith("2 the weights of rank 1 ")
    assert "one of these machines" in lines[0]
