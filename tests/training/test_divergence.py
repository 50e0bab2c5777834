"""Non-finite numbers: found before they reach a weight, traced to layers."""

import json
import math
import shutil

import numpy as np
import pytest
from commands import Watcher, tiny_settings, trainer

import tinyalex as ta
from tinyalex import random
from tinyalex.autograd import Function
from tinyalex.backends.shards import current
from tinyalex.data import Batch
from tinyalex.models import VARIANTS
from tinyalex.training import Checkpoints, DivergedError, divergence, load_checkpoint, new_run
from tinyalex.training.divergence import find_cause
from tinyalex.training.ranks import Ranks

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


class Spoil(Function):
    """y = x, whose gradient is not a number in one place."""

    def forward(self, x):
        return x

    def backward(self, grad):
        grad = grad.copy()
        grad.flat[3] = np.nan
        return grad


def in_the_weight(layer):
    layer.weight.data.flat[3] = np.nan


def in_the_gradient(layer):
    layer.register_forward_hook(lambda module, args, output: Spoil.apply(output))


@pytest.fixture
def eight_layers(monkeypatch):
    """Offer the paper's network with a sixteenth of its kernels, for small images."""
    monkeypatch.setitem(VARIANTS, "eight", VARIANTS["paper"].thinner(16, 67))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("plant", "direction", "what"),
    [
        (in_the_weight, "forward", "the loss is nan"),
        (in_the_gradient, "backward", r"the gradient of \S+ has values that are not finite"),
    ],
    ids=["forward", "backward"],
)
@pytest.mark.usefixtures("eight_layers")
def test_the_layer_that_a_nan_is_planted_in_is_named(
    photos, tmp_path, layer, plant, direction, what
):
    run = new_run(tiny_settings(photos, variant="eight", input_size=67))
    watcher = Watcher(
        lambda *now: now == ("epoch 1/3", 2) and plant(run.classifier.model.weight_layers[layer])
    )
    stopping = trainer(run, tmp_path, watcher, seconds=0, share=math.inf)
    expected = rf"^{what} in step 3 \(epoch 1\): {direction} in {layer}, "
    with pytest.raises(DivergedError, match=expected):
        stopping.train()
    last = load_checkpoint(stopping.checkpoints.last)
    assert last["state"]["step"] == 2
    assert all(np.isfinite(w).all() for w in last["classifier"]["weights"].values())
    assert np.isnan(run.classifier.model.state_dict()["features.0.weight"]).sum() == (
        plant is in_the_weight and layer == "conv1"
    )
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert (report["step"], report["direction"], report["layer"]) == (3, direction, layer)


@pytest.fixture(params=[{}, {"mixup": 0.3, "label_smoothing": 0.1}], ids=["labels", "targets"])
def diverged(request, photos, tmp_path):
    """Return a run that stopped at its fifth step for a NaN in conv1, the error, and its folder."""
    run = new_run(tiny_settings(photos, **request.param))
    layer = run.classifier.model.weight_layers["conv1"]
    watcher = Watcher(lambda *now: now == ("epoch 1/3", 4) and in_the_weight(layer))
    stopping = trainer(run, tmp_path, watcher, seconds=0, share=math.inf)
    with pytest.raises(DivergedError) as caught:
        stopping.train()
    return run, str(caught.value), tmp_path


def test_the_images_of_the_batch_are_named(diverged):
    run, said, out = diverged
    batch = next(run.train_data.epoch(0, start_batch=4))
    paths = [run.train_data.dataset.paths[i] for i in batch.indices]
    assert f"the images of the batch are {', '.join(paths[:3])} and 5 more; " in said
    assert said.endswith(f"{out / 'diverged.json'} has the whole report")
    report = json.loads((out / "diverged.json").read_text())
    assert report["images"] == paths
    assert report["layers"][0] == {
        "layer": "conv1",
        "largest weight": "nan",
        "largest output": "nan",
        "largest gradient": "nan",
    }


def test_the_step_can_be_repeated_from_what_is_left(diverged):
    run, _, out = diverged
    left = ta.load(out / "diverged.safetensors")
    again = new_run(run.settings)
    for name, parameter in again.classifier.model.named_parameters():
        parameter.data = left["weights"][name]
    random.set_state(left["random"])
    batch = Batch(left["images"], left["labels"], np.arange(8), left.get("targets"))
    expected = next(run.batches(0, start_batch=4))
    np.testing.assert_array_equal(batch.images, expected.images)
    np.testing.assert_array_equal(batch.targets, expected.targets)
    cause, _ = find_cause(again.classifier.model.train(left["training"]), batch)
    assert str(cause) == "forward in conv1, whose weight has values that are not finite"


