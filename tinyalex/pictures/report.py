"""HTML page of a run: a template and images inside it."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinyalex.optional import borrowed
from tinyalex.pictures.sheets import fit
from tinyalex.progress import duration
from tinyalex.text import counted, escaped, percent, printable

TEMPLATE = "report.html"


@functools.cache
def load_template() -> Callable[..., str]:
    """Return the function that fills in the page.

    It escapes every text for HTML and, as `escaped`, control characters; only what the template
    marks `safe` stays as it is. Raises PackageError where Jinja does not work.
    """
    with borrowed("jinja2"):
        import jinja2

        pages = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_shown,
        )
        pages.filters.update(percent=percent, counted=counted, duration=duration, name=printable)
        return pages.get_template(TEMPLATE).render


def _shown(value: Any) -> Any:
    """Return what stands in the page for a value."""
    return escaped(value) if type(value) is str else value


def jpeg(image: np.ndarray, size: int) -> str:
    """Return the centred square of an image as a data URI."""
    file = io.BytesIO()
    fit(image, size).save(file, "JPEG", quality=80, optimize=True)
    return data_uri("jpeg", file.getvalue())


def png(picture: Image.Image) -> str:
    """Return a picture as a data URI."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return data_uri("png", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Return an image's bytes as a URI that needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
