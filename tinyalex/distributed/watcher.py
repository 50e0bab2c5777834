"""Process that names the first rank to end on its host.

A rank that is killed says nothing, and launchers end the others at once: MPICH's names a process,
at times a wrong one, and no rank. Ranks are connected to the watcher by sockets, which the system
closes when they end. This file is run as a script, without the package; only Linux has what it
needs.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress

WELL, SAID = b"well", b"said"
"""Last words of a rank: it ends as it should, or has said why not."""
PATIENCE, PAUSE = 1.0, 0.1
"""Seconds in which launchers end the other ranks, and notice what is printed."""


class Watcher:
    """Connection of a rank called `name` to a watcher.

    The first of `count` ranks on a host gives no address and starts the watcher; the others find it
    at the `address` of the first.
    """

    def __init__(self, name: str, count: int, address: str = "") -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX) as listener:
            if not address:
                listener.bind("")  # the system finds a name, which is no file's
                listener.listen(count)
                address = listener.getsockname().decode("latin-1")
            self.address = address
            self._socket.connect(address.encode("latin-1"))
            self._socket.sendall(name.encode(errors="replace"))
            if listener.getsockname():
                self._process = subprocess.Popen(
                    [sys.executable, "-IS", __file__, str(count)],
                    stdin=listener.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # out of reach of what ends the ranks
                )
        self._socket.recv(1)  # it watches

    def close(self, word: bytes) -> None:
        """Say a last word."""
        with self._socket, suppress(OSError):  # the watcher has ended with another rank
            self._socket.sendall(word)
        if self._process:
            with suppress(subprocess.TimeoutExpired):  # another rank may hang
                self._process.wait(PATIENCE)


def watch(listener: socket.socket, count: int) -> str | None:
    """Return the name of the first rank that ends without a word.

    The launcher ends the others then, or nothing more ends within a second.
    """
    events = select.epoll()  # unlike poll, it tells in which order things happened
    events.register(listener, select.EPOLLIN)
    ranks: dict[int, tuple[socket.socket, str]] = {}
    lost: str | None = None
    while count and (happened := events.poll(PATIENCE if lost else None)):
        for descriptor, _ in happened:
            if descriptor == listener.fileno():
                rank, _ = listener.accept()
                ranks[rank.fileno()] = rank, rank.recv(1000).decode()
                events.register(rank, select.EPOLLIN)
                rank.sendall(b".")
                continue
            rank, name = ranks[descriptor]
            word = rank.recv(10)
            if word == SAID:
                return lost
            if word != WELL:
                lost = lost or name
            events.unregister(descriptor)
            count -= 1
    return lost


if __name__ == "__main__":
    name = watch(socket.socket(fileno=0), int(sys.argv[1]))
    if name is not None:
        # MPICH's launcher takes an exit with 0 for that of the job, unless it sees that it had to
        # kill another rank. It looks for one whenever something is printed: hence the empty line.
        for words in (f"{name} has ended before the other ranks on its host\n", "\n"):
            os.write(2, words.encode())
            time.sleep(PAUSE)
