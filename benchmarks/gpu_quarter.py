"""All that needs a GPU, in a quarter of an hour.

    python benchmarks/gpu_quarter.py --part 1 --out FOLDER    # right or wrong: 200 s
    python benchmarks/gpu_quarter.py --part 2 --out FOLDER    # whole nets beside PyTorch: 400 s
    python benchmarks/gpu_quarter.py --part 3 --out FOLDER    # races and counters: 120 s

from a plain checkout, with whatever Python has CuPy; nothing is installed. Each part can be
repeated by itself. Its steps run one after the other, each in a process of its own with a limit of
its own, what is worth most first; at a limit the process and its children are killed. FOLDER (by
default the environment's OUT) gets gpu-part-N.jsonl, a line for whatever was measured, and
gpu-part-N-TIME.tar.gz, which has these lines, all logs and the golden fragments. Where .git does
not travel along, TINYALEX_COMMIT tells which program it was; where ml_dtypes is not installed,
which has the dtype bfloat16, --packages (or PYTHONPATH) names a folder that has it. Afterwards, on
any machine:

    python benchmarks/gpu_quarter.py --table FOLDER/*.tar.gz  # into docs/gpu.md and tests/golden

Without a GPU, small, on the stand-in for CuPy; and single steps, under any tool:

    python benchmarks/gpu_quarter.py --part 1 --toy --out FOLDER
    compute-sanitizer --tool memcheck python benchmarks/gpu_quarter.py --step exercises [WORD ...]
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from gpu import journal

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/support")]
PYTHON = sys.executable
RACECHECK = ("compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "1")
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis")
COUNTERS = ("ncu", "--kernel-name", "regex:conv", "--csv", "--page", "raw")
COUNTERS += tuple(word for section in SECTIONS for word in ("--section", section))
TAKES = "torch.compile takes the newer switches"  # says `probe`
CUDA = "/usr/local/cuda/bin"  # of the toolkit, often not on PATH
NO_BFLOAT16 = (
    "class C stores its numbers as float32, and the exercises leave bfloat16 out; install "
    "ml_dtypes, or give --packages a folder that has it, for this version of Python"
)
TURNS = 10.0  # seconds that a net keeps for the turns, after the last contestant was tried


@dataclass(frozen=True)
class Step:
    """One of `STEPS`: its limit in seconds, words, and the program above."""

    name: str
    seconds: float
    words: tuple[str, ...] = ()
    above: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return words that tell it from the others of its part."""
        return " ".join([*self.above[:1], self.name, *self.words])


@dataclass(frozen=True)
class Part:
    """Steps, the worthiest first, and the seconds for all of them."""

    seconds: float
    steps: tuple[Step, ...]


PARTS = {
    1: Part(
        200,
        (Step("build", 40), Step("sweep", 60), Step("exercises", 80), Step("golden", 20)),
    ),
    2: Part(
        400,
        (
            Step("build", 40),  # found again after part 1
            Step("probe", 30),
            Step("nets", 205, ("train", "128", "B", "C", "A")),
            Step("nets", 110, ("infer", "1", "A", "B", "C")),
            Step("few_rows", 15),
        ),
    ),
    3: Part(
        120,
        (
            Step("build", 20),
            Step("exercises", 30, ("conv_tensor",), RACECHECK),
            Step("one_step", 30, above=COUNTERS),
            Step("exercises", 15, ("norm",), RACECHECK),
            Step("kernels", 25),
        ),
    ),
}

# --- the driver: imports nothing that could fail --------------------------------------------------

Clock = Callable[[], float]


