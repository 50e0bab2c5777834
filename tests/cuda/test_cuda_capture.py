"""CUDA graphs record loss, dropout and update without copies to the host.

The stand-in refuses such copies during a capture as CUDA does.
"""

from contextlib import contextmanager

import numpy as np
import pytest
from helpers import normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn, optim, random
from tinyalex.backends.cuda.sgd import Piece, StepTable
from tinyalex.backends.cuda.step_state import KeySlots


@contextmanager
def recording(xp, step):
    """Record into a graph, from a pool of its own that `step` has filled; yield the stream."""
    pool = xp.cuda.MemoryPool()
    stream = xp.cuda.Stream(non_blocking=True)
    with stream, xp.cuda.using_allocator(pool.malloc):
        step()
        stream.begin_capture()
        try:
            yield stream
        finally:
            stream.end_capture()


def test_a_capture_refuses_copies(standin):
    x = ta.ones(3).to("cuda")
    total = x.sum()
    with recording(standin, x.sum):
        for copy in (x.cpu, total.item, lambda: ta.ones(3).to("cuda")):
            with pytest.raises(Exception, match="capturing"):
                copy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_loss_and_dropout(standin, rng, weighted, smoothing):
    x = ta.tensor(normal(rng, (4, 5), np.float32), device="cuda", requires_grad=True)
    target = ta.tensor(rng.integers(0, 5, 4), device="cuda")
    weight = ta.ones(5).to("cuda") if weighted else None
    slots = KeySlots(1)

    def step():
        x.grad = None
        with random.keys_from(slots):
            F.cross_entropy(F.dropout(x), target, weight, label_smoothing=smoothing).backward()

    with recording(standin, step):
        step()
    assert x.grad is not None


def test_the_update_is_described_before_and_launched_within(standin):
    weight = nn.Parameter(ta.ones(3).to("cuda").data)
    weight.grad = ta.ones(3).to("cuda").data
    sgd = optim.SGD([weight], lr=0.25)
    table = StepTable([Piece(*update) for update in sgd.updates()])
    with recording(standin, lambda: ta.ones(4096).to("cuda")):
        with pytest.raises(Exception, match="capturing"):
            sgd.step()
        table.launch()
    assert weight.detach().cpu().numpy().tolist() == [1.0] * 3  # noted down, and not done
