"""Maps of an image's evidence for a class, and their picture."""

from dataclasses import replace
from functools import partial

import images as bad
import numpy as np
import pytest
from commands import TINY, TWINS, run
from helpers import assert_close
from PIL import Image

import tinyalex as ta
import tinyalex.functional as F
from evidence import measure
from tinyalex import nn
from tinyalex.data import Patterns
from tinyalex.models import VARIANTS, alexnet
from tinyalex.models.spec import AdaptivePool, Conv, Linear, Pool, ReLU
from tinyalex.pictures.why import (
    _windows,
    enlarged,
    grad_cam,
    input_gradient,
    last_maps,
    occlusion,
)
from tinyalex.pictures.why_sheet import MEANINGS, Why, explain, why_picture
from tinyalex.tensor import Tensor
from tinyalex.text import percent
from tinyalex.training import load_classifier

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

MAPS = [occlusion, input_gradient, grad_cam]


@pytest.fixture(params=[TINY, TWINS], ids=lambda variant: variant.name)
def model(request):
    """Return an untrained network of float64."""
    ta.manual_seed(3)
    return alexnet(request.param, num_classes=4).to(np.float64)


@pytest.fixture
def images(rng):
    """Return three images as TINY takes them."""
    return rng.standard_normal((3, 3, 28, 28))


def probability(model, image, label):
    with ta.no_grad():
        return F.softmax(model.eval()(Tensor(image[None])), 1).data[0, label]


def test_occlusion_is_what_squares_cost(model, images):
    square, stride, label = 9, 6, 2
    found = occlusion(model, images, label, square, stride, fill=0.5)
    lost = np.zeros((28, 28, 0)).tolist()
    for top in range(1 - 4, 28 - 4, stride):  # centres 1, 7, 13, 19, 25: as far from either edge
        for left in range(1 - 4, 28 - 4, stride):
            image = images[1].copy()
            inside = [
                (y, x)
                for y in range(top, top + square)
                for x in range(left, left + square)
                if 0 <= y < 28 and 0 <= x < 28
            ]
            for y, x in inside:
                image[:, y, x] = 0.5
            cost = probability(model, images[1], label) - probability(model, image, label)
            for y, x in inside:
                lost[y][x].append(cost)
    expected = np.array([[np.mean(costs) for costs in row] for row in lost])
    np.testing.assert_allclose(found[1], expected, atol=1e-6 * np.abs(expected).max())


def test_input_gradient_is_that_of_finite_differences(model, images):
    label, step = 1, 1e-6
    found = input_gradient(model, images, label, samples=1)
    for y, x in [(0, 0), (5, 17), (14, 14), (26, 3)]:
        slopes = []
        for channel in range(3):
            moved = np.repeat(images[:1], 2, axis=0)
            moved[:, channel, y, x] += (step, -step)
            up, down = model.eval()(Tensor(moved)).data[:, label]
            slopes.append(abs(up - down) / (2 * step))
        np.testing.assert_allclose(found[0, y, x], max(slopes), rtol=1e-5, atol=1e-9)


def test_grad_cam_is_its_formula(model, images):
    (last,) = [i for i, m in enumerate(model.features) if m is last_maps(model)]
    found = grad_cam(model, images, 3)
    maps = Tensor(model.eval().features[: last + 1](Tensor(images)).data, requires_grad=True)
    model.classifier(model.features[last + 1 :](maps).flatten(1))[:, 3].sum().backward()
    for n in range(len(images)):
        total = sum(maps.grad[n, k].mean() * maps.data[n, k] for k in range(maps.shape[1]))
        assert_close(found[n], enlarged(np.maximum(total, 0)[None], (28, 28))[0])


def test_gradients_of_noisy_copies_are_averaged(model, images):
    """In float64, where the sum of a few terms is exact enough to tell a missing one."""
    samples, label = 3, np.array([0, 2, 1])
    rng, total = np.random.default_rng(0), np.zeros_like(images)
    for _ in range(samples):
        noise = rng.standard_normal(images.shape[1:], np.float32)
        noise = np.stack([noise * image.std() / 2 for image in images])
        x = Tensor(images + noise, requires_grad=True)
        model.eval()(x)[[0, 1, 2], [0, 2, 1]].sum().backward()
        total += x.grad
    found = input_gradient(model, images, label, samples)
    np.testing.assert_allclose(found, np.abs(total / samples).max(axis=1), rtol=1e-9)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        input_gradient(model, images, label, 0)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (13, 6)])
