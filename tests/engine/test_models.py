"""The eight variants: golden facts, initial weights, errors, and torch's outputs."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers import assert_close

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import models, nn, schedule
from tinyalex.data.augment import STRENGTH
from tinyalex.models import VARIANTS, Recipe
from tinyalex.models.alexnet import parameter_shapes, smallest_input
from tinyalex.models.provenance import SOURCES, recipe_table
from tinyalex.models.spec import LRN, Linear, ReLU
from tinyalex.summary import summary

NAMES = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
CLASSES = {"d2l": 10}  # 1000 for the others


class Facts:
    """A variant, its network and the table of its layers."""

    def __init__(self, name):
        ta.manual_seed(0)
        self.name, self.variant = name, VARIANTS[name]
        self.classes = CLASSES.get(name, 1000)
        self.model = models.alexnet(name, self.classes)
        self.image = (self.variant.in_channels, *[self.variant.input_size] * 2)
        self.summary = summary(self.model, self.image)


@pytest.fixture(scope="module", params=VARIANTS)
def facts(request):
    return Facts(request.param)


# --- golden facts -------------------------------------------------------------------------------

PARAMETERS = {
    "paper": 60_965_224,
    "source2012": 60_965_224,
    "caffe": 60_965_224,
    "caffenet": 60_965_224,
    "caffe_onnx": 60_965_224,
    "one_tower": 62_378_344,
    "torchvision": 61_100_840,
    "d2l": 46_764_746,
}
TWO_TOWERS = [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]
LAYER_PARAMETERS = {
    "paper": TWO_TOWERS,
    "source2012": TWO_TOWERS,
    "caffe": TWO_TOWERS,
    "caffenet": TWO_TOWERS,
    "caffe_onnx": TWO_TOWERS,
    "one_tower": [34_944, 614_656, 885_120, 1_327_488, 884_992, *TWO_TOWERS[5:]],
    "torchvision": [23_296, 307_392, 663_936, 884_992, 590_080, *TWO_TOWERS[5:]],
    "d2l": [11_712, 614_656, 885_120, 1_327_488, 884_992, 26_218_496, 16_781_312, 40_970],
}
MULTIPLY_ADDS = {
    "paper": 724_406_816,
    "source2012": 724_406_816,
    "caffe": 724_406_816,
    "caffenet": 724_406_816,
    "caffe_onnx": 654_560_384,
    "one_tower": 1_135_256_096,
    "torchvision": 714_188_480,
    "d2l": 938_146_176,
}
SIZES = {"d2l": (54, 26, 12, 5), "caffe_onnx": (54, 26, 12, 6)}  # of conv1, pool1, pool2, pool5


def test_the_table_is_complete():
    assert list(VARIANTS) == list(PARAMETERS)
    assert all(name == variant.name for name, variant in VARIANTS.items())


def test_parameters(facts):
    assert facts.summary.parameters == PARAMETERS[facts.name]
    counts = [layer.weight.size + layer.bias.size for layer in facts.model.weight_layers.values()]
    assert counts == LAYER_PARAMETERS[facts.name]
    assert list(facts.model.weight_layers) == NAMES


def test_multiply_adds(facts):
    assert facts.summary.multiply_adds == MULTIPLY_ADDS[facts.name]


def test_sizes(facts):
    kinds = ("Conv2d", "MaxPool2d")
    sizes = [r.output_shape[1:] for r in facts.summary.rows if r.name.split("-")[0] in kinds]
    conv1, pool1, _, pool2, _, _, _, pool5 = sizes
    assert (conv1, pool1, pool2, pool5) == tuple(
        (s, s) for s in SIZES.get(facts.name, (55, 27, 13, 6))
    )
    assert facts.summary.rows[-1].output_shape == (facts.classes,)


PAPER_ORDER = (
    "Conv2d ReLU LocalResponseNorm MaxPool2d Conv2d ReLU LocalResponseNorm MaxPool2d "
    "Conv2d ReLU Conv2d ReLU Conv2d ReLU MaxPool2d | "
    "Linear ReLU Dropout Linear ReLU Dropout Linear"
)
ORDER = {
    "paper": PAPER_ORDER,
    "caffe": PAPER_ORDER,
    "caffenet": PAPER_ORDER.replace("LocalResponseNorm MaxPool2d", "MaxPool2d LocalResponseNorm"),
    "caffe_onnx": PAPER_ORDER.replace("MaxPool2d |", "ZeroPad2d MaxPool2d |"),
    "one_tower": PAPER_ORDER,
    "d2l": PAPER_ORDER.replace("LocalResponseNorm ", ""),
    "source2012": (
        "ZeroPad2d Conv2d LocalResponseNorm MaxPool2d ReLU "
        "Conv2d ReLU LocalResponseNorm WithinChannelResponseNorm MaxPool2d "
        "Conv2d ReLU Conv2d ReLU Conv2d MaxPool2d ReLU | "
        "Linear ReLU Dropout Linear ReLU Dropout Linear"
    ),
    "torchvision": (
        "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d "
        "Conv2d ReLU Conv2d ReLU Conv2d ReLU MaxPool2d AdaptiveAvgPool2d | "
        "Dropout Linear ReLU Dropout Linear ReLU Linear"
    ),
}


def test_order_of_the_layers(facts):
    parts = (facts.model.features, facts.model.classifier)
    order = [" ".join(type(layer).__name__ for layer in part) for part in parts]
    assert " | ".join(order) == ORDER[facts.name]


NORMS = {  # in torch's convention: (size, alpha, beta, k, groups) of the layers across channels
    "paper": [(5, 5e-4, 0.75, 2, 1)] * 2,
    "source2012": [(5, 1e-4, 0.75, 2, 2)] * 2,
    "caffe": [(5, 1e-4, 0.75, 1, 1)] * 2,
    "caffenet": [(5, 1e-4, 0.75, 1, 1)] * 2,
    "caffe_onnx": [(5, 1e-4, 0.75, 1, 1)] * 2,
    "one_tower": [(5, 5e-4, 0.75, 2, 1)] * 2,
    "torchvision": [],
    "d2l": [],
}


def test_response_normalisation(facts):
    layers = list(facts.model.modules())
    across = [m for m in layers if isinstance(m, nn.LocalResponseNorm)]
    found = [(m.size, m.alpha, m.beta, m.k, m.groups) for m in across]
    assert found == NORMS[facts.name]
    within = [m for m in layers if isinstance(m, nn.WithinChannelResponseNorm)]
    expected = [(5, 1e-3, 0.75, 1)] if facts.name == "source2012" else []
    assert [(m.size, m.alpha, m.beta, m.k) for m in within] == expected


def test_convolutions_and_pools(facts):
    convs = [m for m in facts.model.modules() if isinstance(m, nn.Conv2d)]
    towers = 1 if facts.name in ("one_tower", "torchvision", "d2l") else 2
    assert [m.groups for m in convs] == [1, towers, 1, towers, towers]
    assert [m.kernel_size[0] for m in convs] == [11, 5, 3, 3, 3]
    assert [m.stride[0] for m in convs] == [4, 1, 1, 1, 1]
    conv1_padding = {"paper": 2, "one_tower": 2, "torchvision": 2, "d2l": 1}.get(facts.name, 0)
    assert [m.padding[0] for m in convs] == [conv1_padding, 2, 1, 1, 1]
    pools = [m for m in facts.model.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.padding) for m in pools] == [(3, 2, 0)] * 3


def test_the_2012_source_rounds_conv1_up():
    """The last output sees the bottom right 8 x 8 pixels and zeros beyond them."""
    model = models.alexnet(VARIANTS["source2012"].thinner(16, input_size=224), 10)
    conv1 = model.weight_layers["conv1"]
    x = ta.randn(1, 3, 224, 224)
    y = conv1(model.features[0](x)).data
    assert y.shape[2:] == (55, 55)
    corner = (conv1.weight.data[:, :, :8, :8] * x.data[:, :, 216:, 216:]).sum((1, 2, 3))
    assert_close(y[0, :, 54, 54], corner + conv1.bias.data)
    first = (conv1.weight.data * x.data[:, :, :11, :11]).sum((1, 2, 3))
    assert_close(y[0, :, 0, 0], first + conv1.bias.data)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_fast_backend_has_the_plain_one_s_answers(name, rng):
    """In float32, at the variant's own size; the zeros beyond pool5's edge count as -inf there."""
    variant = VARIANTS[name].thinner(4, VARIANTS[name].input_size)
    model = models.alexnet(variant, 7).eval()
    x = rng.standard_normal((2, variant.in_channels, *[variant.input_size] * 2))
    with ta.no_grad():
        fast = model(ta.Tensor((x * 60).astype(np.float32))).data
        with ta.use_backend("reference"):
            assert_close(fast, model.to(np.float64)(ta.Tensor(x * 60)).data, 2e-5)


def test_zeros_before_the_zoo_s_last_pool_are_as_good_as_padding(rng):
    pad, pool = models.alexnet(VARIANTS["caffe_onnx"].thinner(16, 51), 2).features[-2:]
    x = F.relu(ta.Tensor(rng.standard_normal((2, 3, 12, 12)) - 1))
    wide = F.pad(x, (0, 1, 0, 1), value=-np.inf)
    assert_close(pool(pad(x)).data, F.max_pool2d(wide, 3, 2).data, 0.0)
    assert pool(pad(x)).shape == (2, 3, 6, 6)


# --- initial weights and pixels -----------------------------------------------------------------

# Standard deviation and bias of conv1 .. conv5, fc6 .. fc8; None: drawn with the weights.
INITIAL = {
    "paper": ([0.01] * 8, [0, 1, 0, 1, 1, 1, 1, 0]),
    "source2012": ([0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01], [0, 1, 0, 1, 1, 1, 1, 0]),
    "caffe": ([0.01] * 5 + [0.005, 0.005, 0.01], [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]),
    "caffenet": ([0.01] * 5 + [0.005, 0.005, 0.01], [0, 1, 0, 1, 1, 1, 1, 0]),
    "caffe_onnx": ([0.01] * 5 + [0.005, 0.005, 0.01], [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]),
    "one_tower": ([0.01] * 8, [0, 1, 0, 1, 1, 1, 1, 0]),
    "torchvision": (
        [(1 / 3 / n) ** 0.5 for n in (363, 1600, 1728, 3456, 2304, 9216, 4096, 4096)],
        None,
    ),
    "d2l": (
        [
            (2 / (fan_in + fan_out)) ** 0.5
            for fan_in, fan_out in (
                (121, 96 * 121), (2400, 6400), (2304, 3456), (3456, 3456), (3456, 2304),
                (6400, 4096), (4096, 4096), (4096, 10),
            )
        ],
        None,
    ),
}  # fmt: skip


def test_initial_weights(facts):
    stds, biases = INITIAL[facts.name]
    layers = list(facts.model.weight_layers.values())
    for layer, std in zip(layers, stds, strict=True):
        n = layer.weight.size
        assert layer.weight.data.std(dtype=np.float64) == pytest.approx(std, rel=5 / (2 * n) ** 0.5)
        assert abs(layer.weight.data.mean(dtype=np.float64)) < 5 * std / n**0.5
        normal = facts.name not in ("torchvision", "d2l")
        assert (np.abs(layer.weight.data).max() > 2.5 * std) == normal
    for layer, bias in zip(layers, biases or [None] * 8, strict=True):
        if bias is None:
            bound = 1 / math.prod(layer.weight.shape[1:]) ** 0.5
            assert 0.5 * bound < np.abs(layer.bias.data).max() <= bound
        else:
            assert (layer.bias.data == np.float32(bias)).all()


MEASURED = {"torchvision": "colour", "d2l": "colour"}
PIXELS = {
    "torchvision": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "d2l": ((0,), (255,)),
}


def test_pixels(facts):
    """All of 2012's descendants eat raw pixels; None is the mean of the training set."""
    pixels = facts.variant.pixels
    assert (pixels.mean, pixels.std) == PIXELS.get(facts.name, (None, (1, 1, 1)))
    assert len(pixels.std) == facts.variant.in_channels
    assert pixels.measured == MEASURED.get(facts.name, "image")


