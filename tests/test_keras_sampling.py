"""SamplePatches and Expectation: values, gradients and picks, on whichever backend Keras has."""

import itertools

import numpy as np
import pytest

import reference
from tolerances import assert_close

keras = pytest.importorskip("keras", exc_type=ImportError)

import ats_core
from ats_core.keras import Expectation, SamplePatches

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras

ops = keras.ops
LOW, HIGH, GRID, PATCH = (6, 5, 4), (31, 26, 22), (5, 4, 3), (7, 4, 3)


def to_numpy(tensor):
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = ops.cast(tensor, "float32")
    return np.asarray(ops.convert_to_numpy(tensor))


def gradients(function, arrays, cotangent):
    """function(*tensors) -> tensor, and the gradients of sum(cotangent * result) at each of them."""
    if keras.backend.backend() == "torch":
        import torch

        tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
        result = function(*tensors)
        (ops.cast(result, "float64") * torch.tensor(cotangent, dtype=torch.float64)).sum().backward()
        return to_numpy(result), [x.grad.numpy() for x in tensors]
    import tensorflow as tf

    tensors = [tf.constant(x) for x in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        result = function(*tensors)
        loss = tf.reduce_sum(tf.cast(result, tf.float64) * tf.constant(cotangent, tf.float64))
    return to_numpy(result), [x.numpy() for x in tape.gradient(loss, tensors)]


def inputs(axes, batch=3, channels=2, seed=0, dtype="float32"):
    """x_low, x_high and a distribution of attention, channels last."""
    rng = np.random.default_rng(seed)
    low, high = (rng.normal(size=(batch, *size[:axes], channels)).astype(dtype) for size in (LOW, HIGH))
    attention = rng.exponential(size=(batch, *GRID[:axes])).astype(dtype)
    return low, high, attention / attention.reshape(batch, -1).sum(1).reshape(-1, *(1,) * axes)


def first(x):
    return np.moveaxis(x, -1, 1)


# ---- SamplePatches ----


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    "options",
    [{}, {"scales": (1, 3), "padding": "edge"}, {"padding": "reflect", "mean": (0.5, -1.0), "std": 2.0},
     {"receptive_field": 3, "fill": 4.0}, {"replace": True}],
    ids=str,
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_reference(axes, data_format, options):
    low, high, attention = inputs(axes)
    layer = SamplePatches(4, PATCH[:axes], data_format=data_format, details=True, **options)
    drawn = ats_core.sample(attention, 4, rng=(5, 6), replace=options.get("replace", False))
    origins = reference.locate(drawn.indices, GRID[:axes], HIGH[:axes], PATCH[:axes], LOW[:axes],
                               (options.get("receptive_field", 0),) * axes)  # fmt: skip
    extraction = {key: value for key, value in options.items() if key not in ("receptive_field", "replace")}
    expected = reference.extract_patches(high, origins, PATCH[:axes], **extraction)
    cotangent = np.random.default_rng(1).normal(size=expected.shape)
    if data_format == "channels_first":
        low, high = first(low), first(high)
    channel = -1 if data_format == "channels_last" else -1 - axes

    def patches(image):
        return ops.moveaxis(layer([low, image, attention], rng=(5, 6))[0], channel, -1)

    values, (d_image,) = gradients(patches, [high], cotangent)
    assert_close(values, expected, "float32", scale=np.abs(expected).max())
    extraction.pop("fill", None), extraction.pop("mean", None)
    d_expected = reference.extract_patches_backward(cotangent, origins, HIGH[:axes], PATCH[:axes], **extraction)
    d_image = np.moveaxis(d_image, 1, -1) if data_format == "channels_first" else d_image
    assert_close(d_image, d_expected, "float32", scale=np.abs(d_expected).max())

    cotangent = np.random.default_rng(2).normal(size=(3, 4))
    values, (d_attention,) = gradients(lambda a: layer([low, high, a], rng=(5, 6))[1], [attention], cotangent)
    flat = attention.reshape(3, -1)
    assert_close(values, np.take_along_axis(reference.probabilities(flat), drawn.indices, 1), "float32")
    d_expected = reference.sample_backward(cotangent, flat, drawn.indices)
    assert_close(d_attention.reshape(3, -1), d_expected, "float32", scale=np.abs(d_expected).max())

    _, _, indices, where, threshold = map(to_numpy, layer([low, high, attention], rng=(5, 6)))
    assert indices.dtype == where.dtype == np.int64
    assert np.array_equal(indices, drawn.indices) and np.array_equal(where, origins)
    assert np.array_equal(threshold, drawn.threshold)


def test_the_same_picks_as_numpy():
    low, high, attention = inputs(2)
    for seed, offset, logits in itertools.product((0, -7, 2**62), (0, 2**40), (False, True)):
        layer = SamplePatches(6, 3, use_logits=logits, details=True)
        weights = np.log(attention) if logits else attention
        for rng in ((seed, offset), np.array([seed, offset], np.int64)):
            indices = to_numpy(layer([low, high, weights], rng=rng)[2])
            assert np.array_equal(indices, ats_core.sample(weights, 6, logits=logits, rng=(seed, offset)).indices)
    indices = to_numpy(SamplePatches(6, 3, details=True)([low, high, attention], rng=11)[2])
    assert np.array_equal(indices, ats_core.sample(attention, 6, rng=11).indices)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_rng_tensors(dtype):
    """Keras makes int32 of integers."""
    low, high, attention = inputs(2)
    layer = SamplePatches(6, 3, details=True)
    for rng in (ops.convert_to_tensor([5, 1], dtype=dtype), np.array([5, 1], dtype)):
        indices = to_numpy(layer([low, high, attention], rng=rng)[2])
        assert np.array_equal(indices, ats_core.sample(attention, 6, rng=(5, 1)).indices)


def test_call_c_draws_with_seed_and_c_times_2_to_the_32():
    low, high, attention = inputs(2)
    layer = SamplePatches(6, 3, details=True, seed=12)
    for call in range(3):
        indices = to_numpy(layer([low, high, attention])[2])
        assert np.array_equal(indices, ats_core.sample(attention, 6, rng=(12, call * 2**32)).indices)


def test_set_random_seed_holds():
    low, high, attention = inputs(2)

    def draw():
        layer = SamplePatches(6, 3, details=True)
        return [to_numpy(layer([low, high, attention])[2]) for _ in range(2)]

    keras.utils.set_random_seed(1)
    one = draw()
    keras.utils.set_random_seed(1)
    again, other = draw(), draw()
    assert np.array_equal(one, again) and not np.array_equal(one, other) and not np.array_equal(one[0], one[1])


def test_topk_when_not_training():
    low, high, attention = inputs(2)
    layer = SamplePatches(6, 3, inference="topk", details=True)
    best = ats_core.topk(attention, 6)
    for options in ({}, {"training": False}):
        _, probabilities, indices, _, threshold = layer([low, high, attention], **options)
        assert np.array_equal(to_numpy(indices), reference.topk(attention.reshape(3, -1), 6))
        assert np.array_equal(to_numpy(probabilities), best.attention) and np.isinf(to_numpy(threshold)).all()
    indices = to_numpy(layer([low, high, attention], rng=3, training=True)[2])
    assert np.array_equal(indices, ats_core.sample(attention, 6, rng=3).indices)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_channel_axis_of_one_is_dropped(data_format):
    low, high, attention = inputs(2)
    if data_format == "channels_first":
        low, high = first(low), first(high)
    layer = SamplePatches(6, 3, details=True, data_format=data_format)
    axis = 1 if data_format == "channels_first" else -1
    for one, other in zip(
        layer([low, high, attention], rng=3), layer([low, high, np.expand_dims(attention, axis)], rng=3), strict=True
    ):
        assert np.array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("image", ["uint8", "float16", "float32"])
def test_dtypes(policy, image):
    low, high, attention = inputs(2, dtype="float64" if policy == "float64" else "float32")
    high = (20 * high + 100).clip(0, 255).astype(image)
    layer = SamplePatches(4, 3, details=True, dtype=policy, mean=100.0, std=20.0)
    outputs = layer([low, high, attention], rng=1)
    real = "float64" if policy == "float64" else "float32"
    compute = policy.removeprefix("mixed_")
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in outputs]
    assert dtypes == [compute, real, "int64", "int64", real]
    drawn = ats_core.sample(attention, 4, rng=1)
    origins = reference.locate(drawn.indices, GRID[:2], HIGH[:2], (3, 3), LOW[:2])
    expected = reference.extract_patches(high, origins, (3, 3), mean=100.0, std=20.0)
    assert_close(to_numpy(outputs[0]), expected, compute, scale=np.abs(expected).max())
    spec = layer.compute_output_spec([keras.KerasTensor(x.shape, x.dtype.name) for x in (low, high, attention)])
    assert [(x.shape, x.dtype) for x in spec] == [(tuple(x.shape), d) for x, d in zip(outputs, dtypes, strict=True)]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_shapes_with_unknown_sizes(axes, data_format):
    low, high, attention = inputs(axes)
    if data_format == "channels_first":
        low, high = first(low), first(high)
    layer = SamplePatches(4, 3, scales=(1, 2), details=True, data_format=data_format)
    free = [keras.Input([2 if size == 2 else None for size in x.shape[1:]]) for x in (low, high)]
    model = keras.Model([*free, grid := keras.Input((None,) * axes)], layer([*free, grid], rng=(1, 2)))
    for spec, x, y in zip(
        model.output, model([low, high, attention]), layer([low, high, attention], rng=(1, 2)), strict=True
    ):
        assert np.array_equal(to_numpy(x), to_numpy(y))
        assert len(spec.shape) == len(x.shape)
        assert all(size in (None, known) for size, known in zip(spec.shape, x.shape, strict=True))
    again = model.predict([low, high, attention], verbose=0)  # a graph, on TensorFlow
    assert all(np.array_equal(x, to_numpy(y)) for x, y in zip(again, model([low, high, attention]), strict=True))


