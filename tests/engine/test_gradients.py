"""Gradients against finite differences, and proof that wrong ones are caught."""

import re

import numpy as np
import pytest
from helpers import distinct, normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import models
from tinyalex.backends import reference
from tinyalex.cli import gradcheck
from tinyalex.models.alexnet import smallest_input

STRICT = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-5}  # rounding costs about 1e-9 of the loss


def case(name, fn, *shapes, draw=normal):
    """One line of the table: a function of float64 tensors of these shapes."""
    return pytest.param(fn, shapes, draw, id=name)


def positive(rng, shape):
    """Draw from 0.5 to 2: for logarithms, roots and divisors."""
    return rng.uniform(0.5, 2, shape)


def check(fn, arrays):
    """Run gradcheck on these arrays."""
    assert ta.gradcheck(fn, [ta.Tensor(a, requires_grad=True) for a in arrays], **STRICT)


A, X, C = (3, 4), (2, 4, 5, 6), (2, 5, 3)
WEIGHT = np.array([0.5, 1.0, 2.0, 0.7, 1.3])
INDICES = np.array([[0, 4, 2], [3, -100, 1]])
REPEATED = (np.array([0, 2, 2, 0]), np.array([1, 3, 3, 2]))
MASK = np.arange(12).reshape(A) % 3 == 0


def same_dropout(x):
    """Drop the same elements at every call."""
    ta.manual_seed(5)
    return F.dropout(x, 0.4)


def probabilities(logits):
    """Return a constant target distribution over the classes."""
    p = np.arange(1.0, 31.0).reshape(C)
    return F.cross_entropy(logits, p / p.sum(1, keepdims=True), WEIGHT, label_smoothing=0.1)


