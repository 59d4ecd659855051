"""Attention sampling under the reference library's names (idiap/attention-sampling), on Keras 3 and `ats_core.keras`.

Code written for it needs what Keras 3 changed, and little else: docs/from_idiap.md has the list. The estimator is the
paper's, "des_raj", unless told; `ats_core.keras` has the same layers with "murthy" for one.
"""

import ats_core.keras as _keras  # first: it says what is wrong with a Keras that does not work  # noqa: F401
from ats_core import __version__

from . import core, data, ops, utils

__all__ = ["__version__", "core", "data", "ops", "utils"]
