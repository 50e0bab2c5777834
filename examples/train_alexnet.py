"""Train an AlexNet on images drawn on the fly, or on a folder of your own photographs.

python examples/train_alexnet.py                  the embedded data set, in a few minutes
python examples/train_alexnet.py --data photos    photos/cat/1.jpg, photos/dog/2.png, ...
python examples/train_alexnet.py --resume RUN     go on where a run was interrupted
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyalex import summary
from tinyalex.autograd import no_grad
from tinyalex.data import DataError, ImageFolder, WorkerError
from tinyalex.files import FileError, remove_temporaries, write_atomically
from tinyalex.models import VARIANTS
from tinyalex.training import (
    Checkpoints,
    DivergedError,
    MetricsFile,
    Progress,
    Run,
    Settings,
    StoppedError,
    StopRequest,
    Trainer,
    load_checkpoint,
    new_run,
)
from tinyalex.training.command import (
    DIVERGED,
    DONE,
    EXPECTED_ERRORS,
    FAILED,
    USAGE,
    complain,
    one_sentence,
)
from tinyalex.training.divergence import REPORT, STEP
from tinyalex.training.ending import OUTPUTS, finish
from tinyalex.training.environment import environment
from tinyalex.training.evaluation import judge
from tinyalex.training.lock import locked
from tinyalex.training.options import as_arguments, read_arguments
from tinyalex.training.overfit import advice, overfit
from tinyalex.training.progress import say
from tinyalex.training.rehearsal import rehearse
from tinyalex.training.settings import CHANGEABLE_ON_REQUEST
from tinyalex.training.signals import leaving_on_signals
from tinyalex.training.tensorboard import scalar_writer

DECISIVE = ("epochs", "threads", *CHANGEABLE_ON_REQUEST)
"""What a run that goes on may change, and what then changes its losses."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    started = time.monotonic()
    with ExitStack() as held:
        held.enter_context(leaving_on_signals())
        try:
            args, settings, checkpoint = read_arguments(argv, __doc__)
            if args.overfit:
                settings = replace(settings, dropout=0.0)
            if args.summary and checkpoint is None:  # of which pixels no mean need be taken
                run = new_run(settings, (0.0, 0.0, 0.0), np.zeros((3, 3)))
            elif checkpoint is None:
                run = new_run(settings, progress=Progress())
            else:
                run = old_run(settings, checkpoint, args.out)
            del checkpoint  # hundreds of megabytes
            print_header(run, args.out)
            if args.summary:
                size = (VARIANTS[settings.variant].in_channels, *2 * (settings.input_size,))
                say(str(summary(run.classifier.model, size)))
                return DONE
            if args.dry_run:
                rehearse(run, args.out)
                return DONE
            if args.overfit:
                return DONE if overfit(run, args.overfit) else complain(advice(run), FAILED)
            trainer = prepare(run, args.out, held, args.found, args.fallen_back)
            if args.tensorboard:
                writer = scalar_writer(args.out / "tensorboard", run.state.step)
                trainer.on_row = held.enter_context(writer)
            steps = args.steps if args.steps and args.steps < run.total_steps else None
            stop = StopRequest(steps, started + args.time_limit if args.time_limit else None)
        except WorkerError as error:
            return complain(error, FAILED)
        except MemoryError as error:
            reason = "the memory does not suffice: lower --batch-size"
            return complain(f"{reason} ({one_sentence(error)})", FAILED)
        except EXPECTED_ERRORS as error:
            return complain(error)
        except (DivergedError, FloatingPointError) as error:
            return complain(f"{one_sentence(error)}: lower --lr", DIVERGED)
        except KeyboardInterrupt:
            return 130
        return train(trainer, stop)


def old_run(settings: Settings, checkpoint: dict[str, Any], out: Path) -> Run:
    """Put together the run that the checkpoint is from, and bring it to where it was."""
    try:
        mean = checkpoint["classifier"]["mean"]
        run = new_run(settings, mean, checkpoint.get("colour_covariance"))
        run.set_state(checkpoint)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else f"no run wrote its state, {error!r}"
        raise FileError(f"the run in {out} cannot be resumed: {reason}") from error
    return run


def print_header(run: Run, out: Path) -> None:
    """Say what is about to happen."""
    here, settings, recipe = environment(), run.settings, run.settings.recipe
    parameters = sum(p.size for p in run.classifier.model.parameters())
    sizes = f"{len(run.train_data.dataset)} training, {len(run.val_data.dataset)} validation"
    if run.test_data is not None:
        sizes += f", {len(run.test_data.dataset)} test"
    datasets = (run.train_data.dataset, run.val_data.dataset)
    folders = {data.folder: data.ignored for data in datasets if isinstance(data, ImageFolder)}
    ignored = f"; {sum(folders.values())} other files ignored" if any(folders.values()) else ""
    classes = run.classifier.classes
    names = ", ".join(classes[:10]) + ", ..."
    if len(classes) <= 10:
        counts = np.bincount(run.train_data.dataset.labels, minlength=len(classes))
        names = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
    commit = f", commit {here['commit']}" if here["commit"] else ""
    say(
        f"tinyalex {here['tinyalex']}{commit}\n"
        f"command  {here['command']}\n"
        f"machine  {here['backend']} backend on {here['device']}, float32, {here['threads']} "
        f"threads, BLAS {here['blas']}, seed {settings.seed}\n"
        f"data     {settings.data or 'patterns, drawn on the fly'}: {sizes} images{ignored}\n"
        f"classes  {len(classes)}: {names}; guessing costs ln({len(classes)}) = {run.chance:.3f}\n"
        f"model    {settings.variant}, {VARIANTS[settings.variant].title}: "
        f"{parameters:,} parameters, {settings.input_size} pixels, dropout {settings.dropout:g}\n"
        f"recipe   {settings.epochs} epochs of {len(run.train_data)} steps of "
        f"{settings.batch_size} images, lr {settings.lr:g} {settings.schedule}, "
        f"momentum {recipe.momentum:g}, decay {settings.weight_decay:g}, "
        f"augmentation {settings.augment}, colour noise {settings.colour_noise}, "
        f"minus the mean {settings.mean}\n"
        f"output   {out}" + (f", from step {run.state.step} on" if run.state.step else "")
    )


