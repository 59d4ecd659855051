"""Models that attend to sources."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ats_core.attend.result import Attended
from ats_core.sources import Source

if TYPE_CHECKING:
    from ats_core.attend.work import Settings


class ModelError(ValueError):
    """A model that cannot be loaded, or is none that attends to sources. The message says why and what to do."""


class Model(Protocol):
    """A model of any framework."""

    def attend(self, source: Source, rng: tuple[int, int]) -> Attended:
        """Look at a source. `rng` is the (seed, offset) of the draws."""


def load_model(settings: Settings) -> Model:
    """Load a model: of Keras if the file's name says so (.keras, .h5), otherwise of PyTorch.

    Raises:
        ModelError: it cannot be loaded, or does not attend to sources.
        ImportError: the framework is not installed.
    """
    if settings.code is not None and settings.code not in sys.path:
        sys.path.append(settings.code)
    if Path(settings.model).suffix in (".keras", ".h5", ".hdf5"):
        importlib.import_module("ats_core.keras")  # before anything imports keras: it says what its backend lacks
        from ats_core.attend.keras_model import KerasModel

        return KerasModel.load(settings)
    from ats_core.attend.torch_model import TorchModel

    return TorchModel.load(settings)
