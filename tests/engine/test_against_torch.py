"""Equal calls in torch and here: values, gradients, and training steps."""

import numpy as np
import pytest
from helpers import assert_close, distinct, normal, tied

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import models, optim

torch = pytest.importorskip("torch")
TF = torch.nn.functional

TOLERANCE = 1e-9  # of the largest value, in float64


def case(name, ours, theirs, *shapes, draw=normal):
    """One line of the table: the same expression in both languages."""
    return pytest.param(ours, theirs, shapes, draw, id=name)


def same(name, call, *shapes, **options):
    """An expression that reads the same in both: ``call(functional, *tensors)``."""
    return case(name, lambda *ts: call(F, *ts), lambda *ts: call(TF, *ts), *shapes, **options)


def positive(rng, shape):
    return rng.uniform(0.5, 2, shape)


A, X, L = (3, 4), (2, 6, 9, 8), (3, 5, 2)
TARGET = np.array([[0, 4], [3, -1], [2, 2]])
PROBABILITIES = np.random.default_rng(1).dirichlet(np.ones(5), (3, 2)).transpose(0, 2, 1)
CLASS_WEIGHT = np.array([0.5, 1.0, 2.0, 0.7, 1.3])


def cross_entropy(target, weight=None, **options):
    """Return the two sides of one call of cross_entropy."""
    t = torch.from_numpy(target)
    w = None if weight is None else torch.from_numpy(weight)
    return (
        lambda x: F.cross_entropy(x, target, weight, **options),
        lambda x: TF.cross_entropy(x, t, w, **options),
    )


CASES = [
    same("conv2d", lambda f, x, w, b: f.conv2d(x, w, b), X, (4, 6, 3, 2), (4,)),
    same(
        "conv2d options",
        lambda f, x, w, b: f.conv2d(x, w, b, (2, 1), (1, 2), (1, 3), 2),
        X,
        (4, 3, 3, 2),
        (4,),
    ),
    same("conv2d same", lambda f, x, w: f.conv2d(x, w, padding="same"), X, (4, 6, 5, 3)),
    same("conv2d valid", lambda f, x, w: f.conv2d(x, w, None, 3, "valid"), X, (4, 6, 2, 2)),
    same("conv2d depthwise", lambda f, x, w: f.conv2d(x, w, groups=6), X, (12, 1, 3, 3)),
    same(
        "conv2d 11x11", lambda f, x, w: f.conv2d(x, w, None, 4, 2), (2, 3, 31, 30), (4, 3, 11, 11)
    ),
    same("conv2d no images", lambda f, x, w: f.conv2d(x, w), (0, 6, 5, 5), (4, 6, 3, 3)),
    same("max_pool2d", lambda f, x: f.max_pool2d(x, 3, 2), X, draw=distinct),
    same(
        "max_pool2d options",
        lambda f, x: f.max_pool2d(x, (3, 2), (2, 3), 1, (1, 2), True),
        X,
        draw=distinct,
    ),
    same("max_pool2d ties", lambda f, x: f.max_pool2d(x.relu(), 3, 2, 1, 1, True), X),
    same("avg_pool2d", lambda f, x: f.avg_pool2d(x, 3, 2, 1), X),
    same("avg_pool2d ceil", lambda f, x: f.avg_pool2d(x, (2, 4), 3, (1, 2), True), X),
    same("avg_pool2d no pad", lambda f, x: f.avg_pool2d(x, 3, 4, 1, True, False), X),
    same("avg_pool2d divisor", lambda f, x: f.avg_pool2d(x, 3, divisor_override=5), X),
    same("adaptive_avg_pool2d", lambda f, x: f.adaptive_avg_pool2d(x, (4, 11)), X),
    same("adaptive_avg_pool2d None", lambda f, x: f.adaptive_avg_pool2d(x, (None, 3)), X),
    *(
        same(
            f"local_response_norm {n}",
            lambda f, x, n=n: f.local_response_norm(x, n, 0.9, 0.6, 2.0),
            X,
        )
        for n in (1, 2, 3, 4, 5, 9)
    ),
    same("local_response_norm defaults", lambda f, x: f.local_response_norm(x, 5), X),
    same("relu", lambda f, x: f.relu(x), X),
    same("linear", lambda f, x, w, b: f.linear(x, w, b), (3, 5), (4, 5), (4,)),
    same("linear 3-d", lambda f, x, w: f.linear(x, w), (2, 3, 5), (4, 5)),
    same("pad", lambda f, x: f.pad(x, (1, 2, 0, 3), value=1.5), X),
    same("pad cuts", lambda f, x: f.pad(x, (-1, 2, 1, -3)), X),
    same("softmax", lambda f, x: f.softmax(x, dim=1), L),
    same("log_softmax", lambda f, x: f.log_softmax(x, dim=-1), L),
    *(
        case(
            f"cross_entropy {kind} {reduction} {weight is not None} {smoothing}",
            *cross_entropy(
                target, weight, reduction=reduction, label_smoothing=smoothing, **options
            ),
            L,
        )
        for kind, target, options in (
            ("indices", TARGET, {"ignore_index": -1}),
            ("probabilities", PROBABILITIES, {}),
        )
        for reduction in ("mean", "sum", "none")
        for weight in (None, CLASS_WEIGHT)
        for smoothing in (0.0, 0.2)
    ),
    *(
        case(name, call, call, A, (4,), draw=positive)
        for name, call in {
            "arithmetic": lambda a, b: (a + b) * (a - b) / b,
            "numbers": lambda a, b: 2 * a + 1 - (3 - b) / 2 + 1 / a,
            "power": lambda a, b: a**b + a**2 + 2**b,
            "shapes": lambda a, b: a.flatten(0, 1).reshape(4, 3).transpose(0, 1) * b,
            "unary": lambda a, b: (
                a.exp() + a.log() * b.sqrt() + (-a).tanh() + b.sigmoid() + abs(-a)
            ),
            "reductions": lambda a, b: a.sum(1).mean() * a + b.mean(dim=0, keepdim=True),
            "matmul": lambda a, b: (a @ b) @ (a @ a.T),
            "indexing": lambda a, b: a[[0, 0, 2]][:, [1, 3, 3]] * b[1:, None, None][-1] + b[::2][0],
        }.items()
    ),
    *(
        case(f"{name}{' of ties' if ties else ''}", call, call, A, draw=tied if ties else normal)
        for ties in (False, True)
        for name, call in {
            "max": lambda a: a.max() * a.min(),
            "max along": lambda a: a.max(1).values * a.min(-1, True).values.sum(),
            "amax": lambda a: a.amax(dim=(0, 1), keepdim=True) * a.amin(0),
        }.items()
    ),
    case(
        "cat and stack",
        lambda a, b: ta.stack([ta.cat([a, b], dim=1), ta.cat([b, a], dim=1)], dim=1),
        lambda a, b: torch.stack([torch.cat([a, b], dim=1), torch.cat([b, a], dim=1)], dim=1),
        A,
        (3, 2),
    ),
    case("where", lambda a, b: ta.where(a > b, a, b), lambda a, b: torch.where(a > b, a, b), A, A),
]