INITIAL_EXCESS = {
    "paper": (0.2, 1), "one_tower": (0.2, 1), "source2012": (0.4, 2), "caffenet": (0.2, 1),
}  # fmt: skip


def test_initial_loss_is_near_the_logarithm_of_the_classes(facts, rng):
    """Pixels scaled as the variant says, every class begins about equally likely.

    With biases of 1 in fc6 and fc7, logits begin with a standard deviation s near 1, which adds
    about s**2 / 2 to the loss; everywhere else they begin near 0.
    """
    blocks = rng.uniform(0, 255, (4, facts.image[0], 8, 8)).repeat(29, axis=2).repeat(29, axis=3)
    images = blocks[:, :, : facts.image[1], : facts.image[2]]
    mean = np.reshape(facts.variant.pixels.mean or (127.5,) * 3, (-1, 1, 1))
    std = np.reshape(facts.variant.pixels.std, (-1, 1, 1))
    facts.model.eval()
    with ta.no_grad():
        logits = facts.model(ta.Tensor(((images - mean) / std).astype(np.float32)))
    facts.model.train()
    assert logits.shape == (4, facts.classes)
    excess = F.cross_entropy(logits, np.arange(4)).item() - math.log(facts.classes)
    least, most = INITIAL_EXCESS.get(facts.name, (-0.1, 0.1))
    assert least < excess < most
    # The answers depend on the image: the input scale and the initial weights fit each other.
    assert logits.data.std(axis=0).mean() > 5e-4


