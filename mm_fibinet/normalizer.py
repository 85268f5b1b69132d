"""Numeric features on one scale: (x - shift) / scale, fitted on the training split and kept in the feature's spec.

A network's first layer multiplies the raw number: one feature of 0..24 beside embeddings of size 0.01 drives the first
steps alone, and costs both AUC and calibration. So numeric features are standardised unless their line in feature_cols
says otherwise. Names and arithmetic are FuxiCTR's, which takes them from scikit-learn; because the two numbers are part
of the spec, they travel in feature_map.json and other data of the run are scaled as its training data were.
"""

import math
from collections.abc import Iterable

import numpy as np

from mm_fibinet.errors import UserError

STANDARD, MIN_MAX = "StandardScaler", "MinMaxScaler"
NONE = (None, "none", "None")


def normalizer_name(value: object, feature: str) -> str | None:
    """The normalizer that a line of feature_cols asks for: STANDARD, MIN_MAX, or None for the raw number."""
    if value in NONE:
        return None
    if value in (STANDARD, MIN_MAX):
        return str(value)
    raise UserError(f"feature {feature}: normalizer is {value!r}, expected {STANDARD} (the default), {MIN_MAX} or none")


def fit(slices: Iterable[np.ndarray], normalizer: str) -> dict[str, float]:
    """The two numbers of a normalizer.

    Args:
        slices: float64 [n] each, finite; all training values of the feature.
        normalizer: STANDARD (mean, population deviation) or MIN_MAX (minimum, range); a constant feature has scale 1.

    Returns:
        {"shift": s, "scale": c} of (x - s) / c.
    """
    count, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for values in slices:
        if not len(values):
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused with the spec
            own_mean = float(values.mean())
            own_squares = float(np.square(values - own_mean).sum())
        together = count + len(values)
        delta = own_mean - mean
        squares += own_squares + delta * delta * count * len(values) / together  # Chan et al. 1979
        mean += delta * len(values) / together
        count = together
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low >= high:  # constant, or no value at all
        return {"shift": low if count else 0.0, "scale": 1.0}
    if normalizer == MIN_MAX:
        return {"shift": low, "scale": high - low}
    return {"shift": mean, "scale": math.sqrt(squares / count)}


def scaled(values: np.ndarray, spec: dict) -> np.ndarray:
    """float64 [n] on the scale of a feature's spec; unchanged where the spec has none."""
    return (values - spec["shift"]) / spec["scale"] if "scale" in spec else values