def test_maps_are_enlarged_as_torch_does(rng, size):
    torch = pytest.importorskip("torch")
    maps = rng.standard_normal((2, *size), np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], (28, 31), mode="bilinear", align_corners=False
    )[:, 0]
    np.testing.assert_allclose(enlarged(maps, (28, 31)), expected, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_its_maps(name, rng):
    variant = VARIANTS[name].thinner(16, 67)
    model = alexnet(variant, num_classes=3)
    images = rng.standard_normal((2, variant.in_channels, 67, 67), np.float32)
    nn.data_dependent_(model, Tensor(images))
    names = {layer: name for name, layer in model.layers.items()}
    assert names[last_maps(model)] == "relu5"
    for find in MAPS:
        maps = find(model, images, np.array([2, 0]))
        assert (maps.shape, maps.dtype) == ((2, 67, 67), np.float32)
        assert np.isfinite(maps).all()
        assert np.ptp(maps) > 0
        for n, label in enumerate([2, 0]):  # each image has the map that it has alone
            assert_close(find(model, images[n : n + 1], label)[0], maps[n])


@pytest.mark.parametrize("find", MAPS)
@pytest.mark.parametrize("target", [1, 4], ids=["done", "failed"])
def test_the_network_is_left_as_it_was(find, target, model, images):
    called = []
    model.train()
    model.classifier.eval()
    weights = list(model.parameters())
    weights[0].requires_grad = False
    weights[1].grad = np.ones_like(weights[1].data)
    weights[2].register_post_accumulate_grad_hook(called.append)

    def state():
        modes = [module.training for module in model.modules()]
        hooks = [module._forward_hooks for module in model.modules()]
        gradients = [None if w.grad is None else w.grad.tolist() for w in weights]
        return modes, hooks, [w.requires_grad for w in weights], gradients, ta.random.get_state()

    before = state()
    if target < 4:
        find(model, images, target)
    else:
        with pytest.raises(ValueError, match=r"target must be in 0\.\.3, got \[?4"):
            find(model, images, target)
    assert state() == before
    assert called == []


def test_maps_have_no_gradient_of_pending_backward(model, images):
    loss = model(Tensor(images)).sum()
    for find in MAPS:
        find(model, images, 0)
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("find", MAPS)
@pytest.mark.parametrize("target", [0.5, True, [0, 1], np.zeros((3, 1), int), None])
def test_what_is_no_class_is_refused(find, target, model, images):
    with pytest.raises((TypeError, ValueError), match="target"):
        find(model, images, target)
    with pytest.raises(ValueError, match=r"target must be in 0\.\.3"):
        find(model, images, -1)


def test_squares_leave_no_gaps(model, images):
    with pytest.raises(ValueError, match="stride must be at most the square's 5 pixels, got 6"):
        occlusion(model, images, 0, square=5, stride=6)
    with pytest.raises(ValueError, match="square must be at least 1"):
        occlusion(model, images, 0, square=0)


def test_grad_cam_needs_a_convolution():
    with pytest.raises(ValueError, match="expects a network with a Conv2d"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), np.zeros((1, 1, 2, 2)), 0)


def test_grad_cam_needs_maps_of_the_network(model, images):
    with pytest.raises(ValueError, match="layer must be one of the network's, got another ReLU"):
        grad_cam(model, images, 0, nn.ReLU())
    with pytest.raises(ValueError, match=r"layer must have outputs \[N, K, h, w\], got \[3, 4\]"):
        grad_cam(model, images, 0, model.classifier[-1])


@pytest.mark.parametrize("size", range(1, 16))
def test_squares_hide_every_pixel(size):
    for length in range(size, 40):
        for stride in range(1, size + 1):
            hidden = np.zeros(length)
            for part in _windows(length, size, stride):
                hidden[part] += 1
            assert hidden.all(), (length, stride)


