"""Turn a folder of images into a clean, verifiable one for training.

tinyalex prepare photos clean     photos/cat/1.png, ... to clean/cat/1.png.jpg, ...
tinyalex prepare --verify clean   has a file changed, or gone, since then?

SOURCE has one folder per class, or train/ with val/, test/ or both of such: two classes or more,
none without images. TARGET gets the same folders, every image upright, in RGB, its shorter side 256
pixels; manifest.jsonl with the SHA-256 of each; statistics.safetensors with the mean image, the
mean colour and the covariance of the colours of the images in train/ (of all where there is no
train/); left_out.jsonl with what could not be read. The same command resumes where it was
interrupted, takes in what is new in SOURCE, and removes from TARGET what came from images that are
no longer there.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from tinyalex.cli.common import add_layout, command, complain
from tinyalex.cli.parser import Parser, parser_of, path_in, whole
from tinyalex.data.dataset import DataError
from tinyalex.data.index import in_words
from tinyalex.data.manifest import ENDINGS, LEFT_OUT, Options, verify
from tinyalex.data.prepare import prepare, source_images
from tinyalex.data.worker_processes import WorkerError
from tinyalex.folders import locked
from tinyalex.interrupts import DONE, FAILED, USAGE, leaving_on_signals
from tinyalex.progress import Progress, duration, one_sentence, say, unwritable, warn
from tinyalex.text import counted, printable
from tinyalex.threads import available_cores

EXIT_CODES = (
    "0 done, perhaps without images that could not be read; 1 failed on the way; 2 arguments or "
    "folders that cannot be used, or files that --verify found changed, missing or unexpected"
)


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    show = Shown()
    try:
        parser = make_parser()
        args = parser.parse_args(argv)
        if args.verify:
            return check(args.target, args.processes, show)
        if args.source is None:
            parser.error("two folders are needed, SOURCE and TARGET")
        options = Options(args.size, args.format, args.quality)
        found = source_images(args.source, args.target, args.layout)
        with ExitStack() as held:
            held.enter_context(leaving_on_signals(left="and the same command resumes"))
            try:
                lock = held.enter_context(locked(args.target))
            except OSError as error:
                raise DataError(unwritable(args.target, one_sentence(error))) from error
            work = (args.source, found, args.target, options, args.processes)
            result = prepare(*work, show, lock.where)
    except (WorkerError, OSError, MemoryError) as error:
        return complain(
            f"{one_sentence(error)}; once that is mended, the same command resumes", FAILED
        )
    finally:
        show.stop()
    for name, reason in result.left_out:
        warn(f"left out: {printable(name)}: {reason}")
    say(
        f"{printable(args.target)}: {counted(result.made, 'image')} made, "
        f"{counted(result.kept, 'was', 'were')} there, {len(result.left_out)} left out"
    )
    if skipped := in_words(found.passed_over):
        say(skipped)
    if result.removed:
        say(f"{result.removed} removed: they are no longer in {printable(args.source)}")
    if result.left_out:
        say(f"{printable(args.target / LEFT_OUT)} lists what was left out, and why")
    return DONE


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("prepare", __doc__, EXIT_CODES)
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", type=path_in, help="folder of images"
    )
    parser.add_argument("target", metavar="TARGET", type=path_in, help="folder to be made")
    parser.add_argument("--verify", action="store_true", help="check TARGET against its manifest")
    parser.add_argument(
        "--size", type=whole(1, 10_000), default=256, metavar="PIXELS", help="shorter side"
    )
    parser.add_argument("--format", choices=ENDINGS, default="jpeg", help="of the files made")
    parser.add_argument(
        "--quality", type=whole(1, 100), default=95, metavar="1..100", help="of a JPEG"
    )
    parser.add_argument(
        "--processes",
        type=whole(most=1024),
        default=available_cores(),
        metavar="N",
        help="processes that work at the same time",
    )
    add_layout(parser)
    return parser


def check(target: Path, processes: int, show: Shown) -> int:
    """Name each file that is not what it was."""
    wrong = verify(target, processes, show)
    show.stop()
    for sentence in wrong:
        warn(sentence)
    advice = counted(len(wrong), "file is wrong: remove it", "files are wrong: remove them")
    say(f"{printable(target)}: " + (f"{advice}, then prepare again" if wrong else "all is well"))
    return USAGE if wrong else DONE


class Shown:
    """Progress, with images per second and the time that is left."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._what = ""
        self._begun = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` images of `total` are behind us."""
        if what != self._what:
            self.stop()
            self._what, self._begun = what, time.monotonic()
            self._progress.start(what, total)
        seconds = max(time.monotonic() - self._begun, 1e-3)
        left = f"{duration((total - done) * seconds / done)} left  " if done else ""
        self._progress.update(done, f"{left}{done / seconds:.0f} images/s")

    def stop(self) -> None:
        """Remove the bar."""
        self._progress.stop()
