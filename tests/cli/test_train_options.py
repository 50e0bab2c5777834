"""Options of tinyalex train: defaults, help, limits."""

import time

import pytest
from commands import TRAIN, result, run, train_on

from tinyalex.cli.train_options import EMBEDDED, SMALL_DATA, WITH_WEIGHTS, read_arguments
from tinyalex.models import VARIANTS
from tinyalex.training import Checkpoints, StopRequest, load_checkpoint

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def test_defaults_are_for_small_data_and_a_variant_brings_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, settings, *_ = read_arguments([])
    assert {name: getattr(settings, name) for name in EMBEDDED} == EMBEDDED
    assert str(args.out) == "runs/patterns-torchvision"
    args, settings, *_ = read_arguments(["--data", "photos/"])
    assert {name: getattr(settings, name) for name in SMALL_DATA} == SMALL_DATA
    assert str(args.out) == "runs/photos-torchvision"
    args, settings, *_ = read_arguments(["--variant", "paper", "--data", "my photos", "--lr", "1"])
    recipe = VARIANTS["paper"].recipe
    assert (settings.epochs, settings.batch_size) == (recipe.epochs, recipe.batch_size)
    assert settings.lr == 1
    assert settings.data == str(tmp_path / "my photos")
    assert str(args.out) == "runs/my photos-paper"


def test_the_paper_s_variants_bring_the_mean_image_and_colour_noise(tmp_path):
    found = {}
    for variant in ("paper", "source2012", "caffe", "torchvision"):
        _, settings, *_ = read_arguments(["--variant", variant, "--out", str(tmp_path)])
        found[variant] = settings.mean, settings.colour_noise, settings.recipe.colour_noise
    assert found == {
        "paper": ("image", "eigenvalues", "eigenvalues"),
        "source2012": ("image", "deviations", "deviations"),
        "caffe": ("image", "none", "none"),
        "torchvision": ("colour", "none", "none"),
    }
    options = ("--variant", "paper", "--mean", "colour", "--colour-noise", "none")
    _, settings, *_ = read_arguments([*options, "--out", str(tmp_path)])
    assert (settings.mean, settings.colour_noise) == ("colour", "none")


def test_show_recipe_says_where_every_setting_is_from():
    code, said, complaints = run(TRAIN, "--show-recipe", "source2012")
    assert (code, complaints) == (0, "")
    lines = [line.split("  ") for line in said.splitlines()]
    rows = {words[0]: [word.strip() for word in words[1:] if word] for words in lines}
    assert rows["momentum"] == ["0.9", "layers/layer-params-145.cfg: momW, momB"]
    assert rows["conv4 weights"][0] == "normal, deviation 0.03; bias 1"
    assert "conv1 rounds up" in said


@pytest.mark.parametrize(("columns", "widest"), [(120, 99), (80, 80)])
def test_help_fits_the_terminal_and_two_screens(monkeypatch, columns, widest):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, said, _ = run(TRAIN, "--help")
    assert code == 0
    lines = said.splitlines()
    assert len(lines) <= 2 * 50 or columns < 100
    assert max(map(len, lines)) <= widest
    for expected in ("paper section 5", "(default: 0)", "exit codes: 0 done", "--resume"):
        assert expected in said


def test_help_has_the_defaults_of_the_recipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    said = run(TRAIN, "--help")[1]
    for name in ("epochs", "lr"):
        assert f"(default: {SMALL_DATA[name]}; {EMBEDDED[name]} without --data)" in said
    for name in ("batch_size", "weight_decay"):
        assert SMALL_DATA[name] == EMBEDDED[name]
    assert f"images per step (default: {SMALL_DATA['batch_size']})" in said
    assert f"towards zero (default: {SMALL_DATA['weight_decay']:.0e})".replace("e-0", "e-") in said
    assert f"{SMALL_DATA['schedule']} for small data sets (default)" in said
    words = " ".join(said.split())
    for name in ("mixup", "input_size"):
        default = f"(default: {SMALL_DATA[name]} for --data without --variant or --weights"
        assert default in words
        assert SMALL_DATA[name] != EMBEDDED[name]
    assert f"(default: {SMALL_DATA['label_smoothing']} or 0, as for --mixup)" in words
    own = "{epochs} epochs of up to {batch_size} images at lr {lr} by default"
    assert own.format(**WITH_WEIGHTS) in said


def test_steps_stop_a_run_that_can_go_on(photos, tmp_path, trained):
    code, said, _ = train_on(photos, tmp_path / "run", "--steps", 9)
    assert code == 0
    assert "stopped by the limit of steps and saved at step 9 of 21; resume: " in said
    assert load_checkpoint(Checkpoints(tmp_path / "run").last)["state"]["step"] == 9
    assert run(TRAIN, "--resume", tmp_path / "run", "--steps", 21)[0] == 0
    assert result(tmp_path / "run") == result(trained)


def test_a_time_limit_stops_a_run_after_a_step_at_least(photos, tmp_path):
    code, said, _ = train_on(photos, tmp_path / "run", "--time-limit", "1s", "--epochs", 9999)
    assert code == 0
    assert "stopped by the time limit and saved at step " in said
    assert load_checkpoint(Checkpoints(tmp_path / "run").last)["state"]["step"] >= 1


def test_a_time_limit_leaves_time_for_a_step_and_a_save():
    stop = StopRequest(deadline=time.monotonic() + 60)
    stop.reserve = 50
    assert not stop
    stop.reserve = 61
    assert stop
    stop.reserve = 0
    assert stop  # for good
    assert stop.error().exit_code == 0
