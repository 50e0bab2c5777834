"""What a CUDA graph can record: loss, dropout and update copy nothing from or to the host.

The stand-in refuses such copies during a capture as CUDA does.
"""

import numpy as np
import pytest
from helpers import normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn, optim, random

pytestmark = pytest.mark.usefixtures("standin")


def capture(monkeypatch):
    """Let the stand-in refuse from now on what a capture refuses."""
    from simt import memory

    monkeypatch.setattr(memory.state, "capturing", True, raising=False)


def test_a_capture_refuses_copies(monkeypatch):
    x = ta.ones(3).to("cuda")
    capture(monkeypatch)
    for copy in (x.cpu, x.sum().item, lambda: ta.ones(3).to("cuda")):
        with pytest.raises(Exception, match="capturing"):
            copy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_loss_and_dropout(monkeypatch, rng, weighted, smoothing):
    from tinyalex.backends.cuda.keys import KeySlots

    x = ta.tensor(normal(rng, (4, 5), np.float32), device="cuda", requires_grad=True)
    target = ta.tensor(rng.integers(0, 5, 4), device="cuda")
    weight = ta.ones(5).to("cuda") if weighted else None
    slots = KeySlots(1)
    capture(monkeypatch)
    with random.keys_from(slots):
        F.cross_entropy(F.dropout(x), target, weight, label_smoothing=smoothing).backward()
    assert x.grad is not None


def test_the_update_is_described_before_and_launched_within(monkeypatch):
    from tinyalex.backends.cuda.sgd import Piece, StepTable

    weight = nn.Parameter(ta.ones(3).to("cuda").data)
    weight.grad = ta.ones(3).to("cuda").data
    sgd = optim.SGD([weight], lr=0.25)
    table = StepTable([Piece(*update) for update in sgd.updates()])
    with monkeypatch.context() as during:
        capture(during)
        with pytest.raises(Exception, match="capturing"):
            sgd.step()
        table.launch()
    assert weight.detach().cpu().numpy().tolist() == [0.75] * 3
