"""Hosts on this machine: network namespaces, joined by a bridge."""

import itertools
import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

NUMBERS = itertools.count()


class Network:
    """Hosts 10.77.0.1, 10.77.0.2, ..., and one for the launcher."""

    def __init__(self, count, folder):
        self.count = count
        self.name = f"tinyalex-{os.getpid()}-{next(NUMBERS)}-"
        self.hub = self.name + "hub"
        self._shell = folder / "shell"
        self._shell.write_text(
            "#!/bin/sh\n"
            'while [ "${1#-}" != "$1" ]; do shift; done  # options of ssh\n'
            f'host={self.name}${{1##*.}}; shift; exec ip netns exec "$host" sh -c "$*"\n'
        )
        self._shell.chmod(0o700)

    def launcher(self, mpiexec):
        """Return the command that starts ranks on these hosts, one on each."""
        hosts = ",".join(f"10.77.0.{host}" for host in range(1, self.count + 1))
        return [
            *("ip", "netns", "exec", self.hub),
            *(*mpiexec, "-launcher", "ssh", "-launcher-exec", str(self._shell)),
            *("-iface", "bridge", "-hosts", hosts),
        ]

    def cut(self, rank):
        """Let nothing pass from or to the host of a rank."""
        ip(f"-n {self.hub} link set wire{rank + 1} down")


@contextmanager
def network(count, folder):
    """Join `count` hosts by a network; skip the test where that is not possible."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    joined = Network(count, folder)
    hosts = range(1, count + 1)
    try:
        try:
            ip(f"netns add {joined.hub}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        ip(f"-n {joined.hub} link set lo up")
        ip(f"-n {joined.hub} link add name bridge type bridge")
        ip(f"-n {joined.hub} addr add 10.77.0.100/24 dev bridge")
        ip(f"-n {joined.hub} link set bridge up")
        for host in hosts:
            name = f"{joined.name}{host}"
            ip(f"netns add {name}")
            ip(f"link add wire{host} netns {joined.hub} type veth peer name wire netns {name}")
            ip(f"-n {joined.hub} link set wire{host} master bridge up")
            ip(f"-n {name} addr add 10.77.0.{host}/24 dev wire")
            ip(f"-n {name} link set lo up")
            ip(f"-n {name} link set wire up")
        yield joined
    finally:
        for name in (joined.hub, *(f"{joined.name}{host}" for host in hosts)):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def ip(words):
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)
