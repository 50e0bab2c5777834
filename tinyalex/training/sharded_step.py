"""Training step on shards of a batch, on one rank or several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from hashlib import sha256
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import numpy as np

import tinyalex.functional as F
from tinyalex.backends import array_module
from tinyalex.backends.devices import device_of, using
from tinyalex.backends.sharded import sharded
from tinyalex.backends.shards import Part
from tinyalex.backends.types import Array
from tinyalex.data import Batch, Loader
from tinyalex.distributed.communicator import Pending
from tinyalex.models import AlexNet
from tinyalex.optim import SGD
from tinyalex.tensor import Tensor
from tinyalex.training.divergence import NOT_FINITE, DivergedError, not_finite
from tinyalex.training.evaluation import device_of_model
from tinyalex.training.metrics import Average, hits
from tinyalex.training.ranks import LOSSES, Ranks
from tinyalex.training.run import Run
from tinyalex.training.step import Steps
from tinyalex.training.transfer import digest

OWN = ("data", "workers", "worker_processes", "image_cache", "index_cache")
"""Settings that each rank may have for itself."""


class RankError(RuntimeError):
    """Ranks whose networks are not the same any more."""


def check_equal(ranks: Ranks, model: AlexNet, layers: Iterable[str] | None = None) -> None:
    """Raise RankError where ranks have other weights in layers, by default all.

    It names the first of them. Those of two towers are compared with their likes.
    """
    digests = ranks.link.share("digests of weights", digest(model, layers)).wait()
    for rank, found in enumerate(digests):
        like = digests[rank % ranks.peers :: ranks.peers]
        usual, votes = Counter(like).most_common(1)[0]
        if found != usual:
            which = "its machine" if votes > len(like) / 2 else "one of these machines"
            raise RankError(
                f"the weights of rank {rank} ({ranks.link.hosts[rank]}) are not those of rank "
                f"{digests.index(usual)} (SHA-256 {found} and {usual}): {which} computes "
                "otherwise, or is faulty"
            )


def check_alike(run: Run) -> None:
    """Raise ValueError where ranks begin with other things than rank 0."""
    settings = {name: value for name, value in asdict(run.settings).items() if name not in OWN}
    state = {name: value for name, value in asdict(run.state).items() if name != "seconds"}
    mean = np.asarray(run.classifier.mean)
    own = {
        **settings,
        "number of steps": state["step"],
        "state": state,
        "images": run.data_digest(),
        "mean of the images": sha256(mean.tobytes()).hexdigest(),
        "weights": digest(run.classifier.model),
    }
    first, *others = run.ranks.link.share("what ranks begin with", own).wait()
    for rank, other in enumerate(others, 1):
        for name, value in other.items():
            if value != first[name]:
                raise ValueError(
                    f"rank {rank} ({run.ranks.link.hosts[rank]}) begins with another {name} than "
                    f"rank 0, {value} for {first[name]}: give all ranks the same command and files"
                )


class ShardedSteps(Steps):
    """`Steps` on this rank's shards, with the sums of all ranks.

    What is learned from a batch is the same, bit for bit, for any number of ranks with as many
    shards and as many threads. Gradients are sent, layer by layer, while backward computes others:
    those of the fully connected layers, 96 % of the bytes, come first, and nearly all of backward's
    arithmetic after them.
    """

    compared: Iterable[str] | None = None
    """Layers whose weights are the same on other ranks, None for all."""
    elsewhere: Mapping[str, np.ndarray] = MappingProxyType({})
    """Empty gradients of parameters that other ranks sum, and this one lacks."""

    def __init__(
        self,
        model: AlexNet,
        optimizer: SGD,
        ranks: Ranks,
        data: Loader,
        summed: Iterable[str] | None = None,
    ) -> None:
        super().__init__(model, optimizer)
        self._network = model
        self._ranks, self._data = ranks, data
        self._on_their_way: list[Pending[None]] = []
        self._biases: list[Array] = []
        parameters = dict(model.named_parameters())
        self._hooks = [
            parameters[name].register_post_accumulate_grad_hook(self._sender(name))
            for name in (parameters if summed is None else summed)
            if name in parameters and parameters[name].requires_grad
        ]

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _sender(self, name: str) -> Any:
        def send(parameter: Tensor) -> None:
            if self._ranks.link.size > 1:
                self._send(name, parameter.grad)

        return send

    def _send(self, name: str, gradient: Array) -> None:
        """Begin a gradient's sum over ranks; biases wait for each other."""
        if gradient.ndim == 1:
            self._biases.append(gradient)
        else:
            self._on_their_way.append(self._sum(f"the gradient of {name}", gradient))

    def _sum(self, label: str, gradient: Array) -> Pending[None]:
        return self._ranks.link.sum(label, gradient, self._ranks.tree)

    def _wait(self) -> None:
        """Wait until the gradients are those of all ranks."""
        if self._biases:  # a request for each would take longer than its few bytes
            here = [gradient for gradient in self._biases if gradient.size] or self._biases[:1]
            with using(device_of(here[0])):
                joined = array_module(here[0]).concatenate(here)
                self._on_their_way.append(self._sum("the gradients of biases", joined))
        for pending in self._on_their_way:
            pending.wait()
        if self._biases:
            with using(device_of(joined)):
                for gradient, end in zip(here, accumulate(map(len, here)), strict=True):
                    gradient[...] = joined[end - len(gradient) : end]
        self._biases.clear()
        self._on_their_way.clear()

    def repeating(self, batch: Batch) -> AbstractContextManager[None]:
        """Let kernels compute a batch in shards, as in `take`."""
        return sharded(self._part(batch))

    def _part(self, batch: Batch) -> Part:
        """Return this rank's part of the batch of all ranks."""
        return self._ranks.part(self._data.batch_size, len(batch))

    def _agreed(self, wrong: str | None) -> str | None:
        """Return the gradient that is not finite on any rank."""
        return wrong

    @np.errstate(over="ignore", invalid="ignore")  # what comes of an overflow is looked for
    def take(self, batch: Batch) -> None:
        """Learn from this rank's part of a batch.

        Raises DivergedError as `train_step` does, DataError and WorkerError as `Ranks.tell`, and
        RankError where weights differ.
        """
        ranks, optimizer, device = self._ranks, self._optimizer, device_of_model(self._model)
        optimizer.zero_grad()
        with sharded(self._part(batch)):
            logits = self._model(Tensor(batch.images).to(device))
            labels = batch.labels[: len(logits)]  # the second of two towers has no logits
            target = labels if batch.targets is None else batch.targets[: len(logits)]
            losses = F.cross_entropy(logits, Tensor(target).to(device), reduction="none")
            right = hits(logits.detach().cpu().numpy(), labels)
            own = losses.detach().cpu().numpy().tolist()
            told = ranks.tell(LOSSES, self._data, losses=own, hits=int(right.sum()))
            everything = [loss for one in told for loss in one["losses"]]
            if not math.isfinite(total := math.fsum(everything)):
                raise DivergedError(f"the loss is {total / len(everything)}")
            for name, nothing in self.elsewhere.items():
                self._send(name, nothing)
            share = np.full(len(losses), 1 / len(everything), np.float32)
            if losses.requires_grad:  # this rank's part has something to learn
                losses.backward(Tensor(share).to(device))
        self._wait()
        gradients = {n: p.grad for n, p in self._model.named_parameters() if p.grad is not None}
        if wrong := self._agreed(not_finite(gradients)):
            raise DivergedError(f"the gradient of {wrong} {NOT_FINITE}")
        optimizer.step()
        correct = sum(one["hits"] for one in told)
        self._results.append(Average(total, correct, len(everything)))
        if ranks.check_sync and (ranks.link.step or 0) % ranks.check_sync == 0:
            check_equal(ranks, self._network, self.compared)