CASES = [
    # operators, with and without broadcasting
    case("add", lambda a, b: a + b, A, A),
    case("add broadcast", lambda a, b: a + b, A, (4,)),
    case("mul broadcast, sizes alike", lambda a, b: a * b, (2, 3, 3), (3, 1)),
    case("add column", lambda a, b: a + b, (3, 1), (2, 1, 4)),
    case("add number", lambda a: 2 + a + 1.5, A),
    case("subtract", lambda a, b: a - b, A, (3, 1)),
    case("subtract from number", lambda a: 1.5 - a, A),
    case("multiply", lambda a, b: a * b, A, (1, 4)),
    case("multiply number", lambda a, b: a * b, A, ()),
    case("multiply itself", lambda a: a * a, A),
    case("divide", lambda a, b: a / b, A, (4,), draw=positive),
    case("divide number", lambda a: 2 / a, A, draw=positive),
    case("power", lambda a, b: a**b, A, (3, 1), draw=positive),
    case("power 3", lambda a: a**3, A),
    case("power -0.75", lambda a: a**-0.75, A, draw=positive),
    case("number to the power", lambda a: 2.5**a, A),
    case("negate", lambda a: -a, A),
    case("absolute", lambda a: abs(a) + a.abs(), A, draw=distinct),
    case("exp", lambda a: a.exp(), A),
    case("log", lambda a: a.log(), A, draw=positive),
    case("sqrt", lambda a: a.sqrt(), A, draw=positive),
    case("tanh", lambda a: a.tanh(), A),
    case("sigmoid", lambda a: a.sigmoid(), A),
    case("relu method", lambda a: a.relu(), A, draw=distinct),
    case("where", lambda a, b: ta.where(MASK, a, b), A, (4,)),
    case("to its own dtype", lambda a: a.to(np.float64) * 2, A),
    # matrix products
    case("matmul", lambda a, b: a @ b, A, (4, 5)),
    case("matmul vectors", lambda a, b: a @ b, (4,), (4,)),
    case("matmul vector matrix", lambda a, b: a @ b, (3,), A),
    case("matmul matrix vector", lambda a, b: a @ b, A, (4,)),
    case("matmul batches", lambda a, b: a @ b, (2, 1, 3, 4), (5, 4, 2)),
    case("matmul batch vector", lambda a, b: a @ b, (2, 3, 4), (4,)),
    case("matmul vector batch", lambda a, b: a @ b, (3,), (2, 3, 4)),
    case("matmul transposed", lambda a, b: a.T @ b.T, A, (5, 3)),
    # reductions
    *(
        case(
            f"{name} {options}", lambda a, n=name, o=options: getattr(a, n)(**o), (2, 3, 4), draw=d
        )
        for name, d in (("sum", normal), ("mean", normal), ("amax", distinct), ("amin", distinct))
        for options in ({}, {"dim": 1}, {"dim": (0, -1)}, {"axis": -1, "keepdims": True})
    ),
    # moving elements
    case("reshape", lambda a: a.reshape(2, -1) * a.reshape((2, 6)), A),
    case("flatten", lambda a: a.flatten(1, 2), (2, 3, 4, 2)),
    case("transpose", lambda a: a.transpose(0, -1) * 2, (2, 3, 4)),
    case("permute", lambda a: a.permute(2, 0, 1).reshape(4, 6), (2, 3, 4)),
    case("squeeze", lambda a: a.squeeze().unsqueeze(1), (3, 1, 4)),
    case("slice", lambda a: a[1:, ::-2], A),
    case("index number", lambda a: a[-1], A),
    case("index mask", lambda a: a[MASK], A),
    case("index repeated", lambda a: a[REPEATED], A),
    case("index new axis", lambda a: a[:, None, ..., 1], (2, 3, 4)),
    case("cat", lambda a, b, c: ta.cat([a, b, c], dim=-1), A, (3, 1), (3, 2)),
    case("cat itself", lambda a: ta.cat([a, a * 2, a], dim=0), A),
    case("stack", lambda a, b: ta.stack([a, b], dim=1), A, A),
    case("pad", lambda a: F.pad(a, (1, 2, 0, 3), value=7.0), (2, 3, 4)),
    case("pad cuts", lambda a: F.pad(a, (-1, 2, 1, -2)), A),
    # convolution: every input, bias included
    case("conv2d", lambda x, w, b: F.conv2d(x, w, b), X, (3, 4, 3, 2), (3,)),
    case("conv2d no bias", lambda x, w: F.conv2d(x, w, padding=1), X, (3, 4, 3, 3)),
    case(
        "conv2d stride",
        lambda x, w, b: F.conv2d(x, w, b, (2, 3), (1, 2)),
        (1, 2, 7, 8),
        (3, 2, 3, 4),
        (3,),
    ),
    case(
        "conv2d groups dilation",
        lambda x, w, b: F.conv2d(x, w, b, padding=(2, 0), dilation=(2, 1), groups=2),
        X,
        (4, 2, 3, 2),
        (4,),
    ),
    case(
        "conv2d depthwise",
        lambda x, w, b: F.conv2d(x, w, b, groups=4),
        X,
        (8, 1, 2, 2),
        (8,),
    ),
    case("conv2d same", lambda x, w: F.conv2d(x, w, padding="same"), X, (2, 4, 2, 4)),
    case("conv2d 1x1", lambda x, w, b: F.conv2d(x, w, b), X, (3, 4, 1, 1), (3,)),
    case("conv2d whole image", lambda x, w: F.conv2d(x, w), X, (3, 4, 5, 6)),
    case("conv2d 5x5", lambda x, w: F.conv2d(x, w, padding=2), (1, 2, 6, 7), (3, 2, 5, 5)),
    # pooling, on distinct values: a tie has no derivative
    case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2), (2, 2, 7, 7), draw=distinct),
    case(
        "max_pool2d options",
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), 1, (1, 2), True),
        (2, 2, 6, 7),
        draw=distinct,
    ),
    case("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1), X),
    case("avg_pool2d ceil", lambda x: F.avg_pool2d(x, 2, 3, 1, True, False), X),
    case("avg_pool2d divisor", lambda x: F.avg_pool2d(x, 2, divisor_override=3), X),
    case("adaptive smaller", lambda x: F.adaptive_avg_pool2d(x, (3, 4)), X),
    case("adaptive larger", lambda x: F.adaptive_avg_pool2d(x, (7, 6)), X),
    case("adaptive same", lambda x: F.adaptive_avg_pool2d(x, (5, 6)), X),
    # normalisation, with an alpha that matters
    *(
        case(
            f"local_response_norm {n} groups {g}",
            lambda x, n=n, g=g: F.local_response_norm(x, n, 0.9, 0.75, 1.2, groups=g),
            (2, 6, 2, 2),
        )
        for n, g in [(5, 1), (4, 1), (1, 1), (2, 3), (5, 2), (9, 1)]
    ),
    case("local_response_norm 3-d", lambda x: F.local_response_norm(x, 3, 1.0), (2, 4, 5)),
    case("within_channel", lambda x: F.within_channel_response_norm(x, 3, 1.1, 0.75, 0.8), X),
    # the rest of a network
    case("relu", F.relu, X, draw=distinct),
    case("dropout", same_dropout, X),
    case("linear", F.linear, (3, 5), (4, 5), (4,)),
    case("linear no bias", lambda x, w: F.linear(x, w), (2, 3, 5), (4, 5)),
    case("softmax", lambda x: F.softmax(x, dim=1), C),
    case("log_softmax", lambda x: F.log_softmax(x, dim=-1), C),
    case("cross_entropy", lambda x: F.cross_entropy(x, INDICES), C),
    case("cross_entropy sum", lambda x: F.cross_entropy(x, INDICES, reduction="sum"), C),
    case(
        "cross_entropy all options",
        lambda x: F.cross_entropy(x, INDICES % 5, WEIGHT, 4, "none", 0.2),
        C,
    ),
    case("cross_entropy probabilities", probabilities, C),
    # shared use
    case("diamond", lambda a: (a * a.exp()) + a.tanh() * a, A),
    case("two outputs", lambda a, b: (a * b, a + b), A, A),
]


