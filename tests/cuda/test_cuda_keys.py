"""Dropout keys that are given, from a list or from device memory."""

import numpy as np
import pytest

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import random


def draws(count):
    return [random.next_key() for _ in range(count)]


def test_given_keys_come_in_order_and_draw_nothing():
    ta.manual_seed(7)
    expected = draws(2)
    ta.manual_seed(7)
    with random.keys_from([3, 2**64 - 1]):
        with random.keys_from([5]):
            assert draws(1) == [5]
        assert draws(2) == [3, 2**64 - 1]
        with pytest.raises(RuntimeError, match="more keys were asked for"):
            draws(1)
    assert draws(2) == expected


def test_an_error_ends_the_given_keys():
    ta.manual_seed(7)
    expected = draws(1)
    ta.manual_seed(7)
    with pytest.raises(ZeroDivisionError), random.keys_from([3]):
        raise ZeroDivisionError
    assert draws(1) == expected


def test_both_directions_read_the_slot_when_they_run(cuda):
    """The second layer has the second slot; backward sees what was filled in since forward."""
    from tinyalex.backends.cuda.step_state import KeySlots

    def dropped(key):
        return ta.Tensor(F.dropout(ta.ones(64).to("cuda")).data).cpu().numpy() == 0

    slots, x = KeySlots(2), ta.tensor(np.ones((2, 64)), device="cuda", requires_grad=True)
    slots.fill([11, 12])
    with random.keys_from(slots):
        outputs = [F.dropout(x[i]) for i in range(2)]
    for keys in ([11, 12], [13, 14]):
        slots.fill(keys)
        x.grad = None
        sum(outputs).sum().backward(retain_graph=True)
        zeros = ta.Tensor(x.grad).cpu().numpy() == 0
        for i, key in enumerate(keys):
            with random.keys_from([key]):
                np.testing.assert_array_equal(zeros[i], dropped(key))
        if keys == [11, 12]:
            forward = [y.detach().cpu().numpy() == 0 for y in outputs]
            np.testing.assert_array_equal(zeros, forward)


def test_as_many_keys_as_slots(cuda):
    from tinyalex.backends.cuda.step_state import KeySlots

    for keys in ([], [1, 2, 3]):
        with pytest.raises(ValueError, match=rf"2 slots for keys, got {len(keys)} keys"):
            KeySlots(2).fill(keys)
