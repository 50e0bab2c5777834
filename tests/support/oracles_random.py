"""Philox4x32-10 as its authors wrote it, and the GPU's dropout.

Nothing imports tinyalex; one number at a time, as in oracles.py.
"""

import math

import numpy as np

WORD = (1 << 32) - 1

# Salmon, Moraes, Dror and Shaw, Random123, tests/kat_vectors: counter, key, four random words. The
# last one's arguments are digits of pi.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (WORD, WORD, WORD, WORD),
        (WORD, WORD),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter, key):
    """Encrypt four words under a key of two words."""
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ low, second & WORD, (first >> 32) ^ d ^ high, first & WORD
        low, high = (low + 0x9E3779B9) & WORD, (high + 0xBB67AE85) & WORD
    return a, b, c, d


def dropout(x, p, key, first=0):
    """Element i stays if the upper 24 bits of word i % 4 of philox(i / 4) reach p * 2^24.

    Elements are numbered from ``first``.
    """
    threshold = math.floor(p * 2**24 + 0.5)
    words = []
    for block in range(first // 4, -(-(first + x.size) // 4)):
        words += philox((block, 0, 0, 0), (key & WORD, key >> 32))
    words = words[first % 4 :][: x.size]
    keep = np.array([word >> 8 >= threshold for word in words], bool).reshape(x.shape)
    return np.where(keep, np.asarray(x, np.float64) / (1 - p), 0.0) if p < 1 else np.zeros(x.shape)