@pytest.mark.parametrize(("fn", "shapes", "draw"), CASES)
def test_gradient(backend, fn, shapes, draw, rng):
    check(fn, [draw(rng, shape) for shape in shapes])


def test_gradient_of_a_channels_last_image(backend, rng):
    x = normal(rng, (2, 5, 6, 3)).transpose(0, 3, 1, 2)
    w = normal(rng, (3, 3, 4, 3)).transpose(0, 3, 1, 2)
    check(lambda x, w: F.max_pool2d(F.conv2d(x, w, padding=1), 2), [x, w])


def test_gradient_of_only_some_inputs(backend, rng):
    """Each subset of conv's inputs takes another path through its backward."""
    arrays = [normal(rng, shape) for shape in (X, (3, 4, 3, 3), (3,))]
    for wanted in [(0,), (1,), (2,), (0, 2), (1, 2)]:
        inputs = [ta.Tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]
        assert ta.gradcheck(lambda x, w, b: F.conv2d(x, w, b), inputs, **STRICT)
        assert all(t.grad is None for t in inputs), "gradcheck leaves .grad alone"


# --- whole networks ------------------------------------------------------------------------------


def small_network(variant):
    """Return a variant with a sixteenth of its kernels, and two images in its smallest size."""
    size = max(smallest_input(variant), 67)
    net = models.alexnet(variant.thinner(16, size), num_classes=5).to(np.float64)
    return net, (2, variant.in_channels, size, size)


