"""Let Ctrl-C end the command cleanly while its libraries are imported."""

import os
import signal
import sys
from contextlib import suppress


def _stop(*_: object) -> None:
    if sys.stderr is not None:  # closed: the number may be that of another file by now
        with suppress(OSError):
            os.write(2, b"\nstopped by SIGINT, with nothing to save\n")
    os._exit(130)


# The word after Python and its options: `tinyalex` as installed, or of `python -m tinyalex`.
# It is another one in a program that imports the package.
_started = "".join(sys.orig_argv[-len(sys.argv) :][:1])
_ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # as behind `&`
if os.path.basename(_started) == "tinyalex" and not _ignored:
    signal.signal(signal.SIGINT, _stop)