# --- building -----------------------------------------------------------------------------------


def thin(name, num_classes=7, dropout=0.5, input_size=63):
    """A sixteenth of a variant, quick to run."""
    return models.alexnet(VARIANTS[name].thinner(16, input_size), num_classes, dropout)


def test_the_default_is_the_paper():
    assert models.alexnet(num_classes=2).variant is VARIANTS["paper"]


@pytest.mark.parametrize("name", VARIANTS)
def test_dropout_reaches_the_layers_that_have_it(name):
    size = max(63, smallest_input(VARIANTS[name]))
    drops = [m for m in thin(name, 3, 0.3, size).modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in drops] == [0.3, 0.3]
    model = thin(name, 3, 0.0, size)
    x = ta.randn(2, model.variant.in_channels, size, size)
    assert_close(model(x).data, model.eval()(x).data, 0.0)
    model = thin(name, 3, 0.9, size)
    assert (model(x).data != model(x).data).any()


@pytest.mark.parametrize("classes", [1, 2, 37])
def test_any_number_of_classes(classes):
    assert thin("paper", classes)(ta.randn(3, 3, 63, 63)).shape == (3, classes)


def test_every_parameter_learns():
    model = thin("source2012", input_size=67)
    F.cross_entropy(model(ta.randn(4, 3, 67, 67) * 60), np.arange(4)).backward()
    for name, p in model.named_parameters():
        assert np.abs(p.grad).max() > 0, name


