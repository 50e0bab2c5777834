"""Training of networks that are split among ranks, by the whole command."""

import pytest
from commands import draw_photos, finish, result
from test_train_ranks import OPTIONS, train, trained

WAYS = [
    ("tiny", "hybrid", 2),
    ("tiny", "hybrid", 3),
    ("twins", "towers", 2),
    ("twins", "towers", 4),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of photographs."""
    return draw_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    """Return a function that returns what one process finds, for each variant."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def of(variant):
        if variant not in found:
            found[variant] = trained(0, folder / variant, *options(photos, variant))
        return found[variant]

    return of


def options(photos, variant):
    """Return the options of a run."""
    return "--data", photos, *OPTIONS, "--average", "0.5", "--variant", variant


def assert_close(found, expected):
    """Fail unless the rows of metrics are the same but for rounding."""
    assert len(found[2]) == len(expected[2])
    for row, other in zip(found[2], expected[2], strict=True):
        assert row.pop("kind") == other["kind"]
        assert row == pytest.approx({k: v for k, v in other.items() if k != "kind"}, rel=1e-5)


@pytest.mark.parametrize(("variant", "parallel", "ranks"), WAYS)
def test_metrics_are_those_of_one_process(photos, alone, tmp_path, variant, parallel, ranks):
    words = options(photos, variant)
    assert_close(trained(ranks, tmp_path / "run", *words, "--parallel", parallel), alone(variant))


@pytest.mark.parametrize(("variant", "parallel", "ranks"), WAYS[::2])
def test_checkpoints_know_neither_ranks_nor_parts(
    photos, alone, tmp_path, variant, parallel, ranks
):
    out = tmp_path / "run"
    words = (*options(photos, variant), "--out", out, "--parallel", parallel)
    for count, arguments in (
        (ranks, (*words, "--steps", "3")),
        (3, ("--resume", out, "--parallel", "data", "--steps", "5")),
        (2 * ranks, ("--resume", out, "--parallel", parallel, "--steps", "6")),
        (0, ("--resume", out, "--parallel", "data")),
    ):
        code, said, complaints = finish(train(count, *arguments))
        assert code == 0, said + complaints
    assert_close(result(out), alone(variant))


@pytest.fixture(scope="module")
def frozen(photos, tmp_path_factory):
    """Return the options of a run whose last layer alone learns at first, and its result."""
    folder = tmp_path_factory.mktemp("frozen")
    trained(0, folder / "start", *options(photos, "twins"), "--epochs", "1")
    words = (*options(photos, "twins"), "--augment", "none", "--weights", folder / "start")
    words = (*words, "--freeze", "fc5", "--unfreeze-after", "1")
    return words, trained(0, folder / "run", *words)


@pytest.mark.parametrize(("parallel", "ranks"), [("hybrid", 4), ("towers", 2)])
def test_a_rank_may_have_nothing_that_learns(frozen, tmp_path, parallel, ranks):
    """Of two towers one has the last layer; of four ranks three have a class each."""
    (words, expected), out = frozen, tmp_path / "run"
    code, said, complaints = finish(train(ranks, *words, "--parallel", parallel, "--out", out))
    assert code == 0, complaints
    assert "what frozen layers make of an image" in " ".join(
        said.split()
    )  # one process without shards keeps it
    assert_close(result(out), expected)


def test_hybrid_on_one_rank_is_training_as_ever(photos, alone, tmp_path):
    words = options(photos, "tiny")
    last, best, rows = trained(1, tmp_path / "run", *words, "--parallel", "hybrid")
    for content in (last, best):
        content["settings"]["parallel"] = "data"
    assert (last, best, rows) == alone("tiny")


@pytest.mark.parametrize(
    ("ranks", "variant", "expected"),
    [
        (3, "twins", "--parallel towers is for an even number of ranks, got 3"),
        (2, "paper", "response normalisation crosses the towers"),
        (2, "tiny", "variant tiny, which has none"),
    ],
)
def test_towers_that_cannot_be_are_refused(photos, tmp_path, ranks, variant, expected):
    words = options(photos, variant)
    code, _, complaints = finish(
        train(ranks, *words, "--parallel", "towers", "--out", tmp_path / "run")
    )
    assert code == 2
    assert complaints.count("\n") == complaints.count(expected) == 1, complaints