def test_the_random_state_is_saved_and_loaded(tmp_path):
    low, high, attention = inputs(2)
    parts = [keras.Input(x.shape[1:]) for x in (low, high, attention)]
    model = keras.Model(parts, SamplePatches(6, 3, details=True, seed=3)(parts))
    for _ in range(2):
        model([low, high, attention])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        indices = to_numpy(each([low, high, attention])[2])
        assert np.array_equal(indices, ats_core.sample(attention, 6, rng=(3, 2 * 2**32)).indices)


def test_a_call_with_rng_leaves_the_state_alone():
    low, high, attention = inputs(2)
    layer = SamplePatches(6, 3, details=True, seed=12)
    layer([low, high, attention], rng=1)
    indices = to_numpy(layer([low, high, attention])[2])
    assert np.array_equal(indices, ats_core.sample(attention, 6, rng=(12, 0)).indices)


# ---- Expectation ----


@pytest.mark.parametrize("estimator", ["murthy", "des_raj", "horvitz_thompson", "iid", "normalized"])
@pytest.mark.parametrize("rest", [(), (5,), (2, 3, 4)])
def test_expectation(estimator, rest):
    attention = inputs(2)[2]
    drawn = ats_core.sample(attention, 5, rng=1, replace=estimator == "iid")
    rng = np.random.default_rng(3)
    features, cotangent = rng.normal(size=(3, 5, *rest)).astype("float32"), rng.normal(size=(3, *rest))
    more = [drawn.threshold] if estimator == "horvitz_thompson" else []
    layer = Expectation(estimator)
    value, grads = gradients(lambda f, a: layer([f, a, *more]), [features, drawn.attention], cotangent)
    threshold = drawn.threshold if more else None
    expected = reference.expectation(features, drawn.attention, estimator, threshold)
    assert_close(value, expected, "float32", scale=np.abs(features).max())
    wanted = reference.expectation_backward(cotangent, features, drawn.attention, estimator, threshold)
    for x, y in zip(grads, wanted, strict=True):
        assert_close(x, y, "float32", scale=np.abs(y).max())
    spec = layer.compute_output_spec(
        [keras.KerasTensor(x.shape, "float32") for x in (features, drawn.attention, *more)]
    )
    assert spec.shape == value.shape


def test_expectation_under_topk_is_normalized_when_not_training():
    features, attention = np.random.default_rng(0).normal(size=(2, 3, 4)), np.array([[0.5, 0.1, 0.2]] * 2)
    layer = Expectation("murthy", inference="topk")
    for training, estimator in ((True, "murthy"), (False, "normalized"), (None, "normalized")):
        result = to_numpy(layer([features, attention], training=training))
        assert_close(result, reference.expectation(features, attention, estimator), "float64", scale=3.0)


def test_half_features_keep_their_dtype_and_attention_its_precision():
    features = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float16")
    attention = np.array([[1e-7, 0.1, 0.2]] * 2, "float32")  # 1e-7 is no float16
    result = to_numpy(Expectation(dtype="mixed_float16")([features, attention]))
    assert result.dtype == np.float16
    assert_close(result, reference.expectation(features, attention, "murthy"), "float16", scale=3.0)