def test_the_towers_do_not_see_each_other():
    """In layer 2, a change in the first tower's channels must not reach the second's outputs."""
    for name, mixes in (("paper", False), ("one_tower", True)):
        conv2 = thin(name).weight_layers["conv2"]
        x = ta.randn(1, 6, 5, 5)
        y = ta.tensor(x)
        y.data[:, :3] += 1
        changed = np.abs(conv2(x).data - conv2(y).data).max(axis=(0, 2, 3))
        assert (changed[:8] > 0).all()
        assert (changed[8:] > 0).all() == mixes
        assert (changed[8:] == 0).all() != mixes


def test_a_variant_of_ones_own():
    paper = VARIANTS["paper"]
    mine = replace(paper, name="mine", features=(*paper.features[:-1],), in_channels=2)
    mine = mine.thinner(16, 95)
    model = models.alexnet(mine, 5)
    assert model.variant is mine
    assert model(ta.randn(1, 2, 95, 95)).shape == (1, 5)
    assert "variant='mine/16'" in repr(model)
    with pytest.raises(TypeError, match=r"layers in models/spec\.py, got 'pool'"):
        models.alexnet(replace(mine, features=("pool",)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("alexnet",),
            ValueError,
            f"{', '.join(VARIANTS)}; got 'alexnet'",
        ),
        ((None,), ValueError, "must be one of paper.*None"),
        ((["paper"],), ValueError, "must be one of paper"),
        (("paper", 0), ValueError, "num_classes must be at least 1, got 0"),
        (("paper", 2.5), TypeError, "num_classes must be an integer"),
        (("paper", 10, 1.5), ValueError, "dropout must be between 0 and 1, got 1.5"),
        (("paper", 10, float("nan")), ValueError, "dropout.*nan"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        models.alexnet(*arguments)


# --- input sizes --------------------------------------------------------------------------------


def test_another_size_is_refused_with_the_expected_one(facts):
    """227 pixels would run through `paper`, with unintended 56x56 outputs of conv1."""
    channels, size, _ = facts.image
    wrong = [(1, channels, 62, 62), (1, channels + 1, size, size), (channels, size, size)]
    if facts.name != "torchvision":
        wrong += [(1, channels, 451 - size, 451 - size), (1, channels, size, size + 1)]
    for shape in wrong:
        with pytest.raises(ValueError, match="expects a Tensor of images of shape") as failure:
            facts.model(ta.zeros(*shape))
        shown = f"[N, {channels}, {size}, {size}], got shape {shape}"
        if facts.name == "torchvision":
            shown = shown.replace("224, 224]", ">=63, >=63]")
        assert f"'{facts.name}'" in str(failure.value)
        assert shown in str(failure.value)
    with pytest.raises(ValueError, match="got ndarray"):
        facts.model(np.zeros((1, *facts.image)))


@pytest.mark.parametrize("size", [(63, 63), (64, 97), (225, 63)])
def test_torchvisions_takes_any_size_from_63(size):
    assert thin("torchvision")(ta.randn(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("paper", 63),
        ("source2012", 64),
        ("caffe", 67),
        ("caffe_onnx", 51),
        ("torchvision", 63),
        ("d2l", 65),
    ],
)
def test_smallest_input_is_the_smallest(name, smallest):
    variant = VARIANTS[name]
    assert smallest_input(variant) == smallest
    x = ta.randn(1, variant.in_channels, smallest, smallest)
    assert thin(name, 3, input_size=smallest)(x).shape == (1, 3)
    x = ta.randn(1, variant.in_channels, smallest - 1, smallest - 1)
    with pytest.raises(ValueError, match=r"fit|at least 1"):
        thin(name, 3, input_size=smallest - 1)(x)


# --- recipes ------------------------------------------------------------------------------------

PAPERS_RECIPE = (0.01, 0.9, 5e-4, 128, 90, "paper", 1, 1)
RECIPES = {
    "paper": PAPERS_RECIPE,
    "source2012": (0.01, 0.9, 5e-4, 128, 90, "paper", 2, 0),
    "caffe": (0.01, 0.9, 5e-4, 256, 90, "paper", 2, 0),
    "caffenet": (0.01, 0.9, 5e-4, 256, 90, "paper", 2, 0),
    "caffe_onnx": (0.01, 0.9, 5e-4, 256, 90, "paper", 2, 0),
    "one_tower": PAPERS_RECIPE,
    "torchvision": (0.01, 0.9, 1e-4, 256, 90, "torch", 1, 1),
    "d2l": (0.01, 0, 0, 128, 10, "torch", 1, 1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_recipe(name):
    r = VARIANTS[name].recipe
    found = (r.lr, r.momentum, r.weight_decay, r.batch_size, r.epochs, r.update)
    assert (*found, r.bias_lr_factor, r.bias_decay_factor) == RECIPES[name]

    sgd = r.optimizer(nn.Linear(2, 3))
    lr, momentum, decay, _, _, update, bias_lr, bias_decay = RECIPES[name]
    weights, biases = sgd.param_groups
    for group in (weights, biases):
        shown = tuple(group[key] for key in ("lr", "momentum", "weight_decay", "update"))
        assert shown == (lr, momentum, decay, update)
        assert (group["nesterov"], group["dampening"]) == (False, 0)
    assert (weights["lr_factor"], weights["decay_factor"]) == (1, 1)
    assert (biases["lr_factor"], biases["decay_factor"]) == (bias_lr, bias_decay)


@pytest.mark.parametrize(
    ("name", "kind", "levels"),
    [
        ("paper", schedule.Plateau, {0: 1, 89: 1}),
        (
            "source2012",
            schedule.DiscreteExponential,
            {0: 1, 22: 1, 23: 250 ** (1 / 3), 45: 250 ** (2 / 3), 68: 250, 89: 250},
        ),
        ("caffe", schedule.Step, {0: 1, 19: 1, 20: 10, 40: 100, 60: 1000, 80: 10_000}),
        ("torchvision", schedule.Step, {0: 1, 29: 1, 30: 10, 60: 100, 89: 100}),
        ("d2l", schedule.Constant, {0: 1, 9: 1}),
    ],
)
def test_recipes_schedule_counts_in_epochs(name, kind, levels):
    """The rate at the first step of an epoch, as a fraction 1/level of the first rate."""
    recipe = VARIANTS[name].recipe
    sgd = recipe.optimizer(nn.Linear(2, 3))
    made = recipe.make_schedule(sgd, steps_per_epoch=10)
    assert type(made) is kind
    for epoch, level in levels.items():
        made.before_step(10 * epoch)
        assert [g["lr"] for g in sgd.param_groups] == pytest.approx([0.01 / level] * 2)


def test_the_papers_schedule_divides_by_ten_three_times():
    recipe = VARIANTS["paper"].recipe
    made = recipe.make_schedule(recipe.optimizer(nn.Linear(2, 3)), steps_per_epoch=10)
    factors = []
    for _ in range(60):
        made.after_epoch(0.5)
        factors.append(round(1 / made.factor(0)))
    assert Counter(factors) == {1: 6, 10: 6, 100: 6, 1000: 42}


def test_where_nothing_is_known_of_a_schedule_it_is_the_fixed_one_of_2012():
    recipe = Recipe(0.01, momentum=0.9, weight_decay=5e-4, batch_size=128, epochs=90)
    made = recipe.make_schedule(recipe.optimizer(nn.Linear(2, 3)), steps_per_epoch=10)
    factors = [made.factor(step) for step in (0, 224, 225, 450, 675, 899)]
    assert factors == pytest.approx([1, 1, 250 ** (-1 / 3), 250 ** (-2 / 3), 1 / 250, 1 / 250])


COLOUR_NOISES = {"paper": "eigenvalues", "one_tower": "eigenvalues", "source2012": "deviations"}


@pytest.mark.parametrize("name", VARIANTS)
def test_colour_noise_is_that_of_the_paper_s_and_the_source_s_recipes(name):
    assert VARIANTS[name].recipe.colour_noise == COLOUR_NOISES.get(name, "none")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_of_a_recipe_has_its_provenance(name):
    variant = VARIANTS[name]
    rows = recipe_table(variant)
    names = [setting for setting, _, _ in rows]
    assert len(set(names)) == len(names)
    assert all(value and source for _, value, source in rows), rows
    settings = {setting.removesuffix(" 1") for setting in names}
    assert {key for key in SOURCES[name] if " weights" not in key} <= {*settings, "within-map norm"}
    layers = [layer for layer in (*variant.features, *variant.classifier) if hasattr(layer, "init")]
    assert sum(setting.endswith(" weights") for setting in names) == len(layers) == 8


def test_the_table_of_a_recipe_has_its_numbers():
    table = {setting: value for setting, value, _ in recipe_table(VARIANTS["source2012"])}
    assert table["mean"] == "image of the training set"
    assert table["colour noise"] == f"deviations times normal numbers of deviation {STRENGTH:g}"
    assert table["conv2 weights"] == "normal, deviation 0.01; bias 1"
    assert table["conv3 weights"] == "normal, deviation 0.03; bias 0"
    assert table["fc8 weights"] == "normal, deviation 0.01; bias 0"
    norm = "k 2, size 5, alpha 0.0001 / size, beta 0.75, inside each tower"
    assert (table["response norm 1"], table["response norm 2"]) == (f"{norm}, before ReLU", norm)
    assert table["within-map norm"] == "k 1, size 5, alpha 0.001 / size squared, beta 0.75"
    assert (table["bias learning rate"], table["bias weight decay"]) == ("times 2", "times 0")
    assert table["schedule"] == "discrete_exponential, target_factor 250, num_steps 4"
    assert table["dropout"] == "0.5"
    paper = {setting: value for setting, value, _ in recipe_table(VARIANTS["paper"])}
    assert paper["response norm"] == "k 2, size 5, alpha 0.0005 / size, beta 0.75"


def test_a_rate_of_the_biases_that_differs_from_its_source_says_so():
    sources = {setting: source for setting, _, source in recipe_table(VARIANTS["source2012"])}
    for told in (sources["schedule"], VARIANTS["source2012"].provenance):
        assert "dexp[tgtFactor=10,numSteps=2]" in told
    assert "epsB to 0.002" in sources["schedule"]


def test_a_variant_of_ones_own_has_a_table_without_sources():
    rows = recipe_table(replace(VARIANTS["paper"], name="mine"))
    assert {source for _, _, source in rows} == {""}


def test_a_table_is_of_the_layers_that_there_are():
    features = (LRN(alpha=1e-4, k=2), ReLU(), LRN(alpha=1e-3, k=1))
    variant = replace(VARIANTS["paper"], features=features, classifier=(Linear(None),))
    table = {setting: value for setting, value, _ in recipe_table(variant)}
    assert table["response norm 1"] == "k 2, size 5, alpha 0.0001 / size, beta 0.75, before ReLU"
    assert table["response norm 2"] == "k 1, size 5, alpha 0.001 / size, beta 0.75"
    assert table["dropout"] == "none"


def test_an_unknown_schedule_is_refused():
    recipe = replace(VARIANTS["paper"].recipe, schedule="linear")
    with pytest.raises(ValueError, match=r"constant, plateau, step, .*'linear'"):
        recipe.make_schedule(recipe.optimizer(nn.Linear(2, 3)), 10)


def test_provenance_names_its_source(facts):
    sources = {
        "paper": ("NIPS 2012", "section 3.3", "section 5"),
        "source2012": ("layers-145.cfg", "layer.py"),
        "caffe": ("train_val.prototxt", "solver.prototxt"),
        "caffenet": ("bvlc_reference_caffenet", "readme.md"),
        "caffe_onnx": ("onnx/models", "pads 0, 0, 1, 1"),
        "one_tower": ("chainer",),
        "torchvision": ("torchvision/models/alexnet.py", "One weird trick"),
        "d2l": ("Dive into Deep Learning", "alexnet.md"),
    }
    for source in sources[facts.name]:
        assert source in facts.variant.provenance
    assert "\n" not in facts.variant.provenance


# --- torch --------------------------------------------------------------------------------------

TORCHVISION_KEYS = [
    f"{part}.{index}.{kind}"
    for part, indices in (("features", (0, 3, 6, 8, 10)), ("classifier", (1, 4, 6)))
    for index in indices
    for kind in ("weight", "bias")
]


def torchvisions_alexnet(tnn, width=1, num_classes=1000):
    """The network of torchvision.models.alexnet, 1/width as wide."""
    a, b, c, d, full = (n // width for n in (64, 192, 384, 256, 4096))
    net = tnn.Module()
    net.features = tnn.Sequential(
        tnn.Conv2d(3, a, 11, 4, 2), tnn.ReLU(), tnn.MaxPool2d(3, 2),
        tnn.Conv2d(a, b, 5, padding=2), tnn.ReLU(), tnn.MaxPool2d(3, 2),
        tnn.Conv2d(b, c, 3, padding=1), tnn.ReLU(),
        tnn.Conv2d(c, d, 3, padding=1), tnn.ReLU(),
        tnn.Conv2d(d, d, 3, padding=1), tnn.ReLU(), tnn.MaxPool2d(3, 2),
    )  # fmt: skip
    net.avgpool = tnn.AdaptiveAvgPool2d((6, 6))
    net.classifier = tnn.Sequential(
        tnn.Dropout(), tnn.Linear(d * 36, full), tnn.ReLU(),
        tnn.Dropout(), tnn.Linear(full, full), tnn.ReLU(), tnn.Linear(full, num_classes),
    )  # fmt: skip
    net.forward = lambda x: net.classifier(net.avgpool(net.features(x)).flatten(1))
    return net.eval()


def test_torchvisions_keys_and_shapes():
    model = models.alexnet("torchvision")
    state = model.state_dict()
    assert list(state) == TORCHVISION_KEYS
    assert state["features.3.weight"].shape == (192, 64, 5, 5)
    assert state["classifier.1.weight"].shape == (4096, 9216)


@pytest.mark.parametrize("size", [(63, 63), (100, 131)])
def test_torchvisions_weights_give_torchs_answers(size):
    torch = pytest.importorskip("torch")
    theirs, ours = torchvisions_alexnet(torch.nn, 16, 7), thin("torchvision").eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    x = ta.randn(2, 3, *size)
    assert_close(ours(x).data, theirs(torch.from_numpy(x.data)).detach().numpy())


def test_a_variants_weights_do_not_fit_another():
    paper, source = thin("paper", input_size=67), thin("source2012", input_size=67)
    with pytest.raises(ValueError, match=r"missing: .*features\.4.*unexpected: .*features\.5"):
        paper.load_state_dict(source.state_dict())
    with pytest.raises(
        ValueError, match=r"classifier\.6\.weight must have shape \(7, 256\), got \(9"
    ):
        paper.load_state_dict(thin("paper", 9, input_size=67).state_dict())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_shapes_of_parameters_are_known_before_a_network_is_built(name):
    variant = VARIANTS[name].thinner(16, VARIANTS[name].input_size)
    built = models.alexnet(variant, 7).state_dict()
    assert parameter_shapes(variant, 7) == {key: array.shape for key, array in built.items()}
