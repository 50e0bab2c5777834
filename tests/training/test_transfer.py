"""Transfer learning: new heads, frozen layers, kept features, exact resumption."""

import shutil
from dataclasses import replace

import images
import numpy as np
import pytest
from commands import (
    TRAIN,
    Watcher,
    assert_refused,
    result,
    resumed,
    run,
    tiny_settings,
    train_on,
    trainer,
)

import tinyalex as ta
from tinyalex import random
from tinyalex.data import Batch
from tinyalex.models import VARIANTS, alexnet
from tinyalex.training import (
    Classifier,
    DivergedError,
    StoppedError,
    StopRequest,
    freeze,
    layer_rates,
    load_checkpoint,
    load_classifier,
    new_run,
    read_metrics,
    replace_head,
    set_training,
    train_step,
)
from tinyalex.training.divergence import find_cause
from tinyalex.training.evaluation import logits_and_loss
from tinyalex.training.transfer import Part, _boundary, digest, frozen_layers, keep_features

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def others(photos, tmp_path_factory):
    """Return a folder with two classes that the trained network does not know."""
    root = tmp_path_factory.mktemp("others")
    for old, new in {"ash": "oak", "birch": "pine"}.items():
        shutil.copytree(photos / old, root / new)
    return root


def begin(settings, out, progress=None, **options):
    """Return the Trainer of a new run that writes into a new folder."""
    out.mkdir()
    return trainer(new_run(settings), out, progress, **options)


def settings_with(source, data, **changes):
    """Return the settings of a run that begins with the weights of a run."""
    values = {"epochs": 4, "freeze": "conv1", "augment": "none", "head_lr_factor": 10.0}
    return tiny_settings(data, **{**values, "weights": str(source), **changes})


def thin(name="torchvision", size=67, dropout=0.0):
    """Return a thin network."""
    return alexnet(VARIANTS[name].thinner(16, size), 5, dropout)


def batch_for(model, count=4, seed=0):
    """Return a batch of noise."""
    rng = np.random.default_rng(seed)
    shape = (count, 3, *2 * (model.variant.input_size,))
    scale = 50 if model.variant.pixels.std == (1.0, 1.0, 1.0) else 1
    images = (scale * rng.standard_normal(shape)).astype(np.float32)
    return Batch(images, rng.integers(0, model.num_classes, count), np.arange(count))


# --- the library ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "torchvision", "d2l"])
def test_a_new_head_begins_as_the_variant_says_and_the_rest_stays(name):
    variant = VARIANTS[name]
    model = alexnet(variant.thinner(4, 224), 7)
    before, state = model.state_dict(), random.get_state()
    assert replace_head(model, 50, seed=3) is model
    after, (*_, head) = model.state_dict(), model.weight_layers.values()
    assert random.get_state() == state
    assert (model.num_classes, head.weight.shape) == (50, (50, 1024))
    for key, array in list(after.items())[:-2]:
        np.testing.assert_array_equal(array, before[key])
    *_, fresh = alexnet(variant.thinner(4, 224), 50).weight_layers.values()
    for mine, its in zip(head.parameters(), fresh.parameters(), strict=True):
        assert np.isclose(mine.data.std(), its.data.std(), rtol=0.2)
    again = alexnet(variant.thinner(4, 224), 7)
    *_, same = replace_head(again, 50, seed=3).weight_layers.values()
    np.testing.assert_array_equal(head.weight.data, same.weight.data)
    *_, other = replace_head(again, 50, seed=4).weight_layers.values()
    assert (other.weight.data != head.weight.data).any()


@pytest.mark.parametrize("wrong", [0, 2.5, "ten"])
def test_a_head_for_no_number_of_classes_is_refused(wrong):
    model = thin()
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match="num_classes"):
        replace_head(model, wrong)
    assert model.state_dict().keys() == before.keys()
    assert model.num_classes == 5


@pytest.mark.parametrize("wrong", ["fc8", "conv9", "", None, 5])
def test_layers_that_cannot_be_frozen(wrong):
    with pytest.raises(ValueError, match=r"expects a layer from conv1 to fc7, .* got"):
        freeze(thin(), wrong)


