"""Training step on ranks that have parts of the network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tinyalex.backends.devices import device_of, move
from tinyalex.backends.shards import Part
from tinyalex.data import Batch, Loader, WorkerError
from tinyalex.distributed.split import Split
from tinyalex.models import AlexNet
from tinyalex.optim import SGD
from tinyalex.training.average import WeightAverage
from tinyalex.training.divergence import DivergedError
from tinyalex.training.ranks import LOSSES, Ranks
from tinyalex.training.sharded_step import ShardedSteps


class SplitSteps(ShardedSteps):
    """`ShardedSteps` of this rank's part of the network, which is `distributed.split.Split`.

    The part shares the memory of the whole network and its velocities, so those rows of these that
    are this rank's are up to date, and `gather` brings the others: before they are validated,
    saved, or looked at. What is learned is that of one process but for rounding.
    """

    def __init__(
        self,
        model: AlexNet,
        optimizer: SGD,
        ranks: Ranks,
        data: Loader,
        average: WeightAverage | None = None,
    ) -> None:
        self._split = split = Split(model, ranks.parallel, ranks.link)
        self._of_all, self._average = optimizer, average
        parameters = dict(model.named_parameters())
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        own = optimizer.of_rows(lambda parameter: split.rows[self._names[id(parameter)]])
        super().__init__(split.model, own, ranks, data, split.summed)
        if ranks.parallel == "hybrid":
            self.compared = [name for name in model.weight_layers if name.startswith("conv")]
        here = {name for name, _ in split.model.named_parameters()}
        learning = {name: parameters[name] for name in split.summed if name not in here}
        self.elsewhere = {
            name: np.empty((0,) * p.ndim, p.dtype)
            for name, p in learning.items()
            if p.requires_grad
        }

    def take(self, batch: Batch) -> None:
        """Learn from this rank's part of a batch, as `ShardedSteps.take`.

        Raises WorkerError, too, where two towers have not read the same images.
        """
        indices = batch.indices.tolist()
        told = self._ranks.tell(LOSSES, self._data, images=indices)  # as first in `Ranks.watched`
        read = [one["images"] for one in told]
        for rank, images in enumerate(read):
            if images != read[first := rank - rank % self._ranks.peers]:
                raise WorkerError(f"ranks {first} and {rank} have not read the same images")
        self._split.images[:] = map(len, read)
        groups = zip(self._optimizer.param_groups, self._of_all.param_groups, strict=True)
        for own, group in groups:
            own.update({**group, "params": own["params"]})
        try:
            super().take(batch)
        except DivergedError:
            self.gather()
            raise
        self.whole = False

    def _part(self, batch: Batch) -> Part:
        return self._ranks.part_of_counts(self._split.images)

    def _agreed(self, wrong: str | None) -> str | None:
        told = self._ranks.link.share("gradients that are not finite", wrong).wait()
        return next(filter(None, told), None)

    def agree_to_save(self, due: bool) -> bool:
        """Return whether the rank that writes is due to save."""
        return any(self._ranks.link.share("saves that are due", due).wait())

    def gather(self) -> None:
        """Get the rows of other ranks; all call it at once."""
        if self.whole:
            return
        split, link = self._split, self._ranks.link
        for label, array, rows in self._divided():
            own = array[:0] if split.first else array[rows]  # others have the same
            host = move(array, "cpu")
            np.concatenate(link.gather(label, move(own, "cpu")).wait(), out=host)
            if host is not array:
                array[...] = move(host, device_of(array))
        self.whole = True

    def _divided(self) -> Iterator[tuple[str, np.ndarray, slice]]:
        """Yield the arrays that ranks divide, and the rows of this one."""
        parameters = [p for group in self._of_all.param_groups for p in group["params"]]
        for parameter, velocity in zip(parameters, self._of_all.velocities, strict=True):
            name = self._names[id(parameter)]
            if name not in self._split.divided:
                continue
            rows = self._split.rows[name][1]
            yield name, parameter.data, rows
            if velocity is not None:
                yield f"the velocity of {name}", velocity, rows
            if self._average is not None:
                yield f"the average of {name}", self._average.arrays[name], rows
