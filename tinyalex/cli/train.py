"""Train an AlexNet on drawn images or on your own photographs.

tinyalex train                  the embedded data set, in a few minutes
tinyalex train --data photos    photos/cat/1.jpg, photos/dog/2.png, ...
tinyalex train --resume RUN     resume a run where it was interrupted
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinyalex import summary
from tinyalex.backends.cuda.operands import stores_bfloat16
from tinyalex.backends.devices import DeviceError, parse, set_place
from tinyalex.calls import call_of
from tinyalex.cli.common import command, complain
from tinyalex.cli.dry_run import dry_run
from tinyalex.cli.finish import finish
from tinyalex.cli.jointly import jointly
from tinyalex.cli.network import recipe_of, weights_of
from tinyalex.cli.overfit import overfit
from tinyalex.cli.tensorboard import shown_by_tensorboard
from tinyalex.cli.train_options import Arguments, as_arguments, check_head, read_arguments
from tinyalex.data import DataError, ImageFolder, WorkerError
from tinyalex.data.index import in_words
from tinyalex.distributed.communicator import Communicator
from tinyalex.distributed.launch import launched, share_cores, together
from tinyalex.distributed.plan import Machine, cost, layers_of
from tinyalex.folders import FolderLostError
from tinyalex.interrupts import DIVERGED, DONE, FAILED, USAGE, leaving_on_signals
from tinyalex.models import VARIANTS
from tinyalex.progress import Progress, folded, one_sentence, say
from tinyalex.text import counted, printable
from tinyalex.training import (
    DivergedError,
    Run,
    StoppedError,
    StopRequest,
    Trainer,
    new_run,
)
from tinyalex.training.build import resumed_run
from tinyalex.training.environment import environment
from tinyalex.training.follower import Follower
from tinyalex.training.ranks import Ranks, SharedStop
from tinyalex.training.run_folder import open_run_folder
from tinyalex.training.sharded_step import RankError, check_alike

PRODUCTS = {"highest": "", "high": " with TF32 products", "medium": " with bfloat16 products"}


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    started = time.monotonic()
    with ExitStack() as held:
        place = launched()
        follows = place is not None and place.rank > 0  # the first rank speaks for all
        held.enter_context(leaving_on_signals(pause=True, silent=follows))
        link = held.enter_context(together())
        share_cores(link)
        set_place(link.place)
        if follows:
            held.enter_context(redirect_stdout(None))
        asked = jointly(link, lambda: [read_arguments(argv, __doc__, link.size)])
        if isinstance(asked, int):
            return asked
        link.timeout = asked[0][0].exchange_timeout
        begun = jointly(link, lambda: begin(asked.pop(), started, link, held))
        return begun if isinstance(begun, int) else train(*begun)


def begin(
    asked: Arguments, started: float, link: Communicator, held: ExitStack
) -> tuple[Trainer, StopRequest, bool] | int:
    """Return a run's trainer and whether to report, or the exit code."""
    args, settings, checkpoints, checkpoint = asked
    del asked  # which has the checkpoint, too
    ranks = Ranks(link, settings.shards, settings.parallel, args.check_sync)
    try:
        if args.overfit:
            settings = replace(settings, dropout=0.0)
        if args.summary and checkpoint is None:  # of which pixels no mean need be taken
            mean = args.start.mean if args.start else (0.0, 0.0, 0.0)
            run = new_run(settings, mean, np.zeros((3, 3)), start=args.start)
        elif checkpoint is None:
            run = new_run(settings, progress=Progress(), start=args.start, ranks=ranks)
        else:
            run = resumed_run(settings, checkpoint, args.out, ranks)
        check_head(args, run)
        del checkpoint, args.start  # hundreds of megabytes
        if link.size > 1:
            check_alike(run)
            link.connect(settings.device)
        print_header(run, args.out)
        if args.summary:
            size = (VARIANTS[settings.variant].in_channels, *2 * (settings.input_size,))
            say(str(summary(run.classifier.model, size)))
            return DONE
        if run.state.epoch == settings.epochs:
            epochs = counted(settings.epochs, "epoch")
            left = f"nothing is left to train: the run has its {epochs} (more --epochs train on)"
            anew = "" if args.dry_run else "; its pictures are drawn anew"
            say(folded(left + anew, 2))
        if args.dry_run:
            dry_run(run, args.out)
            return DONE
        if args.overfit:
            trouble = overfit(run, args.overfit)
            return complain(trouble, FAILED) if trouble else DONE
        steps = args.steps if args.steps and args.steps < run.total_steps else None
        deadline = started + args.time_limit if args.time_limit else None
        if link.size == 1:
            stop = StopRequest(steps, deadline)
        else:
            stop = ranks.stop = SharedStop(steps, deadline)
        place = ("--out", Path(f"{args.out}-again"))
        again = call_of("train", *as_arguments(settings), *place)
        trainer: Trainer
        if ranks.first:
            trainer = held.enter_context(open_run_folder(run, checkpoints, stop, again))
        else:
            trainer = Follower(run, args.out)
            stop.silent = True
            held.enter_context(stop)
        if args.tensorboard and ranks.first:
            held.enter_context(shown_by_tensorboard(trainer))
    except MemoryError as error:
        reason = "the memory does not suffice: lower --batch-size"
        return complain(f"{reason} ({one_sentence(error)})", FAILED)
    except (DivergedError, FloatingPointError) as error:
        return complain(f"{one_sentence(error)}: lower --lr", DIVERGED)
    return trainer, stop, args.report


