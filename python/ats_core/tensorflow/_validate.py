"""validate=True: a GPU's kernels cannot say that a value is bad without being waited for. The CPU's can, in their words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = Any  # tf.Tensor


def on_cpu(operation: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """What the operation returns or raises on the CPU."""
    with tf.device("CPU:0"):
        return operation(*inputs, **options)


def unless(bad: Tensor, witness: Tensor, again: Callable[[], Tensor]) -> Tensor:
    """`witness`, or what `again` raises where anything is bad. Both have one shape and dtype."""
    return tf.cond(tf.reduce_any(bad), again, lambda: witness)


def after(check: Tensor, outputs: Any) -> Any:
    """The outputs, which a graph does not give before the check, finite where it raises nothing, has been computed."""
    # Graphs leave out what only a control dependency asks for, but no assertion.
    asserted = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(check)), ["validate: bad values"])
    with tf.control_dependencies([asserted]):
        return tf.nest.map_structure(tf.identity, outputs)
