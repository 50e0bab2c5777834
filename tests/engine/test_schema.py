"""Files that are whole but wrong inside: one sentence, little memory."""

import json
import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from commands import TRAIN, run

from tinyalex.cli.train_options import read_arguments
from tinyalex.files import save
from tinyalex.schema import EXACT, Each, Maybe, Rule, array_of, check, list_of, number, whole
from tinyalex.training import (
    Checkpoints,
    classifier_in,
    load_checkpoint,
    new_run,
    settings_in,
)
from tinyalex.training.build import resumed_run
from tinyalex.training.checkpoint import KIND, state_in
from tinyalex.training.run import SCHEMA as STATE

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

SCHEMA = {
    "n": whole(1, 5),
    "x": Maybe(number(0, 1)),
    "each": Each(number()),
    "list": [list_of(whole(), 1, 2)],
    "array": array_of("float32", None, 3) | Rule("zero", lambda value: type(value) is int),
}
GOOD = {
    "n": 1,
    "x": 0.5,
    "each": {"a": 1, "b": -2.5},
    "list": [[1], (2, 3)],
    "array": np.zeros((2, 3), np.float32),
    "unknown": object(),
}


def test_what_is_made_as_the_schema_says_passes():
    check(GOOD, SCHEMA)
    check({**{name: GOOD[name] for name in SCHEMA if name != "x"}, "array": 0}, SCHEMA)
    check(math.inf, Rule("a float", lambda value: type(value) is float))
    assert whole(most=EXACT).expected == "a whole number >= 0"


@pytest.mark.parametrize("name", ["epoch", "batch", "step", "rows", "stuck_steps", "seconds"])
def test_what_a_run_counts_has_room_to_grow_when_it_goes_on(trained, name):
    content = load_checkpoint(Checkpoints(trained).last)
    most = 1e12 if name == "seconds" else EXACT
    content["state"][name] = most
    check(content["state"], STATE)  # an evaluation needs no room
    run = new_run(settings_in(content, trained))
    with pytest.raises(ValueError, match=f"state.{name} must be .* to .*, got"):
        run.set_state(content)


def test_a_checkpoint_of_a_run_that_counts_far_can_be_read_again(copy):
    checkpoints = Checkpoints(copy)
    content = load_checkpoint(checkpoints.last)
    content["state"]["stuck_steps"] = content["state"]["rows"] = EXACT // 2
    save({"kind": KIND, **content}, checkpoints.last)
    assert run(TRAIN, "--resume", copy, "--epochs", 4)[0] == 0
    assert load_checkpoint(checkpoints.last)["state"]["epoch"] == 4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n": 6}, "n must be a whole number from 1 to 5, got 6"),
        ({"n": True}, "n must be a whole number from 1 to 5, got True"),
        ({"x": math.nan}, "x must be a finite number from 0 to 1, got nan"),
        ({"each": [1]}, r"each must be a dict, got \[1\]"),
        ({"each": {"a": 10**400}}, "each.'a' must be a finite number, got 1"),
        ({"list": [[1], []]}, r"list.1 must be a list of 1 to 2, each a whole number >= 0, got \["),
        ({"array": np.zeros(3)}, r"array must be an array of float32 of shape \(any, 3\) or zero, "
                                 r"got an array of float64 of shape \(3,\)"),
    ],
)  # fmt: skip
def test_what_is_not_is_refused_by_its_place(change, expected):
    with pytest.raises(ValueError, match=expected):
        check(GOOD | change, SCHEMA)


# --- every part of a real checkpoint

MISSING = object()
WRONG = [
    MISSING,
    None,
    "x",
    "x\n" * 9_999,
    [],
    {},
    True,
    -1,
    0,
    2**70,
    10**400,
    1e300,
    math.nan,
    -math.inf,
    [[1, 2]],
    np.zeros((1, 2, 3)),
    np.full(3, np.nan, np.float32),
]


