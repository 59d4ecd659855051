"""How far a result may be from the float64 reference, by the dtype it is delivered in."""

import numpy as np

# Relative to the largest magnitude that went into a sum (`scale`), so that cancellation is judged fairly.
RELATIVE = {
    "float64": 1e-10,  # murthy's quadrature is within 1e-11, and everything else is a short float64 sum
    "float32": 1e-5,  # sums of up to a few hundred float32 products: 100 * 2**-24
    "float16": 1.5e-3,  # computed in float32 or wider and rounded once, 2**-11; inputs are compared after rounding
    "bfloat16": 8e-3,  # the same with 2**-8 (8 bits), doubled
}
# One more step where numbers become subnormal.
ABSOLUTE = {"float64": 5e-324, "float32": 1.5e-45, "float16": 6e-8, "bfloat16": 1e-40}
# An integer may differ from the unrounded reference by the rounding, and by float32 arithmetic just before a tie.
INTEGER = 0.5 + 1e-2
# Probabilities w / sum(w). A float32 row may be added in float32 within a group of 32 or so, in float64 above that.
PROBABILITY = {"float64": 1e-14, "float32": 2e-6, "float16": 2e-6, "bfloat16": 2e-6}


def assert_close(actual, expected, dtype, scale=None, factor=1.0):
    """Every element within the table's tolerance, NaN equal to NaN, infinity to infinity."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    # beyond the range of the dtype: both overflow alike
    limit = {"float16": 65520.0, "float32": 3.4028235677973366e38, "bfloat16": 3.396e38}.get(dtype, np.inf)
    expected = np.where(np.abs(expected) >= limit, np.copysign(np.inf, expected), expected)
    magnitude = np.abs(np.where(np.isfinite(expected), expected, 0.0))
    if scale is not None:
        magnitude = np.maximum(magnitude, np.abs(scale))
    allowed = factor * (RELATIVE[dtype] * magnitude + ABSOLUTE[dtype])
    with np.errstate(invalid="ignore"):
        good = (actual == expected) | (np.isnan(actual) & np.isnan(expected)) | (np.abs(actual - expected) <= allowed)
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        raise AssertionError(
            f"{int((~good).sum())} of {good.size} elements differ; first at {at}: "
            f"{actual[at]!r}, expected {expected[at]!r} within {np.broadcast_to(allowed, good.shape)[at]:.3g} ({dtype})"
        )


def assert_integer_close(actual, expected, dtype):
    """`expected` is the float64 value before rounding and saturation."""
    limits = np.iinfo(dtype)
    error = np.abs(np.asarray(actual, dtype=np.float64) - np.clip(expected, limits.min, limits.max))
    assert error.shape == actual.shape
    assert (error <= INTEGER).all(), f"off by {error.max()} at {np.argwhere(error > INTEGER)[0]} ({dtype})"
