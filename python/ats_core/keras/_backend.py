"""Which backend Keras has or will have, found without importing it."""

import json
import os
import sys
from pathlib import Path

_WORKS = {"tensorflow": "TensorFlow", "torch": "PyTorch"}
_INSTALL = "python -m pip install 'keras>=3.10'"
_HOW = "set KERAS_BACKEND=tensorflow or KERAS_BACKEND=torch before anything imports keras"


def configured_backend() -> str:
    """The backend of a Keras that is imported already, or the one that its settings name.

    Those are, in this order: the environment variable KERAS_BACKEND, keras.json in KERAS_HOME or ~/.keras, tensorflow.
    """
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        return str(keras.config.backend())
    name = os.environ.get("KERAS_BACKEND")
    if not name:
        home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
        try:
            name = json.loads((Path(home) / "keras.json").read_text()).get("backend")
        except (OSError, ValueError, AttributeError):
            name = None
    return str(name or "tensorflow")


def check_backend() -> None:
    """Import Keras with a backend that works here.

    Raises:
        ImportError: Keras is missing or older than 3.10, or its backend is neither TensorFlow nor PyTorch, or is missing.
    """
    name = configured_backend()
    if name not in _WORKS:
        raise ImportError(
            f"ats_core.keras works with Keras on the TensorFlow and the PyTorch backend, not on {name!r}: {_HOW}"
        )
    try:
        import keras
    except ImportError as error:
        raise ImportError(
            f"ats_core.keras needs Keras 3.10 or newer and the backend that it is set to, {_WORKS[name]} ({error}): "
            f"{_INSTALL} {name}; or {_HOW}"
        ) from error
    if tuple(int(number) for number in keras.__version__.split(".")[:2]) < (3, 10):
        raise ImportError(f"ats_core.keras needs Keras 3.10 or newer: {_INSTALL} (found {keras.__version__})")