def run(
    step: Step, of: str, until: float, lines: Path, words: list[str], logs: Path, clock: Clock
) -> str:
    """Run a step with ``words`` of all steps, and return its end.

    That is at ``until`` at the latest.
    """
    program, *options = *step.above, PYTHON
    found = shutil.which(program) or shutil.which(program, path=CUDA)
    if not found:
        return f"skipped: there is no {program}, nor in {CUDA}"
    command = [found, *options, __file__, "--step", step.name, *step.words]
    command += [f"--of={of}", f"--lines={lines}", f"--logs={logs}"]
    command += [f"--until={time.monotonic() + until - clock():.1f}"]
    command += words
    environment = {
        **os.environ,
        "CUPY_ACCELERATORS": "",  # CUB, which would be compiled for each sum
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "default",
    }
    with open(logs / f"{of.replace(' ', '-')}.log", "wb") as log:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                if clock() >= until:
                    return "stopped: its time was up"
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError):  # compilers that it started go, too
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return "done" if child.returncode == 0 else f"FAILED ({child.returncode})"


def run_part(number: int, out: Path, words: list[str], clock: Clock) -> None:
    """Run the steps of a part, and pack up after each."""
    try:
        importlib.import_module("ml_dtypes")
    except ImportError as error:
        print(f"{error}: {NO_BFLOAT16}", flush=True)
    part, lines = PARTS[number], out / f"gpu-part-{number}.jsonl"
    archive = out / f"{lines.stem}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"
    end = clock() + part.seconds
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        for step in part.steps:
            of, began, word = f"{number} {step.label}", clock(), "stopped with its part"
            try:
                if began < end:
                    until = min(end, began + step.seconds)
                    word = run(step, of, until, lines, words, logs, clock)
                else:
                    word = "no time left"
            finally:
                seconds = clock() - began
                journal.append(lines, f"gpu-end {of}", {"of": of, "end": word, "seconds": seconds})
                pack(lines, logs, archive)
                print(f"{of}: {word} after {seconds:.0f} s", flush=True)


def pack(lines: Path, logs: Path, archive: Path) -> None:
    """Replace an archive by one with everything that there is."""
    aside = lines.with_suffix(".packing")
    with tarfile.open(aside, "w:gz") as packed:
        packed.add(lines, lines.name)
        packed.add(logs, lines.stem)
    aside.replace(archive)


def unpack(archives: list[Path], results: Path, fragments: Path, document: Path) -> None:
    """Put lines and golden fragments into their folders, and write the tables."""
    from gpu import tables

    folders = {".jsonl": results, ".npz": fragments}
    for path in archives:
        with tarfile.open(path) as archive:
            texts = {Path(m.name): archive.extractfile(m) for m in archive if m.isfile()}
            texts = {name: text.read() for name, text in texts.items() if name.suffix in folders}
        if any(b'"gpu": "stand-in"' in text for text in texts.values()):
            raise SystemExit(f"{path} is of the stand-in, not of a GPU: nothing was written")
        for name, text in texts.items():
            folder = folders[name.suffix]
            folder.mkdir(parents=True, exist_ok=True)
            place = folder / name.name
            if name.suffix == ".jsonl":  # what an earlier archive of this part had stays
                before = place.read_bytes() if place.exists() else b""
                every = dict.fromkeys(before.splitlines() + text.splitlines())
                text = b"".join(line + b"\n" for line in every)
            place.write_bytes(text)
    tables.write(results, document)


# --- the steps, each in a process of its own ------------------------------------------------------


def sizes(toy: bool) -> tuple:
    """Return the net, and how many images its batch has at most."""
    from gpu.cases import Net

    return (Net(thin=32, pixels=63, classes=4), 1) if toy else (Net(), 128)


def prepare(arguments: argparse.Namespace, rounds: int = 5) -> tuple:
    """Return a campaign, and `sizes`."""
    from gpu import run
    from gpu.timing import Protocol

    protocol, until = Protocol(rounds, calls=5), arguments.until - TURNS
    if arguments.toy:
        protocol, until = Protocol(2, windows=1, window=0, warm_up=1, calls=1), math.inf
    net, images = sizes(arguments.toy)
    return run.campaign(arguments.lines, protocol, True, (), until, net.thin), net, images


