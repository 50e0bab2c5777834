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
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyalex.data import DataError, ImageFolder, WorkerError
from tinyalex.files import remove_temporaries, write_atomically
from tinyalex.models import VARIANTS
from tinyalex.training import (
    Checkpoints,
    DivergedError,
    MetricsFile,
    Progress,
    Run,
    Settings,
    StoppedError,
    Trainer,
    evaluate,
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
from tinyalex.training.environment import environment
from tinyalex.training.lock import locked
from tinyalex.training.options import read_arguments
from tinyalex.training.pictures import filter_grid, learning_curves
from tinyalex.training.progress import duration
from tinyalex.training.rehearsal import rehearse

OUTPUTS = {
    "best.safetensors": "the network of the epoch with the best validation, to be used",
    "last.safetensors": "the whole state of the run, to go on with more --epochs",
    "metrics.jsonl": "losses and accuracies, one line of JSON each",
    "run.json": "settings and versions",
    "filters.png": "the kernels of the first layer (Figure 3 of the paper)",
    "curves.png": "loss and accuracy over the epochs",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    with ExitStack() as held:
        try:
            args, settings, checkpoint = read_arguments(argv, __doc__)
            if checkpoint is None:
                run = new_run(settings, progress=Progress())
            else:
                run = old_run(settings, checkpoint, args.out)
            del checkpoint  # hundreds of megabytes
            print_header(run, args.out)
            if args.dry_run:
                rehearse(run, args.out)
                return DONE
            trainer = prepare(run, args.out, held)
        except EXPECTED_ERRORS as error:
            return complain(error)
        except ArithmeticError as error:
            return complain(f"{one_sentence(error)}: lower --lr", DIVERGED)
        except KeyboardInterrupt:
            return 130
        return train(trainer)


def old_run(settings: Settings, checkpoint: dict[str, Any], out: Path) -> Run:
    """Put together the run that the checkpoint is from, and bring it to where it was."""
    try:
        mean = checkpoint["classifier"]["mean"]
        run = new_run(settings, mean, checkpoint.get("colour_covariance"))
        run.set_state(checkpoint)
    except (ValueError, KeyError) as error:
        raise ValueError(f"the run in {out} cannot be resumed: {error}") from error
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
    print(
        f"tinyalex {here['tinyalex']}: {here['backend']} backend, {here['threads']} threads, "
        f"BLAS {here['blas']}, seed {settings.seed}\n"
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


def prepare(run: Run, out: Path, held: ExitStack) -> Trainer:
    """Write the first files of a run, so that a disk that will not do is found out now.

    `held` holds the folder's lock, which is for the whole run.
    """
    try:
        held.enter_context(locked(out))
        for name in OUTPUTS:
            remove_temporaries(out / name)
        checkpoints = Checkpoints(out)
        checkpoints.prepare(run)
        metrics = MetricsFile(out / "metrics.jsonl", keep=run.state.rows)
        record = {
            "settings": asdict(run.settings),
            "recipe": asdict(run.settings.recipe),
            "classes": run.classifier.classes,
            "mean": run.classifier.mean_colour,
            "resumed_at_step": run.state.step,
            "environment": environment(),
        }
        text = json.dumps(record, indent=2) + "\n"
        write_atomically(out / "run.json", lambda file: file.write(text.encode()))
        if not checkpoints.last.exists():
            checkpoints.save(run)
    except OSError as error:
        raise OSError(f"cannot write to the folder {out}: {one_sentence(error)}") from error
    return Trainer(run, checkpoints, metrics, Progress())


def train(trainer: Trainer) -> int:
    """Train to the end, or say what stopped it and how to go on."""
    run, out = trainer.run, trainer.checkpoints.folder
    go_on = command("train_alexnet.py", "--resume", out)
    try:
        trainer.train()
        finish(trainer)
    except StoppedError as stopped:
        print(f"stopped and saved at step {run.state.step} of {run.total_steps}; go on: {go_on}")
        return stopped.exit_code
    except DivergedError as error:
        return complain(
            f"{error} in step {run.state.step + 1} (epoch {run.state.epoch + 1}), so training "
            f"stopped; {trainer.checkpoints.last} is from before that; begin anew with another "
            f"--out and a lower --lr (it was {run.settings.lr:g})",
            DIVERGED,
        )
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


def finish(trainer: Trainer) -> None:
    """Test the network, draw the pictures, and say what there is now."""
    run, out = trainer.run, trainer.checkpoints.folder
    print(f"\ntrained {run.state.epoch} epochs in {duration(run.state.seconds)}")
    if run.test_data is not None:
        best = load_classifier(out).model
        scores = evaluate(best, run.test_data, trainer.progress, title="testing")
        assert scores is not None
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

    grid = filter_grid(run.classifier.model.weight_layers["conv1"].weight.data)
    write_atomically(out / "filters.png", lambda file: grid.save(file, "PNG"))
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
