"""Files spoilt at random from a seed, and their readers' memory."""

import tracemalloc

import numpy as np

LYING = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**28, 6, 7, 14, 15, 127, 128, 255)


def spoilt(raw, number):
    """Return the file cut, with other bytes, lying lengths, or parts of it elsewhere."""
    rng = np.random.default_rng(number)
    raw = bytearray(raw)
    front = rng.integers(1, len(raw)) if rng.integers(2) else min(len(raw), 4096)
    place, other = rng.integers(front), rng.integers(front)
    match rng.integers(6):
        case 0:
            del raw[place:]
        case 1:
            for _ in range(rng.integers(1, 6)):
                raw[rng.integers(front)] = rng.integers(256)
        case 2:
            raw[place // 4 * 4 : place // 4 * 4 + 4] = int(rng.choice(LYING)).to_bytes(4, "little")
        case 3:
            raw[place : place + 8] = raw[other : other + 8]
        case 4:
            del raw[place : place + rng.integers(1, 9)]
        case 5:
            raw[place:place] = raw[other : other + rng.integers(1, 200)]
    return bytes(raw)


def peak(function, *arguments):
    """Return what a function returns, or raises as ValueError, and its peak of memory in bytes."""
    tracemalloc.start()
    try:
        result = function(*arguments)
    except ValueError as error:
        result = error
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return result, most