@pytest.mark.parametrize("name", models.VARIANTS)
def test_whole_network_along_one_direction_a_parameter(backend, name, rng):
    """For each parameter w and a direction d: ``dL/dw . d`` is the slope of the loss along d."""
    net, shape = small_network(models.VARIANTS[name])
    for p in net.parameters():  # large enough for every layer to matter
        p.data[...] = normal(rng, p.shape) * np.sqrt(2 / np.prod(p.shape[1:], initial=4))
    x, target = ta.Tensor(normal(rng, shape) * 3), np.array([0, 3])

    def loss():
        ta.manual_seed(3)  # the same dropout every time
        return F.cross_entropy(net(x), target)

    loss().backward()
    for name, p in net.named_parameters():
        direction, here = normal(rng, p.shape), p.data.copy()
        direction[p.grad * direction < 0] *= -1  # uphill: the terms add up instead of cancelling
        direction /= np.linalg.norm(direction)
        ends = []
        with ta.no_grad():
            for step in (1e-7, -1e-7):
                p.data[...] = here + step * direction
                ends.append(loss().item())
        p.data[...] = here
        analytic = float((p.grad * direction).sum())
        assert analytic > 1e-4, f"{name} has no influence: the test would prove nothing"
        np.testing.assert_allclose(analytic, (ends[0] - ends[1]) / 2e-7, rtol=1e-5, err_msg=name)


# --- negative controls: these gradients are wrong, and gradcheck must say where -------------------


class Product(ta.Function):
    """``y = a * b * b``, right; the subclasses spoil the gradient of ``b``."""

    def forward(self, a, b):
        self.save(a, b)
        return a * b * b

    def backward(self, grad):
        a, b = self.saved
        return grad * b * b, self.spoil(2 * grad * a * b)

    def spoil(self, db):
        return db


class Permuted(Product):
    """The right numbers in the wrong places; their sum is right."""

    def spoil(self, db):
        return db[:, ::-1]


class Scaled(Product):
    """Wrong by one part in a thousand."""

    def spoil(self, db):
        return db * (1 + 1e-3)


class OneWrongElement(Product):
    """All right but the last."""

    def spoil(self, db):
        db[-1, -1] += 1e-2
        return db


class WrongSignInACorner(Product):
    """The sign of one corner."""

    def spoil(self, db):
        db[0, -1] *= -1
        return db


class Missing(Product):
    """No gradient at all."""

    def spoil(self, db):
        return np.zeros_like(db)


class NotANumber(Product):
    """NaN compares as neither larger nor smaller."""

    def spoil(self, db):
        db[1, 2] = np.nan
        return db


class ForgottenFlip(ta.Function):
    """Mirrors its input but not the gradient; the gradient of a plain sum is right all the same."""

    def forward(self, x):
        return x[:, ::-1]

    def backward(self, grad):
        return grad + 0


def gradient_and_difference(message):
    """Return (input, element, backward's number, the difference quotient) from an error."""
    found = re.search(r"input (\d+) at element \(([^)]*)\).* gives (\S+?),.* give (\S+)", message)
    assert found, message
    element = tuple(int(i) for i in found[2].split(",") if i.strip())
    return int(found[1]), element, float(found[3]), float(found[4])


def test_the_control_itself_is_right(rng):
    check(Product.apply, [normal(rng, A), normal(rng, A)])


@pytest.mark.parametrize(
    ("wrong", "element"),
    [
        (Permuted, (0, 0)),
        (Scaled, (0, 0)),
        (OneWrongElement, (2, 3)),
        (WrongSignInACorner, (0, 3)),
        (Missing, (0, 0)),
        (NotANumber, (1, 2)),
    ],
)
def test_wrong_gradient_is_rejected_and_located(wrong, element):
    a, b = np.arange(1.0, 13).reshape(A), np.arange(2.0, 14).reshape(A)
    inputs = [ta.Tensor(a, requires_grad=True), ta.Tensor(b, requires_grad=True)]
    with pytest.raises(ta.GradcheckError) as caught:
        ta.gradcheck(wrong.apply, inputs, **STRICT)
    number, where, analytic, numeric = gradient_and_difference(str(caught.value))
    assert (number, where) == (1, element)
    assert not abs(analytic - numeric) < 1e-5
    np.testing.assert_array_equal(inputs[0].data, a, err_msg="inputs are put back")


