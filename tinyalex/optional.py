"""Optional packages, none of which costs a result, however broken it is."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

from tinyalex.calls import pip_install
from tinyalex.interrupts import LeftError


class PackageError(ImportError):
    """An optional package that is missing, or that does not work here."""


@contextlib.contextmanager
def borrowed(package: str) -> Iterator[None]:
    """Turn every error of an optional package into PackageError; silence its warnings."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except LeftError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise PackageError(f"{package} is missing ({pip_install(package)})") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PackageError(f"{package} does not work here ({reason})") from error
