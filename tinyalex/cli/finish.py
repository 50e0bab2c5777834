"""The end of a run: test, pictures, and a list of files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tinyalex.calls import call_of
from tinyalex.cli.network import Network, read_network
from tinyalex.cli.report import Splits, write_report
from tinyalex.files import FileError
from tinyalex.interrupts import StopRequest
from tinyalex.pictures.charts import learning_curves
from tinyalex.pictures.sheets import failure, first_filters, save_png
from tinyalex.progress import duration, folded, one_sentence
from tinyalex.text import counted, percent, printable
from tinyalex.training.checkpoint import BEST, LAST, classifier_in, state_in
from tinyalex.training.evaluation import evaluate
from tinyalex.training.metrics import METRICS, read_metrics, rows_of
from tinyalex.training.run import Run
from tinyalex.training.run_folder import OUTPUTS
from tinyalex.training.trainer import Trainer


def finish(trainer: Trainer, stop: StopRequest, report: bool = True) -> None:
    """Test the network, draw the pictures, and say what there is now.

    Raises StoppedError after a signal or the time limit.
    """
    run, out = trainer.run, trainer.here()
    say = trainer.progress.say

    def tell(text: str) -> None:
        say(folded(text, 2))

    say(f"\ntrained {counted(run.state.epoch, 'epoch')} in {duration(run.state.seconds)}")
    for loader in (run.train_data, run.val_data):  # their processes have done their work
        loader.close()
    network, whose = None, "best"
    try:
        network = read_network(out / BEST)
    except FileNotFoundError:  # it was removed
        pass
    except FileError as error:
        trainer.checkpoints.put_best_aside()
        say(f"warning: {one_sentence(error)}; the network of the last epoch takes its place")
    if network is None:
        content, path, whose = run.get_result(), out / LAST, "last"
        network = Network(classifier_in(content, path), path, content)
    best = state_in(network.content or {}, network.path)
    if run.test_data is not None:
        stop.under_way = "all is saved: ending the test"
        model = network.classifier.model.to(run.settings.device)
        scores = evaluate(model, run.test_data, trainer.progress, stop, "testing")
        if scores is None:
            rest = ", the pictures and the report" if report else " and the pictures"
            raise stop.error(f"the test{rest}")
        results = {"loss": scores.loss, "top1": scores.top1, "top5": scores.top5}
        trainer.append({"kind": "test", "step": run.state.step, **results})
        tell(
            f"test accuracy of the {whose} epoch's network: {scores.top1:.1%} of "
            f"{counted(scores.count, 'image')} that played no part in training (top-5 "
            f"{scores.top5:.1%})"
        )
    out, rows = trainer.here(), []
    with suppress(OSError):  # it was removed
        rows = read_metrics(out / METRICS)
    last = max(rows_of("epoch", rows), key=lambda row: row["epoch"], default=None)
    of_last = f"{last['val_top1']:.1%} after the last epoch, " if last else ""
    tell(
        f"validation accuracy: {of_last}{best.best_top1:.1%} "
        f"after the best, epoch {best.best_epoch}; guessing gets {percent(1 / run.num_classes, 1)}"
    )
    if last and last["val_loss"] >= run.chance:
        tell(
            f"the last validation loss, {last['val_loss']:.3f}, is no better than that of guessing"
            f", {run.chance:.3f}: try more --epochs, more images, or another --lr (now "
            f"{run.settings.lr:g}); docs/no-learning.md tells the causes apart"
        )
    if run.frozen:
        tell(trainer.as_begun(run.frozen))
    if left_out := len(run.train_data.bad + run.val_data.bad):
        tell(f"{counted(left_out, 'image')} could not be read and stayed out, as named above")

    old = {"filters.png", "curves.png", "report.html"}

    def draw(name: str, make: Callable[[Path], None]) -> None:
        if reason := failure(partial(make, out / name)):
            say(f"no {'new ' if (out / name).exists() else ''}{name}: {one_sentence(reason)}")
        else:
            old.remove(name)

    stop.under_way = "all is saved: finishing the pictures"
    draw("filters.png", partial(draw_filters, run))
    if last is not None:  # else the metrics were removed
        draw("curves.png", partial(learning_curves, rows, run.num_classes))
    missing = "the report" if report and stop.reason is not None else ""
    if report and not missing:  # there is time for another look at images
        stop.under_way = "all is saved: finishing the report"
        draw("report.html", partial(draw_report, trainer, network))
    say(f"in {printable(out)}:")
    for name, text in OUTPUTS.items():
        if (out / name).is_file():
            size = (out / name).stat().st_size / 1e6
            text += " (from before, not drawn anew)" if name in old else ""
            say(folded(f"  {name:20} {size:7.2f} MB  {text}", 35))
    if stop.reason is not None:
        raise stop.error(missing, call_of("report", out) if missing else "")


def draw_report(trainer: Trainer, network: Network, path: Path) -> None:
    """Write the page on a run, and say what it lacks."""
    run = trainer.run
    network.classifier.model.to(run.settings.device)
    held_out, training = (run.test_data or run.val_data).dataset, run.train_data.dataset
    splits = Splits(lambda: held_out, lambda: training)
    for name, reason in write_report(network, splits, path, trainer.progress).items():
        trainer.progress.say(f"report.html is without {name}: {reason}")


def draw_filters(run: Run, path: Path) -> None:
    """Draw the filters of the network that a run keeps."""
    with run.averaged():
        save_png(first_filters(run.classifier.model), path)
