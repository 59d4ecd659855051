# The fake kernels have the signatures of the schemas.
# mypy: no-warn-return-any, allow-untyped-defs
"""What PyTorch must know of ``torch.ops.ats`` beyond the kernels: shapes, gradients, autocast, vmap.

The kernels and schemas are in bindings/torch/. Everything here is registered from Python, on purpose: a
C++ Meta kernel would specialise the sizes that ``torch.compile`` keeps symbolic, and the stable ABI has no autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.compiler import is_dynamo_compiling

from ats_core._build import adapter_path

torch.ops.load_library(adapter_path("torch"))
if torch.version.cuda:
    torch.ops.load_library(adapter_path("torch_cuda"))

_ops = torch.ops.ats
sample = _ops.sample.default
topk = _ops.topk.default
sample_backward = _ops.sample_backward.default
locate = _ops.locate.default
extract_patches = _ops.extract_patches.default
extract_patches_backward = _ops.extract_patches_backward.default
expectation = _ops.expectation.default
expectation_backward = _ops.expectation_backward.default
estimator_arrays = _ops.estimator_arrays.default


def direct(op: Any) -> Callable[..., Any]:
    """What calls ``op`` with one Python frame less (docs/speed.md). Dynamo knows the operation itself alone."""
    return op if is_dynamo_compiling() else op._op


_library = torch.library.Library("ats", "FRAGMENT")  # the registrations below live as long as this does


# ---- shapes: the twins of the core's ats_*_shape, on sizes that may be symbolic ----


def _fake(op: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return torch.library.register_fake(op.name(), lib=_library)


def _fake_draws(attention: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch._check(attention.dim() >= 2, lambda: "attention must have a batch axis and at least one axis of cells")
    batch = attention.shape[0]
    real = torch.float64 if attention.dtype == torch.float64 else torch.float32
    return (
        attention.new_empty((batch, n), dtype=real),
        attention.new_empty((batch, n), dtype=torch.int64),
        attention.new_empty((batch,), dtype=real),
        attention.new_empty((batch,), dtype=torch.float64),
    )


@_fake(sample)
def _(attention, rng, n, replace, logits):
    return _fake_draws(attention, n)


@_fake(topk)
def _(attention, n, logits):
    return _fake_draws(attention, n)


@_fake(sample_backward)
def _(grad, attention, indices, probabilities, log_mass, logits):
    return attention.new_empty(attention.shape)


@_fake(locate)
def _(indices, grid, low, image, patch, receptive_field):
    return indices.new_empty((*indices.shape, len(grid)))


@_fake(extract_patches)
def _(image, origins, patch_size, scales, padding, fill, dtype, mean, std, channels_first):
    torch._check(image.dim() == len(patch_size) + 2, lambda: "image must have a batch, a channel and the patch's axes")
    patch = tuple(patch_size)
    inner = (image.shape[1], *patch) if channels_first else (*patch, image.shape[-1])
    scale_axis = (len(scales),) if len(scales) else ()
    return image.new_empty((image.shape[0], origins.shape[1], *scale_axis, *inner), dtype=dtype)


@_fake(extract_patches_backward)
def _(grad, origins, image_shape, patch_size, scales, padding, fill, dtype, mean, std, channels_first):
    return grad.new_empty(tuple(image_shape), dtype=dtype)


@_fake(expectation)
def _(features, attention, threshold, weights, estimator):
    torch._check(features.dim() >= 2, lambda: "features must have a batch and a sample axis")
    return features.new_empty((features.shape[0], *features.shape[2:]))


@_fake(expectation_backward)
def _(grad, features, attention, threshold, weights, estimator):
    return features.new_empty(features.shape), attention.new_empty(attention.shape)


@_fake(estimator_arrays)
def _(attention, threshold, weights, estimator):
    torch._check(attention.dim() == 2, lambda: "attention must have a batch and a sample axis")
    batch, n = attention.shape
    return attention.new_empty((batch, n)), attention.new_empty((batch, n, n))


# ---- gradients ----


def _differentiable(
    op: Any, setup: Callable[..., None], backward: Callable[..., Any], *, first_only: bool = False
) -> None:
    """Register ``backward`` as the gradient of ``op``; ``setup(ctx, inputs, outputs)`` saves what it wants.

    ``first_only``: of the first input and the first output alone, which spares autograd the others.

    One autograd kernel serves eager mode, torch.func, AOTAutograd and export. torch.library.register_autograd would do
    for all but torch.func: the Function that it makes is refused there, and a second Function with setup_context and
    vmap, chosen by the caller when a transform is active, helps the wrapper but neither the raw operation nor
    compile(grad(f)). The kernel below computes first, with gradients enabled as it was called, so that outer levels of
    torch.func record it too, and then hangs a Function on what it computed. Under a transform that is done under
    enable_single_level_autograd_function, as PyTorch does for its own single-level Functions
    (torch/_functorch/autograd_function.py), since by the time that the Autograd key is reached functorch has already
    chosen the level. It is made to be quick (docs/speed.md): the keyset, for one, takes longer to pass on than to find
    again.
    """
    call = op._op  # without the Python frame of OpOverload.__call__
    one_of_many = first_only and len(op._schema.returns) > 1

    def forward(ctx: Any, computed: tuple[Any, Any], *_: Any) -> Any:
        inputs, outputs = computed  # in a tuple: as tensors the outputs would be inputs of the Function
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, outputs)
        return outputs[0] if one_of_many else outputs

    def backward_of_tensors(ctx: Any, *grads: Tensor | None) -> Any:
        return (None, *backward(ctx, *grads))

    function: Any = type(
        op._opname,  # names the grad_fn: <torch.autograd.function.sampleBackward>
        (_SingleLevelFunction,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward_of_tensors)},
    )

    def kernel(*inputs: Any) -> Any:
        with _C._AutoDispatchBelowAutograd():
            outputs = call(*inputs)
        # Within forward-mode AD the Function is applied whatever requires a gradient: it raises where it has a
        # tangent to push forward, which would otherwise be dropped in silence.
        if not (_C.is_grad_enabled() and _C._any_requires_grad(*inputs)) and forward_ad._current_level < 0:
            return outputs
        arguments = (inputs, outputs), *(inputs[:1] if first_only else inputs)
        if _C._are_functorch_transforms_active():
            with enable_single_level_autograd_function():
                recorded = function.apply(*arguments)
        else:
            recorded = function.apply(*arguments)
        return (recorded, *outputs[1:]) if one_of_many else recorded

    _library.impl(op._opname, kernel, "Autograd")


def _draws_setup(ctx: Any, inputs: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    probabilities, indices, _threshold, log_mass = outputs
    ctx.logits = inputs[-1]
    ctx.save_for_backward(inputs[0], indices, probabilities, log_mass)


def _draws_gradient(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None]:
    return (None if grad is None else sample_backward(grad, *ctx.saved_tensors, ctx.logits),)


_differentiable(sample, _draws_setup, _draws_gradient, first_only=True)
_differentiable(topk, _draws_setup, _draws_gradient, first_only=True)


def _patches_setup(ctx: Any, inputs: Sequence[Any], _: Tensor) -> None:
    image, origins, patch_size, scales, padding, fill, _dtype, mean, std, channels_first = inputs
    ctx.save_for_backward(origins)
    ctx.image_shape = image.shape
    ctx.options = (patch_size, scales, padding, fill, image.dtype, mean, std, channels_first)


def _patches_gradient(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None]:
    if grad is None:
        return (None,)
    return (extract_patches_backward(grad, *ctx.saved_tensors, ctx.image_shape, *ctx.options),)


_differentiable(extract_patches, _patches_setup, _patches_gradient, first_only=True)


def _expectation_setup(ctx: Any, inputs: Sequence[Any], _: Tensor) -> None:
    *tensors, ctx.estimator = inputs
    ctx.save_for_backward(*tensors)


def _expectation_gradient(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    return (*expectation_backward(grad, *ctx.saved_tensors, ctx.estimator), None, None, None)


_differentiable(expectation, _expectation_setup, _expectation_gradient)


def _no_second_derivative(op: Any) -> None:
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"ats::{op._opname.removesuffix('_backward')}: its gradient cannot be differentiated again "
            "(no double backward)"
        )

    _differentiable(op, lambda ctx, inputs, outputs: None, backward)


for _op in (sample_backward, extract_patches_backward, expectation_backward):
    _no_second_derivative(_op)
_differentiable(estimator_arrays, lambda ctx, _, outputs: ctx.mark_non_differentiable(*outputs), lambda ctx, *_: ())


# ---- autocast: as losses do, in float32 ----

for _op in (sample, topk, expectation):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(_op.name(), _device, torch.float32, lib=_library)


# ---- vmap ----


def _loop(op: Any) -> Callable[..., Any]:
    """One call for each element: right for every operation, and the only way where elements must not become rows."""

    def rule(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        pairs = [(x, d if isinstance(x, Tensor) else None) for x, d in zip(inputs, in_dims, strict=True)]
        outputs = [op(*(x if d is None else x.select(d, i) for x, d in pairs)) for i in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(torch.stack(output) for output in zip(*outputs, strict=True)), (0,) * len(outputs[0])

    return rule


def _fold(op: Any, *, batchless: int | None = None, costly: int | None = None, sizes: int | None = None) -> Any:
    """One call in which the mapped axis and the batch are one axis.

    ``batchless``: position of a tensor without a batch axis; ``costly``: of one too large to repeat. Elements are taken
    one by one if the first is mapped or the second is not. ``sizes``: position of sizes that begin with the batch.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        stays_whole = batchless is None or in_dims[batchless] is None
        if not stays_whole or (costly is not None and in_dims[costly] is None):
            return _loop(op)(info, in_dims, *inputs)
        folded = list(inputs)
        for i, (x, d) in enumerate(zip(inputs, in_dims, strict=True)):
            if isinstance(x, Tensor) and i != batchless:
                x = x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)
                folded[i] = x.flatten(0, 1)
        if sizes is not None:
            folded[sizes] = (info.batch_size * inputs[sizes][0], *inputs[sizes][1:])

        def unfold(output: Tensor) -> Tensor:
            return output.unflatten(0, (info.batch_size, output.shape[0] // info.batch_size))

        outputs = op(*folded)
        if isinstance(outputs, Tensor):
            return unfold(outputs), 0
        return tuple(map(unfold, outputs)), (0,) * len(outputs)

    return rule


# Rows of a batch are numbered by their place in it, so that two elements folded into one batch would not draw what they
# draw alone: sample takes them one by one.
for _op, _rule in {
    sample: _loop(sample),
    topk: _fold(topk),
    sample_backward: _fold(sample_backward),
    locate: _fold(locate),
    extract_patches: _fold(extract_patches, costly=0),
    extract_patches_backward: _fold(extract_patches_backward, sizes=2),
    expectation: _fold(expectation, batchless=3),
    expectation_backward: _fold(expectation_backward, batchless=4),
    estimator_arrays: _fold(estimator_arrays, batchless=2),
}.items():
    torch.library.register_vmap(_op.name(), _rule, lib=_library)