@pytest.mark.parametrize(("ours", "theirs", "shapes", "draw"), CASES)
def test_values_and_gradients(backend, ours, theirs, shapes, draw, rng):
    arrays = [draw(rng, shape) for shape in shapes]
    mine = [ta.Tensor(a.copy(), requires_grad=True) for a in arrays]
    his = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = ours(*mine), theirs(*his)
    assert_close(y.data, z.detach().numpy(), TOLERANCE, "values")
    gradient = normal(rng, y.shape)
    y.backward(gradient)
    z.backward(torch.tensor(gradient))
    for i, (m, h) in enumerate(zip(mine, his, strict=True)):
        assert_close(m.grad, h.grad.numpy(), TOLERANCE, f"gradient of input {i}")


@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_formats(backend, kind, rng):
    x = torch.tensor(normal(rng, X)).to(memory_format=kind)
    w = torch.tensor(normal(rng, (4, 6, 3, 3))).to(memory_format=kind)
    y = F.max_pool2d(F.conv2d(ta.Tensor(x.numpy()), ta.Tensor(w.numpy())), 3, 2)
    assert_close(y.data, TF.max_pool2d(TF.conv2d(x, w), 3, 2).numpy(), TOLERANCE)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f.relu(x),
        lambda f, x: f.max_pool2d(x, 3, 2, 1),
        lambda f, x: f.avg_pool2d(x, 3, 2, 1),
        lambda f, x: f.local_response_norm(x, 3, 1.0),
        lambda f, x: f.softmax(x, 1),
    ],
)
def test_nan_and_infinity_travel_alike(backend, call, rng):
    x = normal(rng, (1, 4, 6, 6))
    x[0, 1, 2, 3], x[0, 2, 5, 5] = np.nan, np.inf
    mine, his = ta.Tensor(x.copy(), requires_grad=True), torch.tensor(x, requires_grad=True)
    with np.errstate(all="ignore"):
        y, z = call(F, mine), call(TF, his)
        np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=1e-9, atol=1e-12)
        y.backward(np.ones(y.shape))
    z.backward(torch.ones_like(z))
    np.testing.assert_allclose(mine.grad, his.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "expression",
    [
        lambda n, x: n + 1,
        lambda n, x: n / 2,
        lambda n, x: n * 0.5,
        lambda n, x: n + x,
        lambda n, x: x * 0.1,
        lambda n, x: x * np.float64(0.1),
        lambda n, x: x * np.int64(3),
        lambda n, x: n.sum(),
        lambda n, x: (x > 0).sum(),
        lambda n, x: n > x,
        lambda n, x: n.argmax(),
    ],
)
def test_types_promote_alike(expression):
    n, x = [1, 2, 3], [0.5, -1.0, 2.0]
    mine = expression(ta.tensor(n), ta.tensor(x))
    his = expression(torch.tensor(n), torch.tensor(x))
    assert str(mine.dtype) == str(his.dtype).removeprefix("torch.")
    np.testing.assert_allclose(mine.data, his.numpy())


