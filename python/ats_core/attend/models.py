"""Models that attend to sources, loaded from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ats_core.attend.result import Attended
from ats_core.sources import Source

if TYPE_CHECKING:
    from ats_core.attend.work import Settings


class Model(Protocol):
    """A model of any framework."""

    def attend(self, source: Source, rng: tuple[int, int]) -> Attended:
        """Look at a source. `rng` is the (seed, offset) of the draws."""


def load_model(settings: Settings) -> Model:
    """Load a model: of Keras if the file's name says so (.keras, .h5), otherwise of PyTorch."""
    if Path(settings.model).suffix in (".keras", ".h5"):
        from ats_core.attend.keras_model import KerasModel

        return KerasModel(settings)
    from ats_core.attend.torch_model import TorchModel

    return TorchModel(settings)
