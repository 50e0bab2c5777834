"""Let Ctrl-C end a script cleanly while its libraries are imported."""

import os
import signal
import sys
from contextlib import suppress


def _stop(*_: object) -> None:
    if sys.stderr is not None:  # closed: the number may be that of another file by now
        with suppress(OSError):
            os.write(2, b"\nstopped by SIGINT, with nothing to save\n")
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as behind `&`
    signal.signal(signal.SIGINT, _stop)