def leaves(content, place=()):
    """Yield the way to every value in a checkpoint, and to every dict and list around them."""
    if place:
        yield place
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from leaves(content[key], (*place, key))


def spoilt(content, place, value):
    """Return the content with another value in a place."""
    key, *rest = place
    copy = content.copy()
    if rest:
        copy[key] = spoilt(content[key], rest, value)
    elif value is MISSING:
        del copy[key]
    else:
        copy[key] = value
    return copy


def refusal(path):
    """Return the sentence with which a checkpoint is refused by the commands, None if it is not."""
    try:
        content = load_checkpoint(path)
        classifier_in(content, path), settings_in(content, path), state_in(content, path)
        _, settings, _, content = read_arguments(["--resume", str(path.parent)])
        resumed_run(settings, content, path.parent)
    except ValueError as error:
        return str(error)
    return None


def test_every_part_of_a_checkpoint_may_be_spoilt(copy, capsys, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # of thousands of files
    Checkpoints(copy).previous.unlink()
    path = Checkpoints(copy).last
    good = load_checkpoint(path)
    accepted = {}
    for place in leaves(good):
        for value in WRONG:
            save(spoilt(good, place, value), path)
            if (refused := refusal(path)) is None:
                accepted[place] = value
            else:
                assert str(path.parent) in refused
                assert len(refused) < 1500
    # Every part has places for other values, but the kind and the digest of the data have none.
    assert {part for part, *_ in accepted} == good.keys() - {"kind", "data"}
    for place, value in list(accepted.items())[::9]:  # for each takes a second
        save(spoilt(good, place, value), path)
        commands = {"look": (path, "kernels"), TRAIN: ("--resume", copy, "--epochs", 4)}
        for command, arguments in commands.items():
            code, _, complaints = run(command, *arguments)
            assert code in (0, 2, 3), (place, value, complaints)
            assert complaints.count("\n") == (code > 0), (place, value, complaints)
        Checkpoints(copy).previous.unlink(missing_ok=True)


# --- memory


def in_little_memory(action, megabytes=300):
    """Do something in a process that may take so much more memory than it has."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 10**6
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            action()
            code = 0
        except ValueError:
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def of_many_classes(content):
    classes = [str(i) for i in range(300_000)]
    content["classifier"].update(variant="torchvision", classes=classes)  # of 5 GB


def of_a_large_image(content):
    content["classifier"]["shorter_side"] = 20_000


def of_a_network_seen_large(content):
    content["classifier"].update(input_size=20_000, shorter_side=0)


def of_a_large_mean(content):
    content["classifier"]["mean"] = np.zeros((2, 300_000, 3), np.float32)


@pytest.mark.parametrize(
    "spoil", [of_many_classes, of_a_large_image, of_a_network_seen_large, of_a_large_mean]
)
def test_a_small_checkpoint_takes_little_memory(copy, spoil):
    path = Checkpoints(copy).best
    content = load_checkpoint(path)
    spoil(content)
    save(content, path)
    image = np.zeros((40, 40, 3), np.uint8)

    def use():
        classifier_in(load_checkpoint(path), path).probabilities([image])

    assert in_little_memory(use) == 2


@pytest.mark.parametrize("claim", ["nothing", "a long header", "a checkpoint"])
def test_a_file_of_a_hundred_gigabytes_is_refused_at_once(tmp_path, claim):
    path, size = tmp_path / "last.safetensors", 10**11
    length = {"a long header": size - 8}.get(claim, 1000)
    structure = json.dumps({"kind": "tinyalex checkpoint 1"} | {"x": {"\0array": "x"}})
    metadata = {"format": "tinyalex-1", "structure": structure, "sha256": "0" * 64}
    array = {"dtype": "U8", "shape": [size - 8 - length], "data_offsets": [0, size - 8 - length]}
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        if claim == "a checkpoint":
            file.write(json.dumps({"__metadata__": metadata, "x": array}).encode().ljust(length))
        file.truncate(size)
    assert in_little_memory(lambda: load_checkpoint(path)) == 2