@pytest.mark.parametrize("wrong", [Permuted, WrongSignInACorner, Missing, NotANumber])
def test_wrong_gradient_is_rejected_at_the_default_tolerance(wrong, rng):
    inputs = [ta.Tensor(normal(rng, A), requires_grad=True) for _ in range(2)]
    with pytest.raises(ta.GradcheckError):
        ta.gradcheck(wrong.apply, inputs)


def test_gradients_in_the_wrong_places_are_rejected(rng):
    x = ta.Tensor(normal(rng, A), requires_grad=True)
    ForgottenFlip.apply(x).sum().backward()
    np.testing.assert_array_equal(x.grad, np.ones(A), err_msg="a sum does not notice")
    with pytest.raises(ta.GradcheckError, match="input 0 at"):
        ta.gradcheck(ForgottenFlip.apply, x)


def test_a_kernel_that_loses_the_bias_is_caught(monkeypatch, rng):
    """The same through the backend: conv2d's bias gradient is left out."""
    monkeypatch.setattr(reference, "conv2d_bias_grad", lambda grad: np.zeros(grad.shape[1]))
    inputs = [ta.Tensor(normal(rng, s), requires_grad=True) for s in (X, (3, 4, 2, 2), (3,))]
    with ta.use_backend("reference"), pytest.raises(ta.GradcheckError, match="input 2 at"):
        ta.gradcheck(F.conv2d, inputs, **STRICT)


def test_gradcheck_wants_float64_and_something_to_check():
    with pytest.raises(TypeError, match="float32"):
        ta.gradcheck(F.relu, ta.ones(3, requires_grad=True))
    with pytest.raises(ValueError, match="requires_grad"):
        ta.gradcheck(F.relu, ta.ones(3, dtype=np.float64))


def test_gradcheck_rejects_a_function_of_chance(rng):
    x = ta.Tensor(normal(rng, (8, 8)), requires_grad=True)
    with pytest.raises(ta.GradcheckError, match="deterministic"):
        ta.gradcheck(lambda x: F.dropout(x, 0.5), x)


# --- the command that shows all this -------------------------------------------------------------


def run_command(capsys, *arguments):
    """Run tinyalex gradcheck; return its exit code and what it printed."""
    return gradcheck.main(arguments), capsys.readouterr().out


def test_command_accepts_the_library(capsys, backend):
    code, text = run_command(capsys, "--backend", backend)
    assert code == 0
    assert "WRONG" not in text
    assert "every gradient is right" in text


def test_command_checks_some_rows_alone(capsys):
    _, text = run_command(capsys, "--backend", "reference", "--only", "softmax")
    assert re.findall(r"(.{30}).*  ok", text) == [f"{n:30}" for n in ("softmax", "log_softmax")]
    with pytest.raises(SystemExit, match="2"):
        run_command(capsys, "--only", "softmin")
    assert "--only 'softmin' is in no name; there are a + b, broadcast; " in capsys.readouterr().err


def test_command_finds_a_wrong_kernel(capsys, monkeypatch):
    right = reference.max_pool2d_input_grad

    def wrong(grad, *options):
        dx = right(grad, *options)
        dx[0, 0] *= 1.001
        return dx

    monkeypatch.setattr(reference, "max_pool2d_input_grad", wrong)
    code, text = run_command(capsys, "--backend", "reference")
    verdicts = {line[:30].strip(): line.split()[-1] for line in text.splitlines() if line}
    assert code == 1
    assert verdicts["max_pool2d, overlapping"] == verdicts["whole network: paper"] == "WRONG"
    assert verdicts["conv2d"] == verdicts["relu"] == "ok"
