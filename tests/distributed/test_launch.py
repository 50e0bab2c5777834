"""Launchers, and what they and MPI disagree in."""

import os
import subprocess
import sys

import pytest
from ranks import environment, said

from tinyalex.calls import pip_install
from tinyalex.distributed import launch
from tinyalex.distributed.launch import Launch

LAUNCHERS = {
    "none": ({}, None),
    "mpich": ({"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "4"}, Launch(2, 4)),
    "mpich -pmi-port": (
        {"PMI_ID": "2", "PMI_PORT": "vm:4", "MPI_LOCALNRANKS": "4"},
        Launch(2, None),
    ),
    "open mpi": (
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"},
        Launch(1, 2),
    ),
    "pmix": ({"PMIX_RANK": "0", "PMIX_NAMESPACE": "a"}, Launch(0, None)),
    "srun": (
        {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"},
        Launch(3, 4),
    ),
    "sbatch": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, Launch(0, 4)),
    "salloc": ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),
    "salloc with a step": (
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
        Launch(0, 1),
    ),
    "mpiexec in sbatch": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        Launch(1, 2),
    ),
}

COMMAND = """
import sys
from tinyalex.cli.common import command
from tinyalex.distributed.launch import together
@command
def main(argv):
    with together() as ranks:
        print(ranks.rank, ranks.size, "mpi4py" in sys.modules)
    return 0
"""
MAIN = "sys.exit(main([]))"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_environment_tells_the_place_among_the_ranks(launcher):
    environ, expected = LAUNCHERS[launcher]
    assert launch.launched({"HOME": "/", **environ}) == expected


def alone(**settings):
    """Run the command with these environment variables."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND + MAIN],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("launcher", ["none", "salloc", "salloc with a step"])
def test_one_process_imports_nothing_of_mpi(launcher):
    ended = alone(**LAUNCHERS[launcher][0])
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0 1 False\n", "", 0)


@pytest.mark.parametrize(
    ("launcher", "rank", "expected"),
    [
        ("open mpi", "0", "error: this is a rank of Open MPI: start it by the mpiexec of the MPI"),
        ("sbatch", "0", "error: this is one of 4 ranks for its launcher, and one of 1 for MPI"),
        ("sbatch", "1", ""),
    ],
)
def test_a_launcher_of_another_mpi_is_refused_in_one_sentence(launcher, rank, expected):
    """The rank that is not the first leaves the words to it."""
    environ = dict(LAUNCHERS[launcher][0])
    environ |= {name: rank for name in environ if name.endswith(("_RANK", "_PROCID"))}
    ended = alone(**environ)
    assert ended.stderr.startswith(expected)
    assert len(ended.stderr.splitlines()) == bool(expected)
    assert ended.returncode == 2


def test_mpi4py_is_asked_for_once():
    code = "import sys; sys.modules['mpi4py'] = None\n" + COMMAND + MAIN
    mpiexec = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    ended = subprocess.run(
        [mpiexec, "-n", "3", sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr.count("\n") == 1
    assert pip_install("tinyalex[mpi]") in ended.stderr
    assert ended.returncode == 2


def test_children_of_a_rank_are_no_ranks():
    script = """
    import subprocess
    from tinyalex.distributed.launch import launched
    code = "from tinyalex.distributed.launch import launched; print(launched())"
    say(subprocess.check_output([sys.executable, "-c", code], text=True).strip(), launched())
    """
    assert said(2, script) == ["None None"] * 2


@pytest.mark.parametrize("bound", [False, True])
def test_ranks_share_the_cores_of_their_host(bound):
    cores = os.cpu_count() or 1
    script = """
    from tinyalex.distributed.launch import share_cores
    from tinyalex.threads import get_num_threads
    share_cores(ranks)
    say(get_num_threads(), len(os.sched_getaffinity(0)), ranks.sharing)
    """
    if bound and cores < 2:
        pytest.skip("one core")
    lines = said(2, script, options=["-bind-to", "core"] if bound else [])
    assert lines == ["1 1 1" if bound else f"{max(1, cores // 2)} {cores} 2"] * 2