def test_maps_of_a_network_on_a_gpu(cuda, images):
    model, images = alexnet(TINY, num_classes=4), images[:1].astype(np.float32)
    few_squares = partial(occlusion, square=14, stride=14)
    # Occlusion's are differences of 0.001 between probabilities of 1/4, each rounded to 3e-8.
    tolerances = {few_squares: 1e-4, input_gradient: None, grad_cam: None}
    expected = {find: find(model, images, 1) for find in tolerances}
    model.to("cuda")
    for find, array in expected.items():
        actual = find(model, images, 1)
        assert_close(actual, array, tolerance=tolerances[find], what=str(find))


# --- the picture


def test_an_explanation_has_the_maps_of_the_most_probable_class(trained, rng):
    classifier = load_classifier(trained)
    image = rng.integers(0, 256, (60, 45, 3), np.uint8)
    view, grey = classifier.inputs([image, np.full_like(image, 128)])
    for target in (None, 0, 1, 2):
        why = explain(classifier, image, target)
        label = int(why.probabilities.argmax()) if target is None else target
        assert why.target == label
        np.testing.assert_array_equal(why.seen, classifier.seen(image))
        expected = occlusion(classifier.model, view[None], label, fill=grey)
        np.testing.assert_array_equal(why.occlusion, expected[0])
        for find in (input_gradient, grad_cam):
            found = getattr(why, find.__name__)
            np.testing.assert_array_equal(found, find(classifier.model, view[None], label)[0])