def test_freezing_is_from_the_first_layer_to_the_named_one():
    model = freeze(thin(), "fc6")
    assert frozen_layers(model) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6"]
    assert frozen_layers(freeze(model, "conv1")) == ["conv1"]
    assert frozen_layers(model.requires_grad_()) == []


@pytest.mark.parametrize(("up_to", "off"), [("conv5", []), ("fc6", [True]), ("fc7", [True] * 2)])
def test_dropout_below_the_boundary_is_off(up_to, off):
    model = set_training(freeze(thin(), up_to))
    found = [not layer.training for layer in model.modules() if isinstance(layer, ta.nn.Dropout)]
    assert found == [*off, *[False] * (2 - len(off))]
    assert all(layer.training for layer in set_training(model.requires_grad_()).modules())


@pytest.mark.parametrize("name", ["torchvision", "paper", "source2012"])
@pytest.mark.parametrize("up_to", ["conv1", "conv4", "conv5", "fc7"])
def test_gradients_are_those_of_the_whole_backward(name, up_to):
    model = thin(name, 67 if name != "source2012" else 224)
    batch, gradients = batch_for(model), []
    for _ in range(2):
        model.zero_grad()
        _, loss = logits_and_loss(set_training(model), batch)
        loss.backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
        freeze(model, up_to)
    whole, part = gradients
    learning = [key for key, p in model.named_parameters() if p.requires_grad]
    assert 2 <= len(learning) < len(whole)
    for key, gradient in part.items():
        if key in learning:
            np.testing.assert_array_equal(gradient, whole[key])
        else:
            assert gradient is None


def test_rates_of_layers():
    model = thin()
    groups = layer_rates(model, 10, 0.5, bias_lr_factor=2, bias_decay_factor=0)
    factors = [group["lr_factor"] for group in groups]
    assert factors[:6] == [10, 20, 0.5, 1, 0.25, 0.5]
    assert [group.get("decay_factor", 1) for group in groups[:4]] == [1, 0, 1, 0]
    names = {id(p): name for name, p in model.named_parameters()}
    order = [names[id(group["params"][0])] for group in groups]
    assert order == [f"{n.rpartition('.')[0]}.{part}" for n in order[::2] for part in PARTS]
    assert order[:2] == ["classifier.6.weight", "classifier.6.bias"]
    assert len(order) == 16
    assert len(layer_rates(freeze(model, "conv5"))) == 6
    ta.optim.SGD(groups, lr=0.1)


PARTS = ("weight", "bias")


def decay_all(model, optimizer):
    """Let frozen layers decay, as in an optimiser that asks for no gradient."""
    for parameter in model.parameters():
        parameter.data *= 1 - 1e-4


def keep_momentum(model, optimizer):
    """Move a frozen layer by what it had as velocity."""
    model.weight_layers["conv1"].bias.data[...] += 1e-6


@pytest.mark.parametrize("mutation", [None, decay_all, keep_momentum])
def test_frozen_layers_are_the_same_in_every_bit_after_100_steps(mutation):
    model = thin(dropout=0.5)
    # They have learned before, and so have gradients and velocities to lose.
    whole = ta.optim.SGD(layer_rates(model), lr=0.01, momentum=0.9, weight_decay=0.1)
    train_step(model, whole, batch_for(model))
    freeze(model)
    before = digest(model, frozen_layers(model))
    learning = digest(model, ["fc6", "fc7", "fc8"])
    optimizer = ta.optim.SGD(layer_rates(model), lr=0.01, momentum=0.9, weight_decay=0.1)
    set_training(model)
    for step in range(100):
        train_step(model, optimizer, batch_for(model, seed=step % 7))
        if mutation:
            mutation(model, optimizer)
    assert (digest(model, frozen_layers(model)) == before) == (mutation is None)
    assert digest(model, ["fc6", "fc7", "fc8"]) != learning


# --- runs -----------------------------------------------------------------------------------------


