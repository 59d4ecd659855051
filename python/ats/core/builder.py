"""The builder, with the estimator of the paper by default."""

import ats_core.keras as _keras
from ats_core.keras import ATSOutput

__all__ = ["ATSBuilder", "ATSOutput"]


class ATSBuilder(_keras.ATSBuilder):
    """`ats_core.keras.ATSBuilder` with "des_raj"."""

    default_estimator = "des_raj"