def build(arguments: argparse.Namespace) -> Iterator[str]:
    """Compile all sources at once, for all later processes."""
    from simt import resources

    from tinyalex.backends.cuda import launch

    def compile_one(source: tuple[str, tuple[str, ...]]) -> str | None:
        try:
            launch.build(*source)
        except Exception:
            return traceback.format_exc()
        return None

    every = {(file, launch.instances(file, name)) for file, name in resources.entries()}
    sources = [s for s in every if any(word in s[0] for word in arguments.words or [""])]
    with ThreadPoolExecutor() as pool:
        found = zip(sources, pool.map(compile_one, sources), strict=True)
        faults = {names[0] if len(names) == 1 else file: f for (file, names), f in found if f}
    for name, fault in faults.items():
        print(f"{name}: {fault}", flush=True)
    yield f"{len(sources) - len(faults)} of {len(sources)} sources compile{_but(faults)}"
    if faults:
        raise SystemExit(1)


def sweep(arguments: argparse.Namespace) -> Iterator[str]:
    """Time all passes of convolutions, by class and tile, beside cuDNN."""
    from gpu import layers

    campaign, net, images = prepare(arguments, rounds=3)
    layers.measure(net, images, "BCA", campaign, sweep=True)
    yield "rows below"


def few_rows(arguments: argparse.Namespace) -> Iterator[str]:
    """Time linear layers of few rows, also on tensor cores."""
    from gpu import layers
    from tinyalex import nn

    campaign, net, _ = prepare(arguments, rounds=3)
    for images in (1,) if arguments.toy else (8, 4):
        layers.measure(net, images, "BA", campaign, sweep=True, kind=nn.Linear)
    yield "rows below"


def exercises(arguments: argparse.Namespace) -> Iterator[str]:
    """Run the kernels' exercises with one of the words in their names."""
    import numpy as np
    from simt.exercises import all_exercises

    from gpu import machine

    words = arguments.words or [""]
    chosen = [(e.name, e) for e in all_exercises() if any(word in e.name for word in words)]
    failed, names = machine.failures(), [name for name, _ in chosen]
    begin = 1 + names.index(machine.last_failure()) if failed else 0
    for done, (name, exercise) in enumerate(chosen[begin:], begin + 1):
        try:
            exercise.run(np.random.default_rng(2012))
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: FAILED\n{traceback.format_exc()}", flush=True)
        else:
            print(f"{name}: passed", flush=True)
        short = [name.removeprefix("simt.exercises.") for name in failed]
        yield f"{done - len(failed)} of {len(chosen)} passed{_but(short)}"
        if name in failed:
            machine.restart_if_dead(failed)
    if failed:
        raise SystemExit(1)


def golden(arguments: argparse.Namespace) -> Iterator[str]:
    """Record what this GPU computes with each wrapper of inline PTX."""
    from simt import fragments

    paths = fragments.record(arguments.logs)
    yield f"recorded: {', '.join(path.stem for path in paths)}"


def probe(arguments: argparse.Namespace) -> Iterator[str]:
    """Find out which of PyTorch's switches it compiles under."""
    from gpu import machine

    if reason := machine.why_no_torch():
        yield reason
        return
    from gpu import contestant_torch

    refusal = contestant_torch.compile_refuses()
    yield f"torch.compile refuses the newer switches: {refusal}" if refusal else TAKES


def nets(arguments: argparse.Namespace) -> Iterator[str]:
    """Measure a net beside PyTorch, under switches that `probe` vouches for."""
    from gpu import machine, run
    from gpu.cases import Case

    told = [r.get("note", "") for r in journal.load(arguments.lines.parent).values()]
    if TAKES not in told:  # it may have been cut short; compiled by the older ones is any PyTorch's
        os.environ[machine.OLDER_SWITCHES] = "1"  # which contestant_torch.py reads on import

    campaign, net, large = prepare(arguments)
    mode, images, *classes = arguments.words
    cases = [Case(net, mode, min(int(images), large), precision) for precision in classes]
    behind = machine.last_failure().split(" ")[0]
    names = [case.name for case in cases]
    begin = names.index(behind) if behind in names else 0
    for number, case in enumerate(cases[begin:], begin):
        if not arguments.toy:  # the time that is left, in equal shares
            now = time.monotonic()
            campaign.until = now + (arguments.until - now) / (len(cases) - number) - TURNS
        run.show(run.run(case, campaign))
        yield f"in the tables: {', '.join(classes[: number + 1])}"


