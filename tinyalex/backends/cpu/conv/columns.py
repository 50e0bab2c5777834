"""im2col and col2im for a block of pixels.

The column of an output pixel is the window of the image that it sees, laid out as one line in the
order (tap row r, tap column s, channel). Pixels are numbered n * Ho * Wo + i * Wo + j.
"""

from __future__ import annotations

import numpy as np

from tinyalex.backends.cpu.runtime import kernel


@kernel
def _copy(source, source_row, source_start, target, row, start, count):
    # Unsigned indices into the whole matrix: signed ones could mean "from the end", which the
    # compiler cannot turn into a plain copy, and views cost more than the few values in them.
    for i in range(np.uintp(count)):
        value = source[np.uintp(source_row), np.uintp(source_start) + i]
        target[np.uintp(row), np.uintp(start) + i] = value


@kernel
def _add(source, source_row, source_start, target, row, start, count):
    for i in range(np.uintp(count)):
        value = source[np.uintp(source_row), np.uintp(source_start) + i]
        target[np.uintp(row), np.uintp(start) + i] += value


@kernel
def clear(target, row, start, count):
    """Set ``target[row, start : start + count]`` to 0."""
    for i in range(np.uintp(count)):
        target[np.uintp(row), np.uintp(start) + i] = 0


@kernel
def _inside(start, step, count, size):
    """Return the range of k with ``0 <= start + k * step < size``, as first and stop."""
    first = 0 if start >= 0 else min(count, (-start + step - 1) // step)
    stop = 0 if start >= size else min(count, (size - 1 - start) // step + 1)
    return first, max(first, stop)


@kernel
def gather(x, window, output_size, first_pixel, channels, tap_rows, columns):
    """Copy into ``columns[p]`` what output pixel ``first_pixel + p`` sees.

    ``x`` is [N, H, W, C]; ``channels`` and ``tap_rows`` are the (first, stop) that are wanted.
    """
    N, H, W, C = x.shape
    lines = x.reshape(N * H, W * C)
    (c0, c1), (r0, r1) = channels, tap_rows
    width = c1 - c0
    depth = window.width * width
    # All channels of neighbouring taps are neighbours in memory: one run per row of taps.
    in_one_run = width == C and window.dilation_w == 1
    for p in range(columns.shape[0]):
        row, j = divmod(first_pixel + p, output_size[1])
        n, i = divmod(row, output_size[0])
        w = j * window.stride_w - window.left
        s0, s1 = _inside(w, window.dilation_w, window.width, W)
        for r in range(r0, r1):
            h = i * window.stride_h + r * window.dilation_h - window.top
            start = (r - r0) * depth
            if h < 0 or h >= H:
                clear(columns, p, start, depth)
                continue
            clear(columns, p, start, s0 * width)
            clear(columns, p, start + s1 * width, depth - s1 * width)
            if in_one_run:
                count = (s1 - s0) * C
                _copy(lines, n * H + h, (w + s0) * C, columns, p, start + s0 * C, count)
            else:
                for s in range(s0, s1):
                    k = (w + s * window.dilation_w) * C + c0
                    _copy(lines, n * H + h, k, columns, p, start + s * width, width)


@kernel
def scatter_add(columns, window, output_size, first_pixel, channels, tap_rows, dx):
    """Add every column back to the pixels that `gather` copies."""
    N, H, W, C = dx.shape
    lines = dx.reshape(N * H, W * C)
    (c0, c1), (r0, r1) = channels, tap_rows
    width = c1 - c0
    depth = window.width * width
    in_one_run = width == C and window.dilation_w == 1
    for p in range(columns.shape[0]):
        row, j = divmod(first_pixel + p, output_size[1])
        n, i = divmod(row, output_size[0])
        w = j * window.stride_w - window.left
        s0, s1 = _inside(w, window.dilation_w, window.width, W)
        for r in range(r0, r1):
            h = i * window.stride_h + r * window.dilation_h - window.top
            start = (r - r0) * depth
            if h < 0 or h >= H:
                continue
            if in_one_run:
                count = (s1 - s0) * C
                _add(columns, p, start + s0 * C, lines, n * H + h, (w + s0) * C, count)
            else:
                for s in range(s0, s1):
                    k = (w + s * window.dilation_w) * C + c0
                    _add(columns, p, start + s * width, lines, n * H + h, k, width)