def test_the_head_is_new_for_other_classes_and_kept_for_the_same(trained, photos, others):
    before = load_classifier(trained)
    own, new = (new_run(settings_with(trained, data)) for data in (photos, others))
    assert (own.origin["head"], new.origin["head"]) == ("kept", "new")
    assert digest(own.classifier.model) == digest(before.model) == own.origin["digest"]
    assert digest(new.classifier.model, ["conv1", "fc2"]) == digest(before.model, ["conv1", "fc2"])
    assert new.classifier.classes == ["oak", "pine"]
    factors = [run.optimizer.param_groups[0]["lr_factor"] for run in (own, new)]
    assert factors == [1, 10]  # what is kept needs no haste
    again = new_run(settings_with(trained, others)).classifier.model
    assert digest(again) == digest(new.classifier.model)
    other = new_run(settings_with(trained, others, seed=1)).classifier.model
    assert digest(other, ["fc3"]) != digest(again, ["fc3"])


@pytest.mark.parametrize("mean", [(1.0, 2.0, 3.0), np.full((40, 40, 3), 7, np.float32)])
def test_preprocessing_is_taken_from_the_weights(trained, others, tmp_path, mean):
    state = load_classifier(trained).get_state()
    own = {"mean": mean, "std": [3.0, 4.0, 5.0], "shorter_side": 40, "resize": "warp"}
    start = Classifier.from_state(state | own)
    kind = "image" if isinstance(mean, np.ndarray) else "colour"
    settings = settings_with("elsewhere", others, mean=kind, freeze=None)
    training = trainer(new_run(settings, start=start), tmp_path)
    training.train(StopRequest())
    run = resumed(tmp_path)
    for one in (training.run, run):
        classifier = one.classifier
        assert classifier.std == (3, 4, 5)
        assert classifier.resizing == (40, "warp")
        np.testing.assert_array_equal(classifier.mean, mean)
        assert one.train_data.dataset.load(0).shape == (40, 40, 3)
        np.testing.assert_array_equal(one.train_data.transform.mean, mean)
    wrong = replace(settings, mean="image" if kind == "colour" else "colour")
    with pytest.raises(ValueError, match=f"expects images minus a mean {kind}: leave --mean out"):
        new_run(wrong, start=Classifier.from_state(state | own))


FEATURES = {
    "kept": {"augment": "none"},
    "not kept": {"augment": "none", "image_cache": 0},
    "other crops each time": {"augment": "paper"},
    "blended": {"augment": "none", "mixup": 0.2, "label_smoothing": 0.1, "average": 0.3},
}
STEPS = 4
"""Of an epoch of the 38 images to learn from."""


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_resuming_is_exact_in_every_phase(trained, others, tmp_path, features, schedule):
    shutil.copytree(trained, tmp_path / "weights")
    settings = settings_with(
        tmp_path / "weights",
        others,
        unfreeze_after=2,
        layer_lr_decay=0.5,
        schedule=schedule,
        **FEATURES[features],
    )
    whole = begin(settings, tmp_path / "whole")
    whole.train()
    assert len(whole.run.train_data) == STEPS
    for end in (2, STEPS, 2 * STEPS - 1, 2 * STEPS, 2 * STEPS + 1, 3 * STEPS):
        out = tmp_path / f"stopped at {end}"
        with pytest.raises(StoppedError):
            begin(settings, out).train(StopRequest(steps=end))
        shutil.move(tmp_path / "weights", tmp_path / "gone")  # they are not needed again
        trainer(resumed(out), out).train()
        shutil.move(tmp_path / "gone", tmp_path / "weights")
        assert result(out) == result(tmp_path / "whole"), end


@pytest.mark.parametrize("which", [1, 2])
def test_a_stop_while_features_are_computed_takes_no_step_without_them(
    trained, others, tmp_path, which
):
    settings = settings_with(trained, others)
    begin(settings, tmp_path / "whole").train()
    stop, computed = StopRequest(), []

    def interrupt(title, done):
        if "features" in title and done == 1:
            computed.append(title)
            if len(computed) == which:
                stop.reason = "a signal"

    training = begin(settings, tmp_path / "cut", Watcher(interrupt))
    with pytest.raises(StoppedError):
        training.train(stop)
    assert training.run.state.step == 0
    trainer(resumed(tmp_path / "cut"), tmp_path / "cut").train()
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_the_frozen_layer_whose_output_is_not_finite_is_named(trained, others, tmp_path):
    training = begin(settings_with(trained, others), tmp_path / "run")
    training.run.classifier.model.weight_layers["conv1"].weight.data[...] = 3e38
    with pytest.raises(DivergedError, match=r"forward in conv1, whose output"):
        training.train()