def print_header(run: Run, out: Path) -> None:
    """Say what is about to happen."""
    settings = run.settings
    here = environment(settings.device)
    arithmetic = ["float32" + PRODUCTS[settings.precision]]
    if "gpu" in here:
        arithmetic += ["activations in bfloat16"] if stores_bfloat16() else []
        here["device"] += f" ({here['gpu']}, {here['gpu_memory'] / 1e9:.0f} GB)"
        arithmetic += ["a CUDA graph"] if settings.cuda_graph else []
        arithmetic += [f"CuPy {here['cupy']}, CUDA {here['cuda']}, driver {here['driver']}"]
    parameters = sum(p.size for p in run.classifier.model.parameters())
    splits = {"training": run.train_data, "validation": run.val_data, "test": run.test_data}
    *others, last = ((len(data.dataset), name) for name, data in splits.items() if data)
    sizes = "".join(f"{count} {name}, " for count, name in others)
    sizes += counted(last[0], f"{last[1]} image")
    datasets = (run.train_data.dataset, run.val_data.dataset)
    folders = {data.folder: data.passed_over for data in datasets if isinstance(data, ImageFolder)}
    skipped = in_words(sum(folders.values(), Counter()))
    sizes += f"; {skipped}" if skipped else ""
    classes = run.classifier.classes
    names = ", ".join(map(printable, classes[:10])) + ", ..."
    if len(classes) <= 10:
        counts = np.bincount(run.train_data.dataset.labels, minlength=len(classes))
        shown = zip(map(printable, classes), counts, strict=True)
        names = ", ".join(f"{name} {count}" for name, count in shown)
    commit = f", commit {here['commit']}" if here["commit"] else ""
    data = printable(settings.data) if settings.data else "patterns, drawn on the fly"
    from_step = f", from step {run.state.step} on" if run.state.step else ""
    say(folded(f"tinyalex {here['tinyalex']}{commit}", 9))
    say(f"command  {here['command']}")  # in one piece, to be pasted
    rows = {
        "machine": f"{here['backend']} backend on {here['device']}, {', '.join(arithmetic)}, "
        f"{here['threading']}, BLAS {here['blas']}, seed {settings.seed}",
        "data": f"{data}: {sizes}",
        "classes": f"{len(classes)}: {names}; guessing costs ln({len(classes)}) = {run.chance:.3f}",
        "model": f"{settings.variant}, {VARIANTS[settings.variant].title}: "
        f"{parameters:,} parameters, {settings.input_size} pixels, dropout {settings.dropout:g}",
        **(
            {"weights": weights_of(settings, run.classifier, run.origin, run.frozen)}
            if run.origin
            else {}
        ),
        "recipe": f"{counted(settings.epochs, 'epoch')} of {counted(len(run.train_data), 'step')} "
        f"of {counted(run.train_data.batch_size, 'image')}, {recipe_of(settings)}",
        **({} if run.ranks.alone else {"ranks": ranks_of(run)}),
        "output": f"{printable(out)}{from_step}",
    }
    for name, text in rows.items():
        say(folded(f"{name:8} {text}", 9))