def test_what_is_seen_is_what_is_normalised(trained, rng):
    classifier = load_classifier(trained)
    for shape in ((36, 40, 3), (200, 31, 3), (1, 1, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        (view,) = classifier.inputs([image])
        normalised = (classifier.seen(image) - np.array(classifier.mean)) / classifier.std
        np.testing.assert_allclose(view, normalised.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [320, 640, 976])
@pytest.mark.parametrize("value", [0, 1, -1, np.nan, 1e30])
def test_every_map_is_drawn_at_every_width(width, value, recwarn):
    maps = [np.full((30, 30), value, np.float32)] * 3
    why = Why(np.zeros((30, 30, 3), np.uint8), np.array([0.25, 0.75]), 0, *maps)
    picture = why_picture(why, ["a", "\n\u732b" * 40], "x" * 300, width)
    assert picture.width == width
    assert not recwarn.list


def test_colours_show_where_a_map_is_large():
    maps = np.zeros((3, 28, 28), np.float32)
    for values, (y, x) in zip(maps, [(0, 0), (0, 20), (20, 20)], strict=True):
        values[y : y + 8, x : x + 8] = 5
    why = Why(np.zeros((28, 28, 3), np.uint8), np.array([1.0]), 0, *maps)
    pixels = np.asarray(why_picture(why, ["a"], "", width=12 * 2 + 16 * 3 + 280 * 4))
    for number, values in enumerate(maps, start=1):
        panel = pixels[64:344, 12 + 296 * number :][:, :280].mean(axis=2)
        cells = panel.reshape(28, 10, 28, 10).mean(axis=(1, 3))
        assert np.corrcoef(cells.ravel(), values.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("arguments", [(), ("--class", "birch")])
def test_why_of_any_photographs(arguments, trained, tmp_path):
    kinds = (bad.grey, bad.rgba, bad.one_pixel, bad.exif_rotated, bad.cmyk)
    for kind in kinds:
        kind(tmp_path / f"{kind.__name__}.png")
    bad.write(tmp_path / "wide.png", size=(3000, 20))
    out = tmp_path / "why.png"
    code, said, complaints = run("look", trained, "why", tmp_path, *arguments, "--out", out)
    assert (code, complaints) == (0, "")
    assert said.splitlines()[-1] == f"drawn in {out}"
    with Image.open(out) as picture:
        assert picture.width == 976


def test_why_of_what_cannot_be_read(trained, tmp_path):
    good, broken = bad.write(tmp_path / "good.png"), tmp_path / "broken.png"
    bad.text(broken)
    out = tmp_path / "out.png"
    code, _, complaints = run("look", trained, "why", good, broken, "--out", out)
    assert (code, complaints.count("\n")) == (2, 1)
    assert complaints.startswith(f"skipped: {broken}: ")
    assert out.exists()


def test_why_of_an_unknown_class(trained, tmp_path):
    out = tmp_path / "out.png"
    code, _, complaints = run("look", trained, "why", "--class", "oak", "--out", out)
    assert code == 2
    assert complaints == "error: --class must be one of ash, birch, elm; got oak\n"
    assert not out.exists()


# --- the evidence on images of which it is known where it is

STEP = 5
"""One pixel in so many is taken, each way."""
NAMES = ["bricks", "dots", "rays", "stripes"]
SMALL = replace(
    VARIANTS["torchvision"],
    name="small",
    input_size=52,
    features=(
        *(Conv(12, 5, stride=2, padding=2), ReLU(), Pool()),
        *(Conv(24, 3, padding=1), ReLU(), Conv(24, 3, padding=1), ReLU(), AdaptivePool(1)),
    ),
    classifier=(Linear(None),),
)


def patterns(split, count):
    """Return embedded images as SMALL takes them, their labels and masks."""
    dataset = Patterns(split, count)
    chosen = [i for i in range(count) if dataset.classes[dataset.labels[i]] in NAMES]
    pixels = np.stack([dataset.load(i)[::STEP, ::STEP] for i in chosen]).astype(np.float32)
    labels = np.array([NAMES.index(dataset.classes[dataset.labels[i]]) for i in chosen])
    masks = np.stack([dataset.mask(i)[::STEP, ::STEP] for i in chosen])
    return np.ascontiguousarray((pixels - 128).transpose(0, 3, 1, 2) / 64), labels, masks


@pytest.fixture(scope="module")
def learned():
    """Return a network that learned patterns for seconds."""
    images, labels, _ = patterns("train", 1000)
    rng, model = np.random.default_rng(0), random_network(0)
    with ta.use_backend("reference"):
        nn.data_dependent_(model, Tensor(images[:32]))
        optimizer = ta.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
        batches = [b for _ in range(8) for b in np.split(rng.permutation(len(images)), 16)]
        schedule = ta.schedule.Cosine(optimizer, len(batches), warmup_steps=10)
        for step, batch in enumerate(batches):
            schedule.before_step(step)
            turned = np.ascontiguousarray(np.rot90(images[batch], step % 4, axes=(2, 3)))
            F.cross_entropy(model(Tensor(turned)), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def random_network(seed):
    ta.manual_seed(seed)
    return alexnet(SMALL, len(NAMES))


def test_maps_show_the_pattern_once_the_network_has_learned_it(learned):
    """Twice as much inside as outside, and more than with random weights.

    Those reach more than 1 too, and more than 2 at times: the pattern has most of the contrast, so
    it changes most of what any network computes.
    """
    images, labels, masks = patterns("test", 250)
    methods = {find.__name__: find for find in MAPS}
    assert len(images) == 100
    assert (learned.eval()(Tensor(images)).data.argmax(axis=1) == labels).mean() > 0.6
    found, *others = (
        dict(measure(network, images, masks, stride=10, methods=methods))
        for network in (learned, random_network(0), random_network(1))
    )
    for name in methods:
        factor = found[name]["all"]
        assert factor > 2, name
        assert factor > 1.2 * np.mean([other[name]["all"] for other in others]), name


def test_rounding_is_no_evidence(rng):
    seen, noise = np.zeros((8, 8, 3), np.uint8), rng.standard_normal((8, 8)).astype(np.float32)
    why = Why(seen, np.ones(1, np.float32), 0, 1e-7 * noise, noise, noise)
    coloured, figure = why.heat("occlusion")
    assert figure == percent(1e-4)
    assert coloured.max() < 10  # of 255: black
    coloured, figure = why.heat("grad_cam")
    assert coloured.max() > 100
    assert float(figure) == pytest.approx(np.quantile(noise, 0.995), rel=0.05)


def test_a_map_that_is_0_everywhere_has_no_figure():
    why = Why(np.zeros((8, 8, 3), np.uint8), np.ones(1), 0, *np.zeros((3, 8, 8)))
    assert [why.heat(name)[1] for name in MEANINGS] == [percent(1e-4), "", ""]