def test_an_image_that_is_alone_to_blame_is_named(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    transform, worst = run.train_data.transform, run.train_data.dataset.load(5)

    def blinding(image, rng, out):
        transform(image, rng, out)
        if np.array_equal(image, worst):
            out[3, 4] = np.inf

    blinding.shape, blinding.dtype = transform.shape, transform.dtype
    run.train_data.transform = blinding
    with pytest.raises(DivergedError) as caught:
        trainer(run, tmp_path).train()
    assert "forward in the images, one of which has pixels that are not finite" in str(caught.value)
    assert f"because of {run.train_data.dataset.paths[5]}; " in str(caught.value)


def test_a_disk_that_is_full_does_not_hide_the_cause(photos, tmp_path, disk):
    run = new_run(tiny_settings(photos))
    in_the_weight(run.classifier.model.weight_layers["conv1"])
    disk(100)
    with pytest.raises(DivergedError, match=r"in conv1.*no report could be written .File too lar"):
        trainer(run, tmp_path).train()
    disk(None)
    assert not list(tmp_path.glob("*diverged*"))


def test_a_disk_that_is_full_when_the_best_network_is_to_be_kept_hides_nothing(
    photos, tmp_path, disk
):
    run = new_run(tiny_settings(photos))

    def spoil(title, done):
        if title == "epoch 2/3":
            in_the_weight(run.classifier.model.weight_layers["conv1"])
            disk(3000)

    stopping = trainer(run, tmp_path, Watcher(spoil), share=1e-9)
    stopping.checkpoints.save(run)  # after which none is due for a long time
    with pytest.raises(
        DivergedError, match=r"in step 9 \(epoch 2\): forward in conv1, whose weight"
    ):
        stopping.train()
    expected = "warning: no best network at step 8 (File too large); the one from before stays"
    assert stopping.progress.said[-1] == expected


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_a_weight_that_overflows_in_the_update_is_traced(photos, tmp_path):
    run = new_run(tiny_settings(photos, lr=3e38, weight_decay=1e3))
    expected = (
        r"^features\.0\.weight has .* in step 1 \(epoch 1\): forward in conv1, whose weight has"
    )
    with pytest.raises(DivergedError, match=expected):
        trainer(run, tmp_path, seconds=0, share=math.inf).train()
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert (report["step"], report["layer"], len(report["images"])) == (1, "conv1", 8)
    assert not Checkpoints(tmp_path).last.exists()


def everywhere(layer):
    layer.weight.data[...] = np.float32("nan")


@pytest.mark.parametrize(
    ("place", "settings", "sharded"),
    [
        ("epoch 1/3", {}, True),
        ("validating", {}, False),
        (None, {"lr": 3e38, "weight_decay": 1e3}, True),
    ],
    ids=["in a step", "in validation", "at a checkpoint"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_what_diverged_is_repeated_as_it_was_computed(
    photos, tmp_path, monkeypatch, place, settings, sharded
):
    """In shards, whose sums are rounded otherwise, or without."""
    run, parts = new_run(tiny_settings(photos, **settings), ranks=Ranks(shards=2)), []

    def noting(*arguments):
        parts.append(current())
        return find_cause(*arguments)

    monkeypatch.setattr(divergence, "find_cause", noting)
    layer = run.classifier.model.weight_layers["fc2"]
    watcher = Watcher(lambda title, done: title == place and everywhere(layer))
    with pytest.raises(DivergedError):
        trainer(run, tmp_path, watcher, seconds=0, share=math.inf).train()
    assert parts == [run.ranks.part(8) if sharded else None]


def test_validation_is_traced_as_well(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    run = new_run(tiny_settings(tmp_path / "photos"))
    layer = run.classifier.model.weight_layers["fc2"]
    watcher = Watcher(lambda *now: now == ("epoch 1/3", 7) and in_the_weight(layer))
    expected = r"validation loss is nan in step 7 \(epoch 1\): forward in fc2, whose weight"
    with pytest.raises(DivergedError, match=expected):
        trainer(run, tmp_path, watcher, share=1e-9).train()