def test_a_step_on_kept_features_can_be_repeated(trained, others, tmp_path):
    training = begin(settings_with(trained, others), tmp_path / "run")
    training.run.classifier.model.weight_layers["fc2"].weight.data[...] = 3e38
    with pytest.raises(DivergedError, match=r"forward in fc2, whose output"):
        training.train()
    left = ta.load(tmp_path / "run/diverged.safetensors")
    again = load_classifier(trained).model
    replace_head(again, 2).load_state_dict(left["weights"])
    assert left["features_of"] == frozen_layers(freeze(again, "conv1")) == ["conv1"]
    batch = Batch(left["images"], left["labels"], np.arange(8), left["targets"])
    cause, _ = find_cause(set_training(Part(again, _boundary(again))), batch)
    assert str(cause).startswith("forward in fc2, whose output")


class KilledError(BaseException):
    """The end of a process, of which nothing hears."""


def test_a_killed_run_is_exact_as_well(trained, others, tmp_path):
    settings = settings_with(trained, others, unfreeze_after=2)
    begin(settings, tmp_path / "whole").train()

    def kill(title, done):
        if (title, done) in {("epoch 2/4", 4), ("epoch 3/4", 3)} - killed:
            killed.add((title, done))
            raise KilledError

    killed = set()
    training = begin(settings, tmp_path / "cut", Watcher(kill), seconds=0, share=1e9)
    for _ in range(2):
        with pytest.raises(KilledError):
            training.train()
        again = resumed(tmp_path / "cut")
        training = trainer(again, tmp_path / "cut", Watcher(kill), seconds=0, share=1e9)
    training.train()
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_what_a_run_froze_stays_until_it_learns(trained, others, tmp_path):
    before = digest(load_classifier(trained).model, ["conv1"])
    watcher = Watcher()
    settings = settings_with(trained, others, unfreeze_after=2, weight_decay=0.1)
    training = trainer(new_run(settings), tmp_path, watcher)
    with pytest.raises(StoppedError):
        training.train(StopRequest(steps=2 * STEPS - 1))
    run = training.run
    assert digest(run.classifier.model, ["conv1"]) == before == run.origin["frozen"]
    named = [name for name, _ in run.optimised()]
    assert named == [f"classifier.{i}.{part}" for i in (3, 0) for part in PARTS]
    assert (
        training.as_begun(["conv1"])
        == f"the weights of conv1 are as at the start: SHA-256 {before}"
    )
    training = trainer(resumed(tmp_path), tmp_path, watcher)
    training.train()
    named = [name for name, _ in training.run.optimised()]
    assert named[-2:] == ["features.0.weight", "features.0.bias"]
    rates = [group["lr"] for group in training.run.optimizer.param_groups]
    assert len(rates) == 6
    assert len(set(rates)) == 1
    assert digest(training.run.classifier.model, ["conv1"]) != before
    (said,) = (line for line in watcher.said if "SHA-256" in line)
    assert " ".join(said.split()) == (
        f"the weights of conv1 are as at the start: SHA-256 {before}; from now on they learn"
    )


@pytest.mark.parametrize("up_to", ["conv1", "fc2"])
def test_kept_features_are_computed_once_and_change_nothing_but_rounding(
    trained, others, tmp_path, up_to
):
    rows, images = {}, {}
    for name in FEATURES:
        settings = settings_with(trained, others, freeze=up_to, **FEATURES[name], epochs=2)
        training = begin(settings, tmp_path / name)
        loads = count_loads(training.run.train_data), count_loads(training.run.val_data)
        training.train()
        assert (training.learning.data is training.run.train_data) == (name != "kept")
        rows[name] = read_metrics(tmp_path / name / "metrics.jsonl")
        images[name] = tuple(map(len, loads))
    assert images["kept"] == (38, 10)
    assert images["not kept"] == (64, 20)  # without those left over
    for key in ("loss", "top1", "val_loss", "val_top1"):
        found = [[row[key] for row in rows[name] if key in row] for name in ("kept", "not kept")]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    kept = resumed(tmp_path / "kept", image_cache=0, epochs=3)
    assert keep_features(kept.classifier.model, kept.train_data, 0) is None


