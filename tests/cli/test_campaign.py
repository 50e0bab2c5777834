"""All commands on random folders, changes, run folders and machines.

One rule: the right result, or one sentence that names the thing and the right exit code; never a
traceback, never a hang, never a byte outside the output folder but in the cache. A test run takes
few examples, the same each time; ``pytest tests/cli/test_campaign.py
--hypothesis-profile=campaign`` searches for minutes.
"""

import contextlib
import importlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import random_folders as drawn
from commands import TRAIN, finish, load, result, start, tiny_variant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tinyalex as ta

PATIENCE = 25  # seconds for a command: a loader thread may be at one image for 8
TINY = ("--variant", "tiny", "--threads", "1", "--workers", "1")
TWO_STEPS = ("--steps", "2", "--batch-size", "2")
OPTIONAL = ("matplotlib", "tqdm", "tensorboardX", "jinja2")

few = settings(
    max_examples=max(10, settings.default.max_examples // 5),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
seeds = st.integers(0, 2**32 - 1)


class HangError(BaseException):
    """A command took too long."""


class Outcome(NamedTuple):
    """Exit code and output of a command; `seen` is from the spies of `Playground.run`."""

    code: object
    out: str
    err: str
    seen: list


class Playground:
    """Home, temporary files, data and runs in one folder."""

    def __init__(self, root):
        self.root = Path(root)
        self.data, self.out = self.root / "data", self.root / "run"
        self.cache, self.temporary = self.root / "home/.cache", self.root / "tmp"
        self.cache.mkdir(parents=True)
        self.temporary.mkdir()
        (self.root / "precious").write_text("not to be touched")
        self.counter = drawn.Counter(self.root / "elsewhere")

    def run(self, name, *arguments, writes=(), streams=(None, None), spies=None, sentence=True):
        """Run a command by the rule, in this process; it may write to `writes` alone."""
        allowed = [self.cache, *(self.root / place for place in writes)]
        before = drawn.listing(self.root, *allowed)
        outcome = in_process(name, [str(a) for a in arguments], streams, spies or {})
        after = drawn.listing(self.root, *allowed)
        line = f"{name} {arguments}: {outcome}"
        changed = [p for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
        assert not changed, f"touched {changed}: {line}"
        check_outcome(outcome, line, sentence)
        return outcome


def check_outcome(outcome, line, sentence=True):
    """Fail unless a command ended by the rule."""
    code, out, err, _ = outcome
    assert code in (0, 1, 2, 3), f"exit code {code}: {line}"
    assert "Traceback" not in err + out, f"traceback: {line}"
    errors = re.findall(r"^(?:error: |\w+\.py: ).*", err, flags=re.MULTILINE)
    assert not sentence or len(errors) == (code != 0), f"not one sentence: {line}"
    if code and sentence:
        assert err.splitlines()[-1] == errors[0], f"not the last word: {line}"
    assert drawn.plain_text(out + err), f"control characters: {line}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return where every playground is: always in the same place, so that a run can be copied."""
    return tmp_path_factory.mktemp("campaign") / "playground"


@contextlib.contextmanager
def playground(place, grown=None):
    """Make a Playground, perhaps with a run, and go there."""
    with pytest.MonkeyPatch.context() as patch:
        made = Playground(place)
        if grown is not None:
            for name in ("data", "run"):
                shutil.copytree(grown.root / name, place / name, symlinks=True)
            made.counter.value = grown.images
        patch.chdir(place)
        patch.setattr(sys, "dont_write_bytecode", True)  # of broken packages, among its files
        patch.setenv("HOME", str(made.root / "home"))
        patch.setenv("XDG_CACHE_HOME", str(made.cache))
        patch.setenv("MPLCONFIGDIR", str(place.parent / "matplotlib"))  # to list the fonts once
        patch.setenv("TMPDIR", str(made.temporary))
        patch.setattr(tempfile, "tempdir", None)
        try:
            with tiny_variant():
                yield made
        finally:
            shutil.rmtree(place)


def in_process(name, arguments, streams, spies):
    """Run a command in this process; `spies` are wrapped around functions of its module."""

    def too_long(*_):
        raise HangError(f"{name} {arguments}")

    seen, text = [], [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in streams]
    out, err = (mine if given is None else given for mine, given in zip(text, streams, strict=True))
    module, patch = load(name), pytest.MonkeyPatch()
    for place, spy in spies.items():
        owner, _, attribute = place.rpartition(".")
        owner = getattr(module, owner) if owner else module
        patch.setattr(owner, attribute, spy(getattr(owner, attribute), seen))
    previous = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = module.main(arguments)
            except SystemExit as stop:
                code = stop.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        patch.undo()
        threads = ta.threads.get_num_threads()
        ta.threads.set_num_threads(threads)
    for stream in text:
        stream.flush()
    return Outcome(code, *(s.buffer.getvalue().decode("utf-8", "replace") for s in text), seen)


# --- spies: which images a command used, by their contents ----------------------------------------


def contents_of(dataset, places=None):
    """Return the SHA-256 of images of a data set."""
    paths = dataset.paths if places is None else [dataset.paths[int(place)] for place in places]
    return {drawn.digest(path) for path in paths if os.path.isfile(path) and os.stat(path).st_size}


def spy_on_training(train, seen):
    """See what is learned from, and what it is validated on."""

    def spy(trainer, *rest):
        run = trainer.run
        seen.extend(contents_of(data.dataset) for data in (run.train_data, run.val_data))
        return train(trainer, *rest)

    return spy


def spy_on_examination(examine, seen):
    """See what is judged."""

    def spy(model, loader, *rest):
        answers = examine(model, loader, *rest)
        seen.append(contents_of(loader.dataset, answers[1].indices))
        return answers

    return spy


def spy_on_look(images, seen):
    """See what is looked at."""

    def spy(look):
        dataset, places, pixels = images(look)
        seen.append(contents_of(dataset, places))
        return dataset, places, pixels

    return spy


def train(ground, *arguments, **options):
    """Train on the data for two steps."""
    own = ("--data", ground.data, "--out", ground.out, *TINY, *arguments)
    spies = {"train": spy_on_training}
    return ground.run(TRAIN, *own, writes=["run"], spies=spies, **options)


LATER = {
    "evaluate": ("evaluate", ["RUN"]),
    "evaluate on a folder": ("evaluate", ["RUN", "--data", "DATA"]),
    "predict": ("predict", ["RUN", "DATA"]),
    "predict ten crops": ("predict", ["RUN", "DATA", "--crops", "10"]),
    "sort": ("predict", ["RUN", "DATA", "--sort", "sorted"]),
    "filters": ("look", ["RUN", "filters"]),
    "answers": ("look", ["RUN", "answers"]),
    "answers to a folder": ("look", ["RUN", "answers", "DATA"]),
    "neighbours": ("look", ["RUN", "neighbours"]),
    "neighbours among": ("look", ["RUN", "neighbours", "--among", "DATA"]),
    "features": ("look", ["RUN", "features"]),
    "curves": ("look", ["RUN", "curves"]),
    "report": ("report", ["RUN"]),
    "resume": (TRAIN, ["--resume", "RUN", "--steps", "11"]),
    "resume to the end": (TRAIN, ["--resume", "RUN"]),
    "dry run of the resumed": (TRAIN, ["--resume", "RUN", "--dry-run"]),
    "dry run": (TRAIN, ["--data", "DATA", *TINY, "--dry-run"]),
    "summary": (TRAIN, ["--data", "DATA", *TINY, "--summary"]),
    "overfit": (TRAIN, ["--data", "DATA", *TINY, "--overfit", "2"]),
    "prepare": ("prepare", ["DATA", "clean", "--processes", "1", "--size", "28"]),
}
SPIES = {
    "evaluate": {"examine": spy_on_examination},
    "look": {"Look.images": spy_on_look},
    TRAIN: {"train": spy_on_training},
}
WRITES = {"predict": ("predictions.png", "sorted"), "prepare": ("clean",)}


def later(ground, what, out="run", **options):
    """Run one of the commands that come after training."""
    name, arguments = LATER[what]
    places = {"RUN": ground.out, "DATA": ground.data}
    arguments = [places.get(argument, argument) for argument in arguments]
    writes = WRITES.get(name, (out,))
    if "--dry-run" in arguments or "--summary" in arguments or "--overfit" in arguments:
        writes = ()
    return ground.run(name, *arguments, writes=writes, spies=SPIES.get(name, {}), **options)


# --- tests ----------------------------------------------------------------------------------------


@few
@given(drawn.folders(), st.sampled_from([*LATER, "train"]), st.booleans())
def test_any_folder(place, tree, what, cached):
    """Train, or do anything else that takes a folder, on any folder."""
    with playground(place) as ground:
        drawn.write(ground.data, tree, ground.counter)
        ground.data.mkdir(exist_ok=True)
        arguments = TWO_STEPS if cached else (*TWO_STEPS, "--no-index-cache", "--mean", "image")
        trained = train(ground, *arguments)
        if trained.code == 0:
            learned, validated = trained.seen
            assert learned
            assert validated
            assert not learned & validated
        elif LATER.get(what, ("",))[0] in ("evaluate", "look", "predict", "report"):
            return
        if what != "train":
            later(ground, what)


class Grown(NamedTuple):
    """Run stopped in its second epoch, and the images it used."""

    root: Path
    images: int
    learned: set
    validated: set


@pytest.fixture(scope="module")
def grown(place, tmp_path_factory):
    """Train on a few images, and keep it all."""
    files = [drawn.Entry(f"{i}.png", drawn.picture) for i in range(6)]
    with playground(place) as ground:
        drawn.write(ground.data, {"": dict.fromkeys("abc", files)}, ground.counter)
        trained = train(ground, "--steps", "10", "--batch-size", "2", "--epochs", "2")
        assert trained.code == 0, trained
        kept = shutil.copytree(place, tmp_path_factory.mktemp("grown") / "kept", symlinks=True)
        return Grown(kept, ground.counter.value, *trained.seen)


@few
@given(st.lists(st.sampled_from(drawn.CHANGES), max_size=3), st.sampled_from([*LATER]), seeds)
def test_any_change_after_training(place, grown, changes, what, seed):
    """Nothing that was learned from is ever taken for held out, whatever became of the folder."""
    with playground(place, grown) as ground:
        drawn.change(ground.data, changes, random.Random(seed), ground.counter)
        outcome = later(ground, what)
        if what in ("evaluate", "answers", "neighbours", "features") and outcome.code == 0:
            assert outcome.seen[0]
            assert not outcome.seen[0] & grown.learned, outcome
        if what.startswith("resume") and outcome.code == 0:
            again, held_out = outcome.seen
            assert not held_out & grown.learned, outcome
            assert not again & grown.validated, outcome
        if set(changes) <= {drawn.nothing, drawn.touch} and what != "overfit":
            assert outcome.code == 0, outcome
            if what == "evaluate":
                assert outcome.seen[0] == grown.validated


@pytest.fixture(scope="module")
def finished(place, grown, tmp_path_factory):
    """Return the folder of the same run, undisturbed."""
    with playground(place, grown) as ground:
        assert later(ground, "resume to the end").code == 0
        return shutil.copytree(ground.out, tmp_path_factory.mktemp("finished") / "run")


FILES = (
    "last.safetensors", "best.safetensors", "previous.safetensors", "metrics.jsonl", "run.json",
    "filters.png", "curves.png", "confusion.png", "mistakes.png", "report.html",
    "ANY",
)  # fmt: skip
CHECKPOINTS = FILES[:3]
USES = (
    "evaluate", "predict", "sort", "filters", "answers", "curves", "report", "resume",
    "resume to the end",
)  # fmt: skip


@few
@given(
    st.lists(st.tuples(st.sampled_from(FILES), st.sampled_from(drawn.DAMAGE)), min_size=1,
             max_size=2, unique_by=lambda pair: pair[0]),
    st.sampled_from(USES),
    seeds,
)  # fmt: skip
def test_any_damage_to_a_run(place, grown, finished, damage, what, seed):
    """What a command does not need may be damaged in any way, and costs nothing."""
    rng = random.Random(seed)
    with playground(place, grown) as ground:
        hurt = []
        for name, act in damage:
            if name == "ANY":
                name = rng.choice(sorted(p.name for p in ground.out.iterdir() if p.is_file()))
            path = ground.out / name
            if not os.path.lexists(path):
                path.write_text("foreign")
            if path.is_file() and not path.is_symlink():
                act(path, rng)
            hurt.append((name, act.__name__))
        outcome = later(ground, what)
        said = f"{hurt}: {outcome}"
        files = {name for name, _ in hurt}
        needed = {*CHECKPOINTS, *({"metrics.jsonl"} if what == "curves" else ())}
        picture_is_a_folder = any((ground.out / f"{what}{e}").is_dir() for e in (".png", ".html"))
        if not files & needed and not picture_is_a_folder:
            assert outcome.code == 0, said
            if what == "resume to the end":
                mine, undisturbed = (
                    ta.load(folder / "last.safetensors")["classifier"]["weights"]
                    for folder in (ground.out, finished)
                )
                assert all(np.array_equal(mine[k], undisturbed[k]) for k in undisturbed), said


@few
@given(drawn.folders(), st.lists(st.sampled_from(drawn.CHANGES), max_size=2), seeds)
def test_prepare_any_folder(place, tree, changes, seed):
    """Prepare, verify, change, prepare again, verify: every image is there, or named."""
    rng = random.Random(seed)
    command = ("prepare", "data", "clean", "--processes", "1", "--size", "28")
    with playground(place) as ground:
        drawn.write(ground.data, tree, ground.counter)
        ground.data.mkdir(exist_ok=True)
        verify = ("prepare", "--verify", "clean", "--processes", "1")
        for _ in range(2):
            outcome = ground.run(*command, writes=("clean",))
            if outcome.code == 0:
                assert ground.run(*verify, sentence=False).code == 0
                made, kept = map(
                    int, re.search(r"(\d+) images made, (\d+) were", outcome.out).groups()
                )
                there = [
                    p
                    for p in (ground.root / "clean").rglob("*")
                    if p.suffix.lower() in drawn.ENDINGS and p.is_file()
                ]
                assert len(there) == made + kept, outcome
            drawn.change(ground.data, changes, rng, ground.counter)
        if outcome.code == 0 and made + kept:
            drawn.change(ground.root / "clean", [drawn.delete, drawn.repaint], rng, ground.counter)
            assert ground.run(*verify, sentence=False).code == 2


@few
@given(drawn.folders(), st.sampled_from([1, 10]), st.booleans())
def test_sort_any_folder(place, grown, tree, crops, twice):
    """Every image that can be read is copied, whole, into the folder of the class that was said."""
    with playground(place, grown) as ground:
        photos = ground.root / "photos"
        drawn.write(photos, tree, ground.counter)
        photos.mkdir(exist_ok=True)
        arguments = ("predict", ground.out, "photos", "--sort", "sorted", "--crops", crops)
        for _ in range(1 + twice):
            outcome = ground.run(*arguments, writes=WRITES["predict"])
        if outcome.code == 0:
            lines = [line for line in outcome.out.split("\n") if line.startswith("photos/")]
            copies = [p for p in (ground.root / "sorted").rglob("*") if p.is_file()]
            sources = {
                drawn.digest(p) for p in photos.rglob("*") if p.is_file() and p.stat().st_size < 1e6
            }
            assert all(drawn.digest(p) in sources for p in copies)
            assert len({drawn.digest(p) for p in copies}) == len(copies), outcome
            said = {cls: sum(f": {cls} " in line for line in lines) for cls in "abc"}
            there = {cls: len(list((ground.root / "sorted").glob(f"{cls}/*"))) for cls in "abc"}
            assert all(there[cls] <= said[cls] for cls in "abc"), outcome


def closed():
    """Return a stream whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return io.TextIOWrapper(io.FileIO(writing, "w"), line_buffering=False)


def full():
    """Return a stream onto a full disk."""
    return open("/dev/full", "w")


def ascii_only():
    """Return a stream that takes ASCII alone."""
    return io.TextIOWrapper(io.BytesIO(), "ascii")


@contextlib.contextmanager
def broken(packages, error):
    """Let the import of packages raise."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for package in packages:
            Path(folder, f"{package}.py").write_text(error)
            for name in [n for n in sys.modules if n.partition(".")[0] == package]:
                patch.delitem(sys.modules, name)
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        yield
        for package in packages:
            sys.modules.pop(package, None)


@contextlib.contextmanager
def changed(**variables):
    """Change the environment for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


ERRORS = (
    "raise ImportError('broken')", "raise AttributeError('_ARRAY_API not found')", "1 +",
    "raise OSError('libfoo.so: cannot open')", "raise RuntimeError('no display')", "",
    "raise SystemExit('no licence')", "import gone_and_away",
)  # fmt: skip
STREAMS = {"none": lambda: None, "gone": closed, "full": full, "ascii": ascii_only}


@few
@given(
    st.sampled_from(["train", *LATER]),
    st.sampled_from([*STREAMS]),
    st.sampled_from(["", "0", "1", "20", "x", "99999999999"]),
    st.lists(st.sampled_from(OPTIONAL), unique=True),
    st.sampled_from(ERRORS),
)
def test_any_machine(place, grown, what, stream, columns, packages, error):
    """No reader, terminal or optional package costs a result."""
    with playground(place, grown) as ground, broken(packages, error), changed(COLUMNS=columns):
        if what == "train":
            shutil.rmtree(ground.out)
        streams = (None, None)
        if stream != "none":
            streams = (STREAMS[stream](), None)
        outcome = (
            train(ground, *TWO_STEPS, streams=streams)
            if what == "train"
            else later(ground, what, streams=streams)
        )
        if what not in ("overfit", "curves", "report"):
            assert outcome.code == 0, outcome
        if what == "resume to the end":
            assert result(ground.out)
        for opened in filter(None, streams):
            with contextlib.suppress(OSError):
                opened.close()


PLACES = (">&-", "2>&-", "<&-", ">&- 2>&- <&-", "> /dev/full", "2> /dev/full", "> out.txt")
VARIABLES = (
    ("MPLBACKEND", "nonsense"), ("MPLBACKEND", "module://matplotlib_inline.backend_inline"),
    ("PYTHONIOENCODING", "ascii"), ("LC_ALL", "C"), ("HOME", "/dev/null"), ("TERM", ""),
    ("TZ", "nonsense"), ("PYTHONWARNINGS", "error"), ("PYTHONOPTIMIZE", "2"),
)  # fmt: skip


@settings(few, max_examples=max(5, few.max_examples // 4))
@given(
    st.sampled_from(["predict", "evaluate", "curves", "resume to the end", "dry run"]),
    st.sampled_from(PLACES),
    st.lists(st.sampled_from(VARIABLES), max_size=2, unique_by=lambda pair: pair[0]),
)
def test_any_process(place, grown, what, redirected, variables):
    """A process without a stream, a home or a language does the same work."""
    with playground(place, grown) as ground, changed(**dict(variables)):
        name, arguments = LATER[what]
        places = {"RUN": str(ground.out), "DATA": str(ground.data)}
        arguments = [places.get(argument, argument) for argument in arguments]
        shell = ["sh", "-c", f'exec "$@" {redirected}', "sh"]
        process = start(name, *arguments, before=shell)
        code, out, err = finish(process)
        assert (code, "Traceback" in out + err) == (0, False), (code, out, err)
        if what == "resume to the end":
            assert result(ground.out)
