"""The table of layers: torchsummary's numbers, multiply-adds, memory, and leaving no trace."""

import numpy as np
import pytest

import tinyalex as ta
from tinyalex import models, nn
from tinyalex.summary import summary

# What torchsummary prints for torchvision.models.alexnet() at (3, 224, 224).
TORCHSUMMARY = """
Conv2d-1             [-1, 64, 55, 55]   23,296
ReLU-2               [-1, 64, 55, 55]   0
MaxPool2d-3          [-1, 64, 27, 27]   0
Conv2d-4             [-1, 192, 27, 27]  307,392
ReLU-5               [-1, 192, 27, 27]  0
MaxPool2d-6          [-1, 192, 13, 13]  0
Conv2d-7             [-1, 384, 13, 13]  663,936
ReLU-8               [-1, 384, 13, 13]  0
Conv2d-9             [-1, 256, 13, 13]  884,992
ReLU-10              [-1, 256, 13, 13]  0
Conv2d-11            [-1, 256, 13, 13]  590,080
ReLU-12              [-1, 256, 13, 13]  0
MaxPool2d-13         [-1, 256, 6, 6]    0
AdaptiveAvgPool2d-14 [-1, 256, 6, 6]    0
Dropout-15           [-1, 9216]         0
Linear-16            [-1, 4096]         37,752,832
ReLU-17              [-1, 4096]         0
Dropout-18           [-1, 4096]         0
Linear-19            [-1, 4096]         16,781,312
ReLU-20              [-1, 4096]         0
Linear-21            [-1, 1000]         4,097,000
""".strip().splitlines()


def words(line):
    return line.replace(", ", ",").split()


def test_torchvisions_rows_are_torchsummarys():
    text = str(summary(models.alexnet("torchvision"), (3, 224, 224)))
    printed = [words(line)[:3] for line in text.splitlines() if "[-1," in line]
    assert printed == [words(line) for line in TORCHSUMMARY]
    for total in (
        "Total params: 61,100,840",
        "Trainable params: 61,100,840",
        "Non-trainable params: 0",
        "Multiply-adds, forward, one image: 714,188,480",
        "Input, one image: 0.57 MiB",
        "Parameters: 233.08 MiB",
    ):
        assert total in text.splitlines()


def small():
    shared = nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2),
        shared,
        nn.MaxPool2d(2),
        shared,
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def test_rows_and_totals_by_hand():
    model = small()
    model[0].weight.requires_grad = False
    table = summary(model, (4, 6, 6))
    assert [(r.name, r.path, r.output_shape) for r in table.rows] == [
        ("Conv2d-1", "0", (6, 4, 4)),
        ("ReLU-2", "1", (6, 4, 4)),
        ("MaxPool2d-3", "2", (6, 2, 2)),
        ("ReLU-4", "1", (6, 2, 2)),
        ("Flatten-5", "4", (24,)),
        ("Linear-6", "5", (5,)),
    ]
    # 6 kernels of 2 x 3 x 3 at 4 x 4 places; 5 outputs of 24 inputs
    assert [r.multiply_adds for r in table.rows] == [6 * 18 * 16, 0, 0, 0, 0, 120]
    assert [r.parameters for r in table.rows] == [6 * 18 + 6, 0, 0, 0, 0, 125]
    assert [r.output_bytes for r in table.rows] == [384, 384, 96, 96, 96, 20]
    assert [r.parameter_bytes for r in table.rows] == [456, 0, 0, 0, 0, 500]
    assert (table.parameters, table.trainable_parameters) == (239, 131)
    assert (table.multiply_adds, table.input_bytes) == (1848, 576)
    assert (table.output_bytes, table.parameter_bytes) == (1076, 956)
    assert table.training_bytes(10) == 3 * 956 + 10 * (576 + 2 * 1076)
    assert "Non-trainable params: 108" in str(table)
    assert repr(table) == str(table)
    assert summary(model.to(np.float64), (4, 6, 6)).output_bytes == 2 * 1076


def test_a_layer_that_runs_twice_counts_its_parameters_once():
    layer = nn.Linear(3, 3)
    table = summary(nn.Sequential(layer, layer), (3,))
    assert [r.parameters for r in table.rows] == [12, 0]
    assert [r.multiply_adds for r in table.rows] == [9, 9]
    assert table.parameters == 12


def test_a_single_layer_and_parameters_outside_of_layers():
    class Scaled(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter(np.ones(7, np.float32))
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(x * self.scale)

    assert [r.name for r in summary(nn.Conv2d(1, 1, 3), (1, 5, 5)).rows] == ["Conv2d-1"]
    table = summary(Scaled(), (2, 7))
    assert [(r.name, r.parameters) for r in table.rows] == [("ReLU-1", 0)]
    assert table.parameters == 7


def test_the_model_stays_as_it_was():
    model = small().append(nn.Dropout())
    model[2].eval()
    modes = [m.training for m in model.modules()]
    state, random_state = model.state_dict(), ta.random.get_state()
    summary(model, (4, 6, 6))
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert all((a == state[n]).all() for n, a in model.state_dict().items())
    assert ta.random.get_state() == random_state

    with pytest.raises(ValueError, match="does not fit"):
        summary(model, (4, 2, 2))
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    assert ta.is_grad_enabled()


@pytest.mark.parametrize(
    ("model", "size", "error", "message"),
    [
        (np.tanh, (3,), TypeError, "expects a Module, got ufunc"),
        (nn.ReLU(), 224, TypeError, r"\(3, 224, 224\), got 224"),
        (nn.ReLU(), "224", TypeError, "got '224'"),
        (nn.ReLU(), (3, 2.5), TypeError, "got .3, 2.5"),
        (nn.ReLU(), (3, 0), ValueError, "at least 1"),
        (nn.ReLU(), (), ValueError, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(model, size, error, message):
    with pytest.raises(error, match=message):
        summary(model, size)
