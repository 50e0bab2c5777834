"""Start as one of several ranks, under mpiexec or srun."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from tinyalex.calls import pip_install
from tinyalex.distributed.communicator import CommunicationError, Communicator, Single
from tinyalex.distributed.mpi import MPICommunicator
from tinyalex.distributed.mpi_thread import TIMEOUT, load
from tinyalex.interrupts import FAILED, USAGE, LeftError, StoppedError, code_of
from tinyalex.threads import get_num_threads, set_num_threads

_RANK = ("PMI_RANK", "PMI_ID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
_SIZE_IN_SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")  # a mere shell of salloc has these, too
_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "HYDI_", "HYDRA_", "SLURM_")


class LaunchError(ValueError):
    """Launcher and MPI that do not fit together."""


@dataclass(frozen=True)
class Launch:
    """Place among the ranks that a launcher has started; None is unknown."""

    rank: int
    size: int | None


def launched(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """Return the place that the environment gives, None outside a job.

    Launchers known are those of MPICH, Intel MPI, Open MPI, PMIx, and Slurm's srun.
    """
    known = {name: int(value) for name, value in environ.items() if value.isdecimal()}
    rank = next((known[name] for name in _RANK if name in known), None)
    sizes = _SIZE + (_SIZE_IN_SLURM if "SLURM_PROCID" in known else ())
    size = next((known[name] for name in sizes if name in known), None)
    if rank is None and size is None:
        return None
    return Launch(rank or 0, size)


def communicator(timeout: float = TIMEOUT) -> Communicator:
    """Return what connects this process to the others of its job.

    The launcher's variables are removed from the environment then: processes that a rank starts are
    no ranks. Raises LaunchError where the launcher and MPI disagree, on the first rank; the others
    leave in silence.
    """
    job = launched()
    if job is None or job.size == 1:
        return Single()
    try:
        vendor, version = load().get_vendor()
    except CommunicationError as error:
        install = pip_install("tinyalex[mpi]")
        _refuse(job, f"{error}: {install}, or mpi4py alone beside another MPI")
    launcher = "mpiexec of the MPI that mpi4py uses ({} {})".format(
        vendor, ".".join(map(str, version))
    )
    if "OMPI_COMM_WORLD_SIZE" in os.environ and vendor != "Open MPI":  # which would not even start
        _refuse(job, f"this is a rank of Open MPI: start it by the {launcher}")
    ranks = MPICommunicator(timeout)
    if ranks.size != (job.size or ranks.size) or job.rank >= ranks.size:
        ranks.close()
        _refuse(
            job,
            f"this is one of {job.size or 'several'} ranks for its launcher, and one of "
            f"{ranks.size} for MPI: start it by the {launcher}, or by srun --mpi=TYPE for it",
        )
    for name in [name for name in os.environ if name.startswith(_LAUNCHERS)]:
        del os.environ[name]
    return ranks


def _refuse(job: Launch, why: str) -> NoReturn:
    if job.rank == 0:
        raise LaunchError(why)
    time.sleep(1)  # the launcher ends all once one has left: the first one may speak before
    raise SystemExit(USAGE)


def share_cores(ranks: Communicator) -> None:
    """Let ranks that have the same cores share them.

    They do unless ``TINYALEX_NUM_THREADS`` says how many threads each has.
    """
    if ranks.sharing > 1 and "TINYALEX_NUM_THREADS" not in os.environ:
        set_num_threads(max(1, get_num_threads() // ranks.sharing))


@contextmanager
def together(timeout: float = TIMEOUT) -> Iterator[Communicator]:
    """Connect this process to its job for a block.

    What ends the block early ends all ranks, but for `StoppedError` and an exit with 0, which all
    come to at once. After a signal, they leave together.
    """
    ranks = communicator(timeout)
    end: BaseException | None = None
    try:
        try:
            yield ranks
        except (StoppedError, SystemExit) as error:
            if isinstance(error, SystemExit) and (error.code or isinstance(error, LeftError)):
                raise
            end = error
        ranks.close()
    except (LeftError, KeyboardInterrupt) as left:
        ranks.leave(code_of(left))
        raise
    except BaseException as error:
        if ranks.size == 1:
            raise
        code, reason = FAILED, f"{type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else FAILED
            reason = f"exit code {error.code!r}"
        elif not isinstance(error, CommunicationError):
            traceback.print_exc()
            sys.stderr.flush()
        ranks.abort(reason, code)
    if end is not None:
        raise end
