"""Noise along the principal axes of the colours (the paper's section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRENGTH = 0.1
"""Standard deviation of the paper's alphas; the 2012 source's --color-noise."""

KINDS = ("eigenvalues", "deviations")


@dataclass(frozen=True)
class ColourNoise:
    """``[p1 p2 p3] [a1 s1, a2 s2, a3 s3]``, each a from N(0, 0.1**2): one draw for a whole image.

    p1, p2, p3 are the eigenvectors of the covariance of the training set's colours, the largest
    eigenvalue l1 first. Colours differ most in brightness, so p1 is nearly grey ((0.60, 0.57, 0.56)
    for the photographs of flowers in the README). What s is:

    - "eigenvalues": l, as the paper says. It does not say in which unit, and that matters: in
      0..255, l1 is in the thousands and the noise would drown every image. So values in 0..1.
    - "deviations": the square root of l, the same in any unit, as in the 2012 source
      (convdata_jpeg.py), which divides training images, and only those, by 1.1 afterwards, so that
      the noise does not make them larger than test images.
    """

    axes: np.ndarray
    """float64 [3, 3] in units of 0..255; column j is p_j times the noise's deviation along it."""
    divisor: float = 1.0
    """What the image, its mean subtracted and the noise added, is divided by."""

    @classmethod
    def of_kind(cls, kind: str, covariance: np.ndarray) -> ColourNoise:
        """Return the noise for colours with this covariance [3, 3], in units of 0..255.

        Raises ValueError for an unknown kind, and for what is no covariance.
        """
        covariance = np.asarray(covariance, np.float64)
        if kind not in KINDS:
            raise ValueError(f"the colour noise must be one of {', '.join(KINDS)}; got {kind!r}")
        if covariance.shape != (3, 3) or not np.allclose(covariance, covariance.T):
            raise ValueError(
                f"expected a covariance of colours, symmetric [3, 3], got {covariance.tolist()}"
            )
        rising, vectors = np.linalg.eigh(covariance)
        # Of grey images two eigenvalues are 0, or by rounding a little less.
        eigenvalues, vectors = rising[::-1].clip(min=0), vectors[:, ::-1]
        if kind == "eigenvalues":
            return cls(vectors * (STRENGTH * 255 * (eigenvalues / 255**2)))
        return cls(vectors * (STRENGTH * np.sqrt(eigenvalues)), divisor=1 + STRENGTH)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return what to add to red, green and blue of every pixel of one image, 0..255."""
        return self.axes @ rng.standard_normal(3)
