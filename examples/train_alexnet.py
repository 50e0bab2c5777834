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
    evaluate,
    load_checkpoint,
    load_classifier,
    new_run,
    read_metrics,
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
from tinyalex.training.environment import environment
from tinyalex.training.evaluation import judge
from tinyalex.training.lock import locked
from tinyalex.training.options import as_arguments, read_arguments
from tinyalex.training.overfit import advice, overfit
from tinyalex.training.pictures import first_kernels, learning_curves, save_png
from tinyalex.training.progress import duration
from tinyalex.training.rehearsal import rehearse
from tinyalex.training.tensorboard import scalar_writer

OUTPUTS = {
    "best.safetensors": "the network of the epoch with the best validation, to be used",
    "last.safetensors": "the whole state of the run, to go on with more --epochs",
    "previous.safetensors": "the one before, in case the last is damaged",
    "metrics.jsonl": "losses and accuracies, one line of JSON each",
    "run.json": "settings, versions and commands",
    "filters.png": "the kernels of the first layer (Figure 3 of the paper)",
    "curves.png": "loss and accuracy over the epochs",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    started = time.monotonic()
    with ExitStack() as held:
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
                print(summary(run.classifier.model, size))
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
            steps = args.steps if (args.steps or run.total_steps) < run.total_steps else None
            stop = StopRequest(steps, started + args.time_limit if args.time_limit else None)
        except WorkerError as error:
            return complain(error, FAILED)
        except EXPECTED_ERRORS as error:
            return complain(error)
        except ArithmeticError as error:
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
    names = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    commit = f", commit {here['commit']}" if here["commit"] else ""
    print(
        f"tinyalex {here['tinyalex']}{commit}\n"
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
        f"output   {out}" + (f", from step {run.state.step} on" if run.state.step else ""),
        flush=True,
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
        write_record(run, out / "run.json")
        if not checkpoints.last.exists():
            checkpoints.save(run)
            load_checkpoint(checkpoints.last)
    except OSError as error:
        raise OSError(f"cannot write to the folder {out}: {one_sentence(error)}") from error
    return Trainer(run, checkpoints, metrics, Progress())


def write_record(run: Run, path: Path) -> None:
    """Write all that it takes to do the run again; `sessions` gets an entry whenever it goes on."""
    try:
        sessions = list(json.loads(path.read_text())["sessions"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or spoilt by somebody
        sessions = []
    record = {
        "again": command("train_alexnet.py", *as_arguments(run.settings)),
        "settings": asdict(run.settings),
        "recipe": asdict(run.settings.recipe),
        "classes": run.classifier.classes,
        "mean": run.classifier.mean_colour,
        "environment": environment(),
        "sessions": [*sessions, {"from_step": run.state.step, **environment()}],
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def train(trainer: Trainer, stop: StopRequest) -> int:
    """Train to the end, or say what stopped it and how to go on."""
    run, out = trainer.run, trainer.checkpoints.folder
    go_on = command("train_alexnet.py", "--resume", out)
    try:
        trainer.train(stop)
        with stop:
            finish(trainer, stop)
    except StoppedError as stopped:
        print(
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


def finish(trainer: Trainer, stop: StopRequest) -> None:
    """Test the network, draw the pictures, and say what there is now."""
    run, out = trainer.run, trainer.checkpoints.folder
    print(f"\ntrained {run.state.epoch} epochs in {duration(run.state.seconds)}")
    for loader in (run.train_data, run.val_data):  # their processes have done their work
        loader.close()
    if run.test_data is not None:
        best = load_classifier(out).model
        scores = evaluate(best, run.test_data, trainer.progress, stop, "testing")
        if scores is None:
            raise stop.error()
        results = {"loss": scores.loss, "top1": scores.top1, "top5": scores.top5}
        trainer.metrics.append({"kind": "test", "step": run.state.step, **results})
        print(
            f"test accuracy of the best epoch's network: {scores.top1:.1%} of {scores.count} "
            f"images that played no part in training (top-5 {scores.top5:.1%}); guessing gets "
            f"{1 / run.num_classes:.1%}"
        )
    rows = read_metrics(trainer.metrics.path)
    last = [row for row in rows if row["kind"] == "epoch"][-1]
    print(
        f"validation accuracy: {last['val_top1']:.1%} after the last epoch (top-5 "
        f"{last['val_top5']:.1%}), {run.state.best_top1:.1%} after the best, epoch "
        f"{run.state.best_epoch}"
    )
    if left_out := len(run.train_data.bad + run.val_data.bad):
        print(f"{left_out} images could not be read and were left out; they are named above")

    save_png(first_kernels(run.classifier.model), out / "filters.png")
    try:
        learning_curves(rows, run.num_classes, out / "curves.png")
    except ModuleNotFoundError:
        print("no learning curves: matplotlib is missing (pip install matplotlib)")
    print(f"in {out}:")
    for name, text in OUTPUTS.items():
        if (out / name).exists():
            print(f"  {name:17} {(out / name).stat().st_size / 1e6:7.2f} MB  {text}")
    print(f"next:\n  {command('evaluate.py', out)}\n  {command('predict.py', out)} IMAGES")


def command(script: str, *arguments: object) -> str:
    """Return a command line that runs one of the examples."""
    path = os.path.relpath(Path(__file__).with_name(script))
    return shlex.join(["python", path, *map(str, arguments)])


if __name__ == "__main__":
    sys.exit(main())