def count_loads(loader):
    """Return a list that grows by each image that is read for a loader."""
    seen, load = [], loader.dataset.load
    loader.dataset.load = lambda index: seen.append(index) or load(index)
    return seen


def test_kept_features_leave_unreadable_images_out(trained, others, tmp_path):
    root = shutil.copytree(others, tmp_path / "others")
    (root / "oak" / "02.png").write_bytes(b"no image")
    rows = []
    for name in ("kept", "not kept"):
        watcher = Watcher()
        settings = settings_with(trained, root, **FEATURES[name], epochs=2)
        begin(settings, tmp_path / name, watcher).train()
        rows.append([row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")])
        assert ["02.png" in line for line in watcher.said].count(True) == 1
    np.testing.assert_allclose(*rows, rtol=1e-5)


def test_a_few_images_are_less_than_a_batch(trained, others, tmp_path):
    run = new_run(settings_with(trained, others, batch_size=64))
    assert (run.train_data.batch_size, len(run.train_data)) == (38, 1)
    trainer(run, tmp_path).train()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"freeze": "fc3"},
            "freeze must be a layer from conv1 to fc2, for fc3 at least must learn",
        ),
        ({"freeze": "conv5"}, "freeze must be a layer from conv1 to fc2"),
        ({"freeze": 3}, "freeze must be None or text"),
        ({"freeze": None, "unfreeze_after": 1}, "unfreeze_after must be given with --freeze only"),
        ({"unfreeze_after": 4}, "unfreeze_after must be below the 4 epochs, got 4"),
        ({"unfreeze_after": 0}, "unfreeze_after must be None or a whole number >= 1, got 0"),
        ({"head_lr_factor": -1.0}, "head_lr_factor must be a number from 0 to 1e6"),
        ({"layer_lr_decay": 0.0}, "layer_lr_decay must be above 0, at most 1"),
        ({"layer_lr_decay": 1.5}, "layer_lr_decay must be above 0, at most 1"),
        (
            {"freeze": "fc2", "layer_lr_decay": 0.5},
            "layer_lr_decay must be 1 where fc3 alone learns",
        ),
        (
            {"freeze": "fc2", "head_lr_factor": 0.0},
            "head_lr_factor must be above 0 where fc3 alone",
        ),
        ({"initial_weights": "data"}, "initial_weights must be variant beside weights"),
        ({"weights": None}, "freeze must be given with --weights only, got 'conv1'"),
        ({"weights": None, "freeze": None}, "head_lr_factor must be given with --weights only"),
    ],
)
def test_settings_that_do_not_go_together(photos, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        settings_with("weights", photos, **change)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_from_end_to_end(trained, others, tmp_path):
    out, options = tmp_path / "run", ["--augment", "none", "--batch-size", 8, "--epochs", 3]
    freezing = ["--freeze", "conv1", "--unfreeze-after", 2]
    code, said, _ = run(
        TRAIN, "--weights", trained, "--data", others, "--out", out, *options, *freezing
    )
    text = " ".join(said.split())
    before = load_classifier(trained)
    frozen = f"SHA-256 {digest(before.model, ['conv1'])}"
    assert code == 0
    assert f"weights {trained}, SHA-256 {digest(before.model)}; fc3 is new, for 2" in text
    mean = "/".join(f"{number:.4g}" for number in before.mean)
    assert f"the mean {mean}, std 60/60/60 and the size, shorter_side 32 pixels; conv1" in text
    assert text.count(frozen) == 2
    assert f"conv1 frozen until epoch 2, {frozen}" in text
    assert f"{frozen}; from now on they learn" in text
    summary = run(TRAIN, "--weights", trained, "--data", others, "--summary")[1]
    assert f"the mean {mean}, std 60/60/60" in " ".join(summary.split())
    content = load_checkpoint(out / "last.safetensors")
    assert content["origin"]["source"] == str(trained)
    assert (content["settings"]["lr"], content["settings"]["head_lr_factor"]) == (0.0003, 10)
    assert run("evaluate", out)[0] == 0
    code, said, _ = run(TRAIN, "--resume", out, "--epochs", 4)
    assert code == 0
    assert frozen not in said
    code, _, complaints = run(TRAIN, "--resume", out, "--freeze", "fc2")
    assert_refused(code, complaints, "freeze conv1 then, fc2 now")
    code, said, _ = run(
        TRAIN, "--weights", out, "--data", others, "--out", tmp_path / "b", *options, *freezing[:2]
    )
    text = " ".join(said.split())
    assert code == 0
    assert "fc3 is kept, for the classes are the same" in text
    assert "the weights of conv1 are as at the start: SHA-256" in text


@pytest.mark.parametrize(
    ("ash", "elm", "options", "expected"),
    [
        (16, 15, [], "2 steps of 15 images"),
        (16, 17, [], "3 steps of 11 images"),
        (16, 16, [], "2 steps of 16 images"),
        (3, 2, [], "1 step of 5 images"),
        (16, 15, ["--batch-size", "16"], "1 step of 16 images"),
    ],
)
def test_the_default_batch_leaves_few_images_out(trained, tmp_path, ash, elm, options, expected):
    images.folder(tmp_path / "data/train", ash=ash, elm=elm)
    images.folder(tmp_path / "data/val", ash=1, elm=1)
    data = ("--data", tmp_path / "data", "--out", tmp_path / "run")
    said = run(TRAIN, "--weights", trained, *data, "--steps", 1, *options)[1]
    assert f"60 epochs of {expected}, " in said
    content = load_checkpoint(tmp_path / "run/last.safetensors")
    assert expected.endswith(f" of {content['settings']['batch_size']} images")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--freeze", "conv9"], "error: --freeze must be a layer from conv1 to fc2"),
        (["--freeze", "fc3"], "for fc3 at least must learn"),
        (["--unfreeze-after", "2"], "given with --freeze only"),
        (["--variant", "paper"], "has weights of the variant tiny: leave --variant paper out"),
        (["--mean", "image"], "expects images minus a mean colour: leave --mean out"),
        (["--input-size", "64"], "error: --input-size must be 28 for the variant tiny"),
        (["--resume", "RUN"], "--resume continues with the run's own weights: leave --weights out"),
        (
            ["--weights", "nowhere"],
            "there is no nowhere: give a file of weights",
        ),
        (["--weights", __file__], "is no weight file"),
    ],
)
def test_options_that_are_refused(trained, others, tmp_path, options, complaint):
    options = [str(trained) if option == "RUN" else option for option in options]
    place = () if "--resume" in options else ("--out", tmp_path / "run")
    code, _, complaints = run(TRAIN, "--weights", trained, "--data", others, *place, *options)
    assert_refused(code, complaints, complaint)


def test_a_factor_for_a_head_that_stays_is_refused(trained, photos, tmp_path):
    place = ("--data", photos, "--out", tmp_path / "run", "--steps", 1)
    code, _, complaints = run(TRAIN, "--weights", trained, *place, "--head-lr-factor", 5)
    assert_refused(code, complaints, "its own is kept: leave --head-lr-factor out")
    assert not (tmp_path / "run").exists()
    code, said, _ = run(TRAIN, "--weights", trained, *place)
    assert (code, "fc3 is kept" in said) == (0, True)
    assert run(TRAIN, "--resume", tmp_path / "run", "--head-lr-factor", 10, "--steps", 2)[0] == 0


@pytest.mark.parametrize("option", [["--freeze", "conv1"], ["--head-lr-factor", "2"]])
def test_options_that_need_weights(others, tmp_path, option):
    code, _, complaints = train_on(others, tmp_path / "run", *option)
    assert_refused(code, complaints, f"error: {option[0]} must be given with --weights only")
