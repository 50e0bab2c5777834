"""The training loop.

For every batch of every epoch: forward, loss, backward, update; that is `step.train_step`, the
paper's section 5. Around it `Trainer.train` logs, saves and validates. All that it remembers is in
`run.state`, so a checkpoint resumes as if training had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyalex import random
from tinyalex.backends.devices import parse
from tinyalex.calls import call_of
from tinyalex.data import Batch, DataError, Loader, WorkerError
from tinyalex.folders import FolderLostError, locked, new_folder
from tinyalex.grad_mode import no_grad
from tinyalex.interrupts import FAILED, StoppedError, StopRequest
from tinyalex.models import AlexNet
from tinyalex.progress import Progress, duration, folded, one_sentence, reason_of
from tinyalex.text import counted, printable
from tinyalex.training.checkpoint import Checkpoints
from tinyalex.training.divergence import ALONE, DivergedError, Step, explain
from tinyalex.training.evaluation import Scores, evaluate, logits_and_loss
from tinyalex.training.metrics import METRICS, Average, MetricsFile, Throughput
from tinyalex.training.run import Run
from tinyalex.training.settings import STEPS_PER_ROW
from tinyalex.training.sharded_step import ShardedSteps
from tinyalex.training.split_step import SplitSteps
from tinyalex.training.step import Steps
from tinyalex.training.transfer import digest, keep_features, set_training, span

STUCK_WITHIN = 0.005
"""The loss counts as stuck while it is within this share of ln(classes)."""


class Source(NamedTuple):
    """A network, or the part of it that learns, and its batches."""

    model: AlexNet
    data: Loader


@dataclass
class Trainer:
    """Trains a run; writes checkpoints and metrics, and reports progress.

    `on_row` is called with each row of metrics as well.
    """

    run: Run
    checkpoints: Checkpoints
    metrics: MetricsFile
    progress: Progress
    on_row: Callable[[dict[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        self.throughput = Throughput(self.run.total_steps, self.run.settings.epochs)
        self._left_out: set[str] = set()
        self._latest: Step | None = None
        self._waits = False
        self._refused = False  # the last rows of metrics, by the disk
        self._kept = False  # whether the features of frozen layers are looked after
        self._use_images()

    def _use_images(self) -> None:
        """Run the whole network on images."""
        run, model = self.run, self.run.classifier.model
        self.learning, self.validation = Source(model, run.train_data), Source(model, run.val_data)
        self.steps = steps_of(run, self.learning)

    def _renew_steps(self) -> None:
        self.steps.close()
        self.steps = steps_of(self.run, self.learning)

    def _keep_features(self, stop: StopRequest) -> bool:
        """Run only the layers that learn, where features can be kept.

        Returns False if a stop was requested meanwhile.
        """
        run, cache = self.run, self.run.settings.image_cache * 1_000_000
        if self._kept or not run.frozen or not run.ranks.alone:
            return True

        def kept(source: Source) -> Source:
            return Source(*(keep_features(*source, cache, self.progress, stop) or source))

        self.validation = kept(self.validation)
        if not run.settings.mixup:  # which blends images
            self.learning = kept(self.learning)
        self._renew_steps()
        self._kept = True
        return not stop

    def train(self, stop: StopRequest | None = None) -> None:
        """Train until `settings.epochs` epochs are done, from wherever `run.state` is.

        Raises StoppedError once `stop` asks for it, by default after a signal, and the step under
        way is done and saved, and where the folder is lost and all is saved in another; DataError
        when too many images cannot be read and WorkerError when a process that loads them ends,
        also after saving;
        DivergedError when a loss, a gradient or a weight is not finite, which leaves the last
        checkpoint from before, the best network and a report; OSError when the final checkpoint
        cannot be written (earlier ones are tried again later).
        """
        try:
            self._train_or_save(stop)
        except FolderLostError as error:
            raise self._rescue(error) from error

    def _train_or_save(self, stop: StopRequest | None) -> None:
        try:
            with StopRequest() if stop is None else stop as stop:
                self._train(stop)
        except (DataError, WorkerError):
            self._read()
            self._try(self._save, "checkpoint")
            raise
        except DivergedError:
            try:
                self._try(self.checkpoints.save_best, "best network")
            except FolderLostError as lost:
                with suppress(OSError, FloatingPointError):
                    self.progress.say(f"warning: {self._rescue(lost)}")
            raise

    def here(self) -> Path:
        """Return the run folder's current path, also after a rename.

        Raises StoppedError where it is lost, and what the run knows is saved in another.
        """
        try:
            return self._follow()
        except FolderLostError as error:
            raise self._rescue(error) from error

    def _follow(self) -> Path:
        before, now = self.metrics.path, self.checkpoints.here()
        if now != before.parent:
            self.metrics.path = now / METRICS
            self.progress.say(
                f"{printable(before.parent)} is called {printable(now)} now, and the run continues "
                "there"
            )
        return now

    def _rescue(self, lost: FolderLostError) -> StoppedError:
        """Save into a new folder beside the lost one; return the error.

        Raises FolderLostError where that cannot be done.
        """
        if not self.steps.whole:
            raise FolderLostError(
                f"{lost}, and what other ranks have learned is not here"
            ) from lost
        folder = self.checkpoints.absolute
        try:
            with locked(new_folder(folder.with_name(f"{folder.name}-rescued"))) as lock:
                self.checkpoints.move(lock)
                self.run.state.rows = 0  # metrics begin anew there
                self.checkpoints.save(self.run)
        except OSError as error:
            why = f"nothing can be saved beside it ({one_sentence(error)})"
            raise FolderLostError(f"{lost}, and {why}") from error
        return StoppedError(f"the loss of its folder ({one_sentence(lost)})", FAILED)

    def _train(self, stop: StopRequest) -> None:
        state, epochs = self.run.state, self.run.settings.epochs
        stop.lost = self._lost
        while state.epoch < epochs:
            if self._keep_features(stop):
                self._learn(stop)
            scores = None if stop else self._validate(stop)
            if scores is None:
                break
            self._end_epoch(scores)
            self._save_if_due(epoch_ends=True)
        self._save()
        if stop and state.epoch < epochs:
            raise stop.error()

    def _lost(self) -> str:
        """Return in words what ending at once would lose."""
        saved = self.checkpoints.step
        return (
            "" if saved == self.run.state.step else f", without what it learned after step {saved}"
        )

    def _learn(self, stop: StopRequest) -> None:
        """Train on the batches of an epoch, or on its rest."""
        run, state = self.run, self.run.state
        self._start_epoch()
        for batch in run.batches(state.epoch, state.batch, self.learning.data):
            step = stop.step = run.ranks.link.step = state.step + self.steps.unread + 1
            run.schedule.before_step(step - 1)
            random.start_step(step - 1)
            self._take(step, batch)
            if self._reads_now(step) or self.checkpoints.due() or stop:
                self._after_reading(self._read(), stop)
                if stop:
                    break
        self.progress.stop()

    def _start_epoch(self) -> None:
        run, state = self.run, self.run.state
        set_training(run.classifier.model)
        self.throughput.start_epoch()
        title = f"epoch {state.epoch + 1}/{run.settings.epochs}"
        self.progress.start(title, len(run.train_data), state.batch)
        self._exchanging = run.ranks.link.waited
        self._since, self._waited = time.perf_counter(), self.learning.data.wait_seconds

    def _take(self, step: int, batch: Batch) -> None:
        self._remember(step, batch, self.learning)
        try:
            self.steps.take(batch)
            if self.run.average is not None:
                self.run.average.after_step(step)
        except DivergedError as error:
            raise self._explain(error) from error

    def _after_reading(self, results: list[Average], stop: StopRequest) -> None:
        """Log, save, show and time the steps just read."""
        state, data = self.run.state, self.learning.data
        if state.step % STEPS_PER_ROW == 0 or state.batch == len(data):
            self._log_steps()
        self._save_if_due()
        waited, self._waited = data.wait_seconds - self._waited, data.wait_seconds
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        state.seconds += seconds
        self.throughput.add(waited, seconds - waited, results)
        self.progress.update(state.batch, self._describe())
        # Twice what they take: the next step or save may be a slow one.
        stop.reserve = 2 * (self.throughput.typical_step + self.checkpoints.seconds_to_save)

    def _reads_now(self, step: int) -> bool:
        """Return whether the results up to `step` are needed now."""
        unread, left = self.steps.unread, len(self.run.train_data) - self.run.state.batch
        return unread in (self.steps.every, left) or step % STEPS_PER_ROW == 0

    def _read(self) -> list[Average]:
        """Count and return the results of the steps since the last reading."""
        run, state, data = self.run, self.run.state, self.learning.data
        results = []
        try:
            for result in self.steps.read():
                state.count(result)
                results.append(result)
        except DivergedError as error:  # in a step that may not be the last: back to where it began
            run.schedule.before_step(state.step)
            random.start_step(state.step)
            batch = next(run.batches(state.epoch, state.batch, data))
            self._remember(state.step + 1, batch, self.learning)
            raise self._explain(error) from error
        return results

    def _validate(self, stop: StopRequest) -> Scores | None:
        self.steps.gather()
        with self.run.averaged():
            return self._evaluate(stop)

    def _evaluate(self, stop: StopRequest) -> Scores | None:
        started = time.perf_counter()
        model, data = self.validation
        scores = evaluate(model, data, self.progress, stop, "validating", self.run.ranks)
        self.throughput.validation_seconds = time.perf_counter() - started
        self.run.state.seconds += self.throughput.validation_seconds
        if scores is not None and not math.isfinite(scores.loss):
            error = DivergedError(f"the validation loss is {scores.loss}")
            for batch in data.epoch(0):
                with no_grad():
                    loss = logits_and_loss(model, batch)[1].item()
                if not math.isfinite(loss):
                    break
            self._remember(self.run.state.step, batch, self.validation)  # all ranks explain
            raise self._explain(error)
        return scores

    def _remember(self, step: int, batch: Batch, source: Source) -> None:
        rate, self._suspect = self.run.optimizer.param_groups[0]["lr"], source.model
        self._latest = Step(
            step,
            self.run.state.epoch + 1,
            rate,
            batch,
            source.data.dataset,
            self.steps.repeating if source is self.learning else nullcontext,
        )

    def _explain(self, error: Exception, of_all: bool = True) -> DivergedError:
        """Return the error with its cause, found by repeating the step."""
        self.steps.close()  # whose gradients would be sent when the step is repeated
        if self._latest is None:
            return DivergedError(str(error))
        self.progress.stop()
        whole, ranks = self.run.classifier.model, self.run.ranks
        here = self.checkpoints.here if ranks.first else None
        link = ranks.link if of_all else ALONE
        return explain(error, self._latest, self._suspect, here, whole, link)

    def as_begun(self, layers: list[str]) -> str:
        """Return a sentence with the digest of layers that were frozen."""
        now = digest(self.run.classifier.model, layers)
        same = "as" if now == self.run.origin["frozen"] else "NOT as"
        return f"the weights of {span(layers)} are {same} at the start: SHA-256 {now}"

    def _log_steps(self) -> None:
        """Write a row about the last steps; warn if stuck or slow."""
        run, state = self.run, self.run.state
        recent, state.since_row = state.since_row, Average()
        self.append(
            {
                "kind": "step",
                "epoch": state.epoch + 1,
                "step": state.step,
                "loss": recent.loss,
                "top1": recent.top1,
                "lr": run.optimizer.param_groups[0]["lr"],
                "time": {"seconds": round(state.seconds, 3), **self.throughput.as_row()},
            }
        )
        limit = min(1000, max(100, run.total_steps // 10))
        before = state.stuck_steps
        if abs(recent.loss / run.chance - 1) < STUCK_WITHIN:
            state.stuck_steps += recent.count // run.train_data.batch_size
        else:
            state.stuck_steps = 0
        if before < limit <= state.stuck_steps:
            self.progress.say(self._stuck_advice())
        if not self._waits and self.throughput.waits(epoch_ends=state.batch == len(run.train_data)):
            self._waits = True
            self.progress.say(
                f"{self.throughput.data_share(whole_epoch=True):.0%} of the time goes by "
                "waiting for images: raise --workers, try --worker-processes, or shrink the images "
                f"once: {call_of('prepare', self.run.settings.data or 'PHOTOS', 'CLEAN')}"
            )

    def _end_epoch(self, scores: Scores) -> None:
        """Count and log the epoch; keep the best network."""
        run, state, throughput = self.run, self.run.state, self.throughput
        learned, state.since_epoch = state.since_epoch, Average()
        state.epoch, state.batch = state.epoch + 1, 0
        run.schedule.after_epoch(1 - scores.top1)
        unfrozen = run.unfreeze_if_due(state.epoch)
        kept = is_best = state.is_best(scores.top1, scores.loss)
        if is_best:
            state.best_top1, state.best_loss = scores.top1, scores.loss
            state.best_epoch = state.epoch
        self.append(
            {
                "kind": "epoch",
                "epoch": state.epoch,
                "step": state.step,
                "loss": learned.loss,
                "top1": learned.top1,
                "val_loss": scores.loss,
                "val_top1": scores.top1,
                "val_top5": scores.top5,
                "time": {
                    "seconds": round(state.seconds, 3),
                    "validation_seconds": round(throughput.validation_seconds, 3),
                    **throughput.as_row(whole_epoch=True),
                    **(
                        {} if run.ranks.alone else {"ranks_share": round(self._waited_for_ranks, 4)}
                    ),
                },
            }
        )
        if is_best and not (kept := self.checkpoints.keep_best(run)):
            self.progress.say(
                f"{printable(self.checkpoints.best)} stays: its network was better than this"
            )
        ended = (
            f"epoch {state.epoch}/{run.settings.epochs} in {duration(throughput.epoch_seconds)}:  "
            f"training loss {learned.loss:.3f}, top-1 {learned.top1:.1%}{self._mixed};  validation "
            f"loss {scores.loss:.3f}, top-1 {scores.top1:.1%}"
            + (f", top-5 {scores.top5:.1%}" if run.num_classes > 5 else "")
            + (" (best so far)" if kept else "")
            + (
                f";  {self._waited_for_ranks:.0%} waiting for ranks"
                if run.ranks.link.size > 1
                else ""
            )
        )
        self.progress.say(folded(ended, 2))
        if unfrozen:
            self.steps.close()
            self._use_images()
            self.progress.say(folded(f"{self.as_begun(unfrozen)}; from now on they learn", 2))
        elif run.settings.size_at(state.epoch) != run.settings.size_at(state.epoch - 1):
            self._renew_steps()  # a CUDA graph is of one size
        for path, reason in run.train_data.bad + run.val_data.bad:
            if path not in self._left_out:
                self._left_out.add(path)
                self.progress.say(f"left out: {printable(path)}: {reason}")

    @property
    def _waited_for_ranks(self) -> float:
        """Share of the epoch's time that passed by waiting for other ranks."""
        waited = self.run.ranks.link.waited - self._exchanging
        return waited / max(self.throughput.epoch_seconds, 1e-9)

    @property
    def _mixed(self) -> str:
        return " (mixed images, by their larger part)" if self.run.settings.mixup else ""

    def append(self, row: dict[str, Any]) -> None:
        """Write a row of metrics and notify observers; ignore their errors."""
        self._write_metrics(lambda: self.metrics.append(row))
        self.run.state.rows = self.metrics.rows
        if self.on_row is not None:
            try:
                self.on_row(row)
            except Exception as error:  # of a package that training does without
                self.on_row = None
                warning = f"warning: no more goes to TensorBoard ({one_sentence(error)})"
                self.progress.say(warning)

    def _write_metrics(self, write: Callable[[], None]) -> None:
        """Write metrics; say once, until it works again, if that cannot be."""
        try:
            self.checkpoints.here()
            write()
            self._refused = False
        except OSError as error:
            if not self._refused:
                where, reason = self.metrics.path, reason_of(error)
                self.progress.say(f"warning: {printable(where)} cannot be written now ({reason})")
            self._refused = True

    def _save(self) -> None:
        """Write the checkpoint, after the metrics that it counts."""
        self.steps.gather()
        self._follow()
        if self.checkpoints.up_to_date(self.run):
            return
        self._write_metrics(self.metrics.sync)
        try:
            self.checkpoints.save(self.run)
        except FloatingPointError as error:
            explained = self._explain(error, of_all=False)
            explained.of_one_rank = True  # others do not look
            raise explained from error
        except OSError:
            self._follow()  # the folder may be lost by now
            raise

    def _save_if_due(self, epoch_ends: bool = False) -> None:
        if self.steps.agree_to_save(self.checkpoints.due(epoch_ends)):
            self._try(self._save, "checkpoint")

    def _try(self, save: Callable[[], None], what: str) -> None:
        """Save; a disk's error is reported and does not end training."""
        try:
            save()
        except FolderLostError:
            raise
        except OSError as error:
            when, reason = f"at step {self.run.state.step}", reason_of(error)
            stays = "; the one from before stays" if self.checkpoints.exist() else ""
            self.progress.say(f"warning: no {what} {when} ({reason}){stays}")

    def _describe(self) -> str:
        run, throughput = self.run, self.throughput
        left = throughput.seconds_left(run.state.step, run.state.epoch)
        parts = [
            f"loss {throughput.average.loss:.3f}",
            f"top-1 {throughput.average.top1:.1%}",
            *([] if left is None else [f"eta {duration(left)}"]),
            f"{throughput.images_per_second():.0f} img/s",
            f"data {throughput.data_share():.0%}",
            f"lr {run.optimizer.param_groups[0]['lr']:.2g}",
        ]
        return "  ".join(parts)

    def _stuck_advice(self) -> str:
        run, weights = self.run, "--initial-weights data, "
        if run.settings.initial_weights == "data":
            weights = ""
        return (
            f"the loss has been ln(classes) = {run.chance:.3f} for "
            f"{counted(run.state.stuck_steps, 'step')}: "
            "the network gives the same answer to every image. With 1,000 classes the first 1,000 "
            f"steps may look like this. If it lasts, try {weights}another --lr (now "
            f"{run.settings.lr:g}; half, double) or --seed, keep the variant's own input scale, "
            "and look at whether the labels fit the images: docs/no-learning.md shows each"
        )


def steps_of(run: Run, source: Source) -> Steps:
    """Return what takes a run's steps on its device."""
    settings, model = run.settings, source.model
    if run.ranks.link.size > 1 and run.ranks.parallel != "data":
        return SplitSteps(model, run.optimizer, run.ranks, source.data, run.average)
    if not run.ranks.alone:
        return ShardedSteps(model, run.optimizer, run.ranks, source.data)
    if parse(settings.device) == "cpu":
        return Steps(model, run.optimizer)
    from tinyalex.training.gpu_steps import GPUSteps  # which loads CuPy

    return GPUSteps(model, run.optimizer, settings.read_loss_every, settings.cuda_graph)