def prepare(
    run: Run, out: Path, held: ExitStack, found: object = (), fallen_back: bool = False
) -> Trainer:
    """Judge a batch and write the first files, so that what will not do is found out now.

    `held` holds the folder's lock, which is for the whole run; `found` is what lay in the folder
    before the run was read from there. With `fallen_back` the last checkpoint could not be read,
    and the run goes on from the one before.
    """
    run.classifier.model.eval()
    with no_grad():
        judge(run.classifier.model, next(run.val_data.epoch(0)))
    try:
        held.enter_context(locked(out))
        checkpoints = Checkpoints(out)
        if checkpoints.found() != found:
            raise ValueError(f"another process has trained in {out} meanwhile: start once more")
        for name in (*OUTPUTS, REPORT, STEP):
            remove_temporaries(out / name)
        checkpoints.prepare(run)
        if fallen_back:
            checkpoints.put_back()
        metrics = MetricsFile(out / "metrics.jsonl", keep=run.state.rows)
        write_record(run, out)
        if not checkpoints.last.exists():
            checkpoints.save(run)
            load_checkpoint(checkpoints.last)
    except OSError as error:
        raise OSError(f"cannot write to the folder {out}: {one_sentence(error)}") from error
    return Trainer(run, checkpoints, metrics, Progress())


def write_record(run: Run, out: Path) -> None:
    """Write all that it takes to do the run again; `sessions` gets an entry whenever it goes on."""
    try:
        sessions = list(json.loads((out / "run.json").read_text())["sessions"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or spoilt by somebody
        sessions = []
    decisive = {name: getattr(run.settings, name) for name in DECISIVE}
    sessions.append({"from_step": run.state.step, **decisive, **environment()})
    changed = [n for n in DECISIVE if any(s.get(n, decisive[n]) != decisive[n] for s in sessions)]
    note = f"settings were changed on the way, as sessions say: {', '.join(changed)}"
    record = {
        "again": command("train_alexnet.py", *as_arguments(run.settings), "--out", f"{out}-again"),
        **({"again_differs": note} if changed else {}),
        "settings": asdict(run.settings),
        "recipe": asdict(run.settings.recipe),
        "classes": run.classifier.classes,
        "mean": run.classifier.mean_colour,
        "environment": environment(),
        "sessions": sessions,
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(out / "run.json", lambda file: file.write(text.encode()))


def train(trainer: Trainer, stop: StopRequest) -> int:
    """Train to the end, or say what stopped it and how to go on."""
    run, out = trainer.run, trainer.checkpoints.folder
    go_on = command("train_alexnet.py", "--resume", out)
    try:
        trainer.train(stop)
        with stop:
            finish(trainer, stop)
            evaluate, predict = command("evaluate.py", out), command("predict.py", out)
            say(f"next:\n  {evaluate}\n  {predict} IMAGES")
    except StoppedError as stopped:
        say(
            f"stopped by {stopped.reason} and saved at step {run.state.step} of "
            f"{run.total_steps}; go on: {go_on}"
        )
        return stopped.exit_code
    except DivergedError as error:
        return complain(
            f"{error}; training stopped, {trainer.checkpoints.last} is from before that; go on "
            f"from there with a lower rate (it was {run.settings.lr:g}): {go_on} --allow-change "
            f"--lr {run.settings.lr / 2:g}",
            DIVERGED,
        )
    except FileError as error:
        return complain(f"{error}; remove it, and the last network takes its place: {go_on}")
    except DataError as error:
        return complain(
            f"{one_sentence(error)}; replace them under the same names and go on: {go_on}; or "
            "remove them and begin anew with another --out",
            USAGE,
        )
    except (OSError, WorkerError) as error:
        return complain(f"{one_sentence(error)}; once that is mended, go on: {go_on}", FAILED)
    except MemoryError:
        return complain(
            f"the memory does not suffice: keep fewer images in it ({go_on} --image-cache 0), or "
            f"lower --batch-size (now {run.settings.batch_size}) and begin anew with another --out",
            FAILED,
        )
    except KeyboardInterrupt:
        return 130
    return DONE


def command(script: str, *arguments: object) -> str:
    """Return a command line that runs one of the examples."""
    path = os.path.relpath(Path(__file__).with_name(script))
    return shlex.join(["python", path, *map(str, arguments)])


if __name__ == "__main__":
    sys.exit(main())