# --- the optimiser and the real networks ---------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_sgd(backend, options, rng):
    start = normal(rng, (3, 4))
    mine, his = ta.nn.Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    ours, theirs = optim.SGD([mine], lr=0.1, **options), torch.optim.SGD([his], lr=0.1, **options)
    for step in range(5):
        if step == 3:  # a change of the rate shows which form the velocity has
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.01
        gradient = normal(rng, (3, 4))
        mine.grad, his.grad = gradient.copy(), torch.tensor(gradient)
        ours.step()
        theirs.step()
        assert_close(mine.data, his.detach().numpy(), 1e-12, f"after step {step}")


def paper_in_torch(dropout):
    """Section 3 of the paper as one would write it in torch; its LRN has alpha / n, so 5e-4."""
    nn = torch.nn
    relu_lrn_pool = [nn.ReLU(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.MaxPool2d(3, 2)]
    layers = [nn.Conv2d(3, 96, 11, 4, 2), *relu_lrn_pool]
    layers += [nn.Conv2d(96, 256, 5, padding=2, groups=2), *relu_lrn_pool]
    layers += [nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(dropout)]
    layers += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4096, 10)]
    return nn.Sequential(*layers)


def torchvision_in_torch(dropout):
    """Torchvision's AlexNet."""
    nn = torch.nn
    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inputs, outputs in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6), nn.Flatten()]
    layers += [nn.Dropout(dropout), nn.Linear(9216, 4096), nn.ReLU()]
    layers += [nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("name", "build", "contrast", "lr"),
    # Rates at which the loss falls smoothly: beyond them every rounding error is amplified.
    [("paper", paper_in_torch, 30, 3e-4), ("torchvision", torchvision_in_torch, 1, 3e-3)],
    ids=["paper", "torchvision"],
)
def test_twenty_steps_of_training(name, build, contrast, lr, rng):
    """Full-size networks, the same weights and batches: the losses stay together."""
    ours = models.alexnet(name, num_classes=10, dropout=0.0)
    theirs = build(dropout=0.0)
    pairs = list(zip(ours.named_parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for (_, mine), his in pairs:
            his.copy_(torch.from_numpy(mine.data))
    recipe = {"lr": lr, "momentum": 0.9, "weight_decay": 5e-4}
    my_sgd = optim.SGD(ours.parameters(), **recipe)
    his_sgd = torch.optim.SGD(theirs.parameters(), **recipe)

    images = normal(rng, (8, 3, 224, 224), np.float32) * np.float32(contrast)
    labels = rng.integers(0, 10, 8)
    losses = []
    for step in range(20):
        batch = np.arange(4) + step % 2 * 4
        my_loss = F.cross_entropy(ours(ta.Tensor(images[batch])), labels[batch])
        my_sgd.zero_grad()
        my_loss.backward()
        my_sgd.step()
        his_loss = TF.cross_entropy(
            theirs(torch.from_numpy(images[batch])), torch.tensor(labels[batch])
        )
        his_sgd.zero_grad()
        his_loss.backward()
        his_sgd.step()
        losses.append((my_loss.item(), his_loss.item()))
    mine, his = np.array(losses).T
    assert his.max() - his.min() > 0.05, "the losses must move for the comparison to mean anything"
    np.testing.assert_allclose(mine, his, rtol=1e-4)