def ranks_of(run: Run) -> str:
    """Return a sentence on the processes that train a run together."""
    link, shards = run.ranks.link, run.ranks.shards
    kept_by_one = run.frozen and run.settings.augment == "none"
    anew = "; what frozen layers make of an image is computed in every epoch" if kept_by_one else ""
    if link.size == 1:
        return f"1, which computes {counted(shards, 'shard')} of each batch{anew}"
    hosts = Counter(map(printable, link.hosts))
    places = ", ".join(f"{count} on {host}" for host, count in hosts.items())
    learning = [p for p in run.classifier.model.parameters() if p.requires_grad]
    sent = 2 * (link.size - 1) / link.size * sum(p.data.nbytes for p in learning)
    if run.ranks.parallel != "data":
        layers = layers_of(run.classifier.model.variant, run.num_classes, run.settings.input_size)
        of_all = layers, run.ranks.parallel, link.size, run.train_data.batch_size
        sent = cost(*of_all, Machine(rate=1, link=1, latency=0)).sent
    idle = link.size - shards if run.ranks.parallel == "data" else 0
    return (
        f"{link.size} ({places}) by {link.engine}, {run.ranks.parallel}, "
        f"{counted(shards, 'shard')}, each rank sends {sent / 1e6:.1f} MB per step"
        + (f"; {counted(idle, 'has', 'have')} no shard, and nothing to do" if idle > 0 else "")
        + anew
    )


def train(trainer: Trainer, stop: StopRequest, report: bool = True) -> int:
    """Train to the end, or report the interruption and how to resume."""
    run, ranks = trainer.run, trainer.run.ranks
    apart = ranks.link.size == 1  # from the other ranks

    def end(message: BaseException | str, code: int, all_know: bool = False) -> int:
        """Say why this ends, also to the other ranks; return the code."""
        if not (apart or all_know):
            ranks.link.abort(message if isinstance(message, str) else one_sentence(message), code)
        return complain(message, code) if ranks.first else code

    try:
        try:
            trainer.train(stop)
            apart = True
            if isinstance(stop, SharedStop):
                stop.alone = True
            if ranks.first:
                finish(trainer, stop, report)
            ranks.link.close()  # the others wait for the first here
            if not ranks.first:
                return DONE
        finally:  # it may have got another name, or another folder
            out = trainer.checkpoints.folder
            resume = call_of("train", "--resume", out)
            if ranks.size > 1:
                resume = f"mpiexec -n {ranks.size} {resume}"
        device = run.settings.device
        there = () if device == "cpu" else ("--device", device)
        evaluate, predict = (call_of(what, out, *there) for what in ("evaluate", "predict"))
        say(f"next:\n  {evaluate}\n  {predict} IMAGES")
    except StoppedError as stopped:
        if not (apart or stop):  # of this rank alone
            return end(f"stopped by {stopped.reason}", stopped.exit_code)
        if stopped.missing is not None:
            missing = f"{stopped.missing} can follow: {stopped.call or resume}"
            rest = missing if stopped.missing else "nothing is missing"
            say(f"stopped by {stopped.reason} once training was over and saved; {rest}")
            return stopped.exit_code
        say(
            f"stopped by {stopped.reason} and saved at step {run.state.step} of "
            f"{run.total_steps}; resume: {resume}"
        )
        return stopped.exit_code
    except RankError as error:
        return end(
            f"{error}; the last checkpoint may be from after that began; resume: {resume}",
            FAILED,
            all_know=True,
        )
    except DivergedError as error:
        return end(
            f"{error}; training stopped, {printable(trainer.checkpoints.last)} is from before "
            f"that; resume from there with a lower rate (it was {run.settings.lr:g}): {resume} "
            f"--allow-change --lr {run.settings.lr / 2:g}",
            DIVERGED,
            all_know=not error.of_one_rank,
        )
    except DataError as error:
        return end(
            f"{one_sentence(error)}; replace them under the same names and resume: {resume}; or "
            "remove them and begin anew with another --out",
            USAGE,
            all_know=True,
        )
    except FolderLostError as error:
        return end(error, FAILED)
    except (OSError, WorkerError) as error:
        known = isinstance(error, WorkerError)
        return end(f"{one_sentence(error)}; once that is mended, resume: {resume}", FAILED, known)
    except MemoryError as error:
        if isinstance(error, DeviceError) or run.settings.device != "cpu":
            return end(
                f"the memory of {parse(run.settings.device)} does not suffice, but did when the "
                f"run began ({one_sentence(error)}): end what else is using it and resume: "
                f"{resume}",
                FAILED,
            )
        return end(
            f"the memory does not suffice: keep fewer images in it ({resume} --image-cache 0), or "
            f"lower --batch-size (now {run.settings.batch_size}) and begin anew with another --out "
            f"({one_sentence(error)})",
            FAILED,
        )
    except DeviceError as error:
        return end(f"{one_sentence(error)}; resume: {resume}", FAILED)
    return DONE