def one_step(arguments: argparse.Namespace) -> Iterator[str]:
    """Take one training step, to be looked at from above."""
    from gpu.cases import Case
    from gpu.contestant_tinyalex import Tinyalex

    net, images = sizes(arguments.toy)
    Tinyalex(Case(net, "train", images, "B"))
    yield "counters in the archive's log"


def kernels(arguments: argparse.Namespace) -> Iterator[str]:
    """Save which kernels run in a training step, and for how long."""
    from gpu import machine, profile

    campaign, net, _ = prepare(arguments)
    profile.run(campaign, net)
    yield machine.why_no_torch() or "in the lines"


EVERY = build, sweep, exercises, golden, probe, nets, few_rows, one_step, kernels
STEPS = {f.__name__: f for f in EVERY}


def _but(failed: object) -> str:
    return f"; failed: {', '.join(failed)}" if failed else ""


def run_step(arguments: argparse.Namespace) -> None:
    """Run a step here and write down what it says."""
    name, *arguments.words = arguments.step
    if arguments.toy:
        from simt import standin

        import tinyalex as ta

        standin.install()
        ta.use_backend("reference")  # for what is expected: nothing to compile
    from gpu import machine

    facts = machine.facts()
    if math.isfinite(arguments.until):  # stops it if its driver is gone
        left = max(0.0, arguments.until - time.monotonic())
        faulthandler.dump_traceback_later(left + 1, exit=True)
    for note in chain(["begun"], STEPS[name](arguments)):
        print(note, flush=True)
        if arguments.of:
            line = {"of": arguments.of, "note": note, "facts": facts}
            journal.append(arguments.lines, f"gpu-note {arguments.of}", line)


def main(words: list[str] | None = None, clock: Clock = time.monotonic) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--part", type=int, choices=PARTS)
    what.add_argument("--table", type=Path, nargs="+", metavar="ARCHIVE")
    what.add_argument("--step", nargs="+", metavar="WORD", help=f"one of {', '.join(STEPS)}")
    add("--out", type=Path, default=os.environ.get("OUT"), metavar="FOLDER")
    add("--packages", type=Path, metavar="FOLDER", help="of packages that are not installed")
    add("--toy", action="store_true", help="to try this script: tiny, on the stand-in for CuPy")
    here = Path("gpu-steps")  # of a step that no part has begun
    told = {"of": "", "lines": here / "gpu-steps.jsonl", "logs": here, "until": math.inf}
    for name, default in told.items():  # what a part tells its steps
        add(f"--{name}", type=type(default), default=default, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.step and arguments.step[0] not in STEPS:
        parser.error(f"no step {arguments.step[0]!r}; there are {', '.join(STEPS)}")
    if arguments.packages:
        if not (arguments.packages / "ml_dtypes").is_dir():
            parser.error(f"--packages {arguments.packages} has no folder ml_dtypes")
        sys.path.append(str(arguments.packages.resolve()))  # what is installed comes first
    if missing := [str(path) for path in arguments.table or () if not path.is_file()]:
        parser.error(f"no archive {', '.join(missing)}")
    if arguments.table:
        from gpu import tables
        from shared import report

        unpack(arguments.table, report.RESULTS, ROOT / "tests" / "golden", tables.DOCUMENT)
    elif arguments.step:
        run_step(arguments)
    elif arguments.out is None:
        parser.error("--part wants a folder: --out FOLDER, or OUT in the environment")
    else:
        every = ["--toy"] * arguments.toy
        if arguments.packages:
            every.append(f"--packages={arguments.packages.resolve()}")
        run_part(arguments.part, Path(arguments.out).resolve(), every, clock)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # after packing up
    main()
