"""What the layers that draw random numbers have in common."""

from __future__ import annotations

from typing import Any, SupportsIndex

import keras
import numpy as np

from ._arguments import to_seed
from .ops import is_torch_export, replica


class RandomLayer(keras.layers.Layer):
    """A layer with random numbers of its own, whose state is saved with the model.

    It leaves the dtype of its inputs alone (no autocast). Every call that draws moves the state on, a validation's, an
    `evaluate`'s and a `predict`'s too: what training draws afterwards depends on how often these were called.

    Args:
        seed: of the random numbers, between 0 and 2**31 - 1; None takes one from Python's generator, so that
            keras.utils.set_random_seed holds.
    """

    def __init__(self, seed: SupportsIndex | None = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.seed = to_seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def next_rng(self, batch: Any) -> Any:
        """(seed, call * 2**32) of this call: rows of a batch add to the offset, so that calls have to be far apart.

        Replica r of a tf.distribute.Strategy, and rank r of torch.distributed, adds r * batch: with the same batch size
        on each they draw together what one draws for the whole batch.

        None, which is the backend's own generator, in a program that torch.export makes: it cannot change a layer.
        """
        if is_torch_export():
            return None
        state = keras.ops.cast(self.seed_generator.next(), "int64")
        rng = state * keras.ops.convert_to_tensor(np.array([1, 2**32], np.int64))
        before = keras.ops.cast(replica(), "int64") * keras.ops.cast(batch, "int64")
        return rng + before * keras.ops.convert_to_tensor(np.array([0, 1], np.int64))

    # Keras saves the variables of a layer, but not the state of its seed generators.

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["random_state"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        names = list(store.keys())  # an entry of the file, which is no mapping
        super().load_own_variables({name: store[name] for name in names if name != "random_state"})
        if "random_state" in names:
            self.seed_generator.state.assign(store["random_state"])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}
