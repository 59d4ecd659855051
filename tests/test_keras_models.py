"""attention_sampling in whole models: functional and subclassed, what they compute and how they train."""

import numpy as np
import pytest

import reference
from tolerances import assert_close

keras = pytest.importorskip("keras", exc_type=ImportError)

from keras import layers

import ats_core
from ats_core.keras import (
    AttentionSampling,
    L2Normalize,
    MultinomialEntropy,
    SampleSoftmax,
    attention_sampling,
    multinomial_entropy,
)

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras

ON_TORCH = keras.backend.backend() == "torch"
GRID, SIZE = (6, 5, 4), (60, 50, 40)


def to_numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def images(axes=2, batch=4, channels=1, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *SIZE[:axes], channels)).astype("float32")


def pool(axes):
    return {1: layers.AveragePooling1D, 2: layers.AveragePooling2D, 3: layers.AveragePooling3D}[axes](10)


def attention_network():
    return keras.Sequential(
        [layers.Dense(1, name="attention_logits"), SampleSoftmax(squeeze_channels=True, smooth=0.01)]
    )


def feature_network(axes=2, width=3):
    mean = {1: layers.GlobalAveragePooling1D, 2: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling3D}[axes]
    return keras.Sequential([layers.Dense(width, activation="tanh"), mean()], name="feature")


def functional(axes=2, channels=1, shape=None, **options):
    """x_high -> [features, attention, patches]."""
    keras.utils.set_random_seed(0)
    x_high = keras.Input((*(shape or SIZE[:axes]), channels))
    sampling = attention_sampling(attention_network(), feature_network(axes), 8, 5, **options)
    return keras.Model(x_high, sampling([pool(axes)(x_high), x_high]))


def classifier(**options):
    model = functional(**options)
    return keras.Model(model.input, layers.Dense(3, activation="softmax")(model.output[0]))


def gradients(model, x, training=True):
    """The gradients of sum(first output ** 2) and the losses at the trainable weights, by path."""
    if ON_TORCH:
        first = model(x, training=training)[0]
        loss = (keras.ops.cast(first, "float32") ** 2).sum() + sum(model.losses)
        model.zero_grad()
        loss.backward()
        grads = [v.value.grad for v in model.trainable_variables]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            first = model(x, training=training)[0]
            loss = tf.reduce_sum(tf.cast(first, tf.float32) ** 2) + sum(model.losses)
        grads = tape.gradient(loss, [v.value for v in model.trainable_variables])
    return {v.path: to_numpy(g) for v, g in zip(model.trainable_variables, grads, strict=True)}


# ---- what it computes ----


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"estimator": "des_raj"}, {"estimator": "horvitz_thompson"},
                                     {"replace": True}, {"estimator": "iid", "replace": True}], ids=str)  # fmt: skip
def test_it_is_what_the_reference_says(axes, options):
    model, x = functional(axes, seed=7, **options), images(axes)
    features, attention, patches = map(to_numpy, model(x))
    low = to_numpy(pool(axes)(x))
    drawn = ats_core.sample(attention, 5, rng=(7, 0), replace=options.get("replace", False))
    origins = reference.locate(drawn.indices, GRID[:axes], SIZE[:axes], (8,) * axes, low.shape[1:-1])
    assert np.array_equal(patches, reference.extract_patches(x, origins, (8,) * axes).astype("float32"))
    kernel, bias = model.get_layer("feature").get_weights()
    each = np.tanh(patches.astype("float64") @ kernel + bias).mean(axis=tuple(range(2, 2 + axes)))
    estimator = options.get("estimator", "iid" if options.get("replace") else "murthy")
    assert_close(features, reference.expectation(each, drawn.attention, estimator, drawn.threshold), "float32", scale=1)
    grads = gradients(model, x)
    assert len(grads) == 4
    for path, grad in grads.items():
        assert np.isfinite(grad).all(), path
        if "attention_logits/bias" not in path:  # the softmax takes it out
            assert np.abs(grad).max() > 0, path


def test_the_gradient_at_the_attention_is_that_of_the_reference():
    """Weights instead of an attention network, so that their gradient is d loss / d attention."""
    weights = reference.weights_of((1, *GRID[:2]))
    weights /= weights.sum()

    class Map(keras.layers.Layer):
        def build(self, shape):
            self.map = self.add_weight(shape=weights.shape[1:], initializer=lambda *a, **k: weights[0], name="map")

        def call(self, x):
            return keras.ops.ones_like(x[:, :, :, 0]) * self.map

    x_high = keras.Input((*SIZE[:2], 2))
    sampling = attention_sampling(Map(), layers.GlobalAveragePooling2D(), 8, 5, seed=1)
    model = keras.Model(x_high, sampling([pool(2)(x_high), x_high]))
    x = images(channels=2)
    (grad,) = gradients(model, x).values()
    drawn = ats_core.sample(np.repeat(weights, 4, 0), 5, rng=(1, 2**32 * 0))
    origins = reference.locate(drawn.indices, GRID[:2], SIZE[:2], (8, 8))
    features = reference.extract_patches(x, origins, (8, 8)).mean(axis=(2, 3))
    value = reference.expectation(features, drawn.attention, "murthy")
    _, d_drawn = reference.expectation_backward(2 * value, features, drawn.attention, "murthy")
    expected = reference.sample_backward(d_drawn, np.repeat(weights, 4, 0).reshape(4, -1), drawn.indices).sum(0)
    assert_close(grad.reshape(-1), expected, "float32", scale=np.abs(expected).max())


@pytest.mark.parametrize("scales", [None, (1, 2)])
def test_channels_first_equals_channels_last(scales):
    keras.utils.set_random_seed(0)
    x, outputs = images(channels=2), []
    for data_format in ("channels_last", "channels_first"):
        x_high = keras.Input(x.shape[1:] if data_format == "channels_last" else (2, *SIZE[:2]))
        axis = -1 if data_format == "channels_last" else 1
        x_low = keras.Input((6, 5, 2) if axis == -1 else (2, 6, 5))

        def features(patches, axis=axis):  # per stacked channel: the mean of the patch
            assert patches.shape[axis] == (2 if scales is None else 4)
            return keras.ops.mean(patches, axis=(1, 2) if axis == -1 else (2, 3))

        sampling = attention_sampling(
            lambda low, axis=axis: keras.ops.exp(keras.ops.mean(low, axis=axis)),
            features, 8, 5, data_format=data_format, scales=scales, seed=4,
        )  # fmt: skip
        model = keras.Model([x_low, x_high], sampling([x_low, x_high]))
        high, low = x, x.reshape(4, 6, 10, 5, 10, 2).mean((2, 4))
        if axis == 1:
            high, low = np.moveaxis(high, -1, 1), np.moveaxis(low, -1, 1)
        values, attention, patches = map(to_numpy, model([low, high]))
        outputs.append(
            (values, attention, np.moveaxis(patches, 2 if scales is None else 3, -1) if axis == 1 else patches)
        )
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_scales_are_stacked_finest_first():
    x = images(channels=2)
    seen = []
    sampling = attention_sampling(
        attention_network(),
        lambda p: (seen.append(to_numpy(p)), keras.ops.mean(p, axis=(1, 2)))[1],
        8,
        5,
        scales=(1, 2),
    )
    patches = to_numpy(sampling([pool(2)(x), x])[2])
    assert patches.shape == (4, 5, 2, 8, 8, 2) and seen[0].shape == (20, 8, 8, 4)
    for scale in range(2):
        assert np.array_equal(seen[0][..., 2 * scale : 2 * scale + 2], patches[:, :, scale].reshape(20, 8, 8, 2))


def test_features_of_any_rank_and_callables():
    x = keras.Input((*SIZE[:2], 2))
    dense = layers.Dense(3)
    low = pool(2)(x)
    features, _, _ = attention_sampling(lambda t: layers.Softmax(axis=(1, 2))(layers.Dense(1)(t)), dense, 8, 5)(
        [low, x]
    )
    model = keras.Model(x, features)
    assert model.output_shape == (None, 8, 8, 3)
    assert model.predict(images(channels=2), verbose=0).shape == (4, 8, 8, 3)
    assert len(model.trainable_variables) == 4


def test_the_patch_size_of_the_feature_layer():
    for feature in (keras.Sequential([keras.Input((7, 9, 1)), layers.Flatten()]), keras.layers.Flatten()):
        if not isinstance(feature, keras.Sequential):
            feature.build((None, 7, 9, 1))
        x = keras.Input((*SIZE[:2], 1))
        _, _, patches = attention_sampling(attention_network(), feature)([pool(2)(x), x])
        assert patches.shape == (None, 10, 7, 9, 1)
    with pytest.raises(ValueError, match=r"^patch_size: cannot be inferred from a callable"):
        attention_sampling(attention_network(), lambda x: x)
    with pytest.raises(ValueError, match=r"^patch_size: cannot be inferred from .*has input shape None"):
        attention_sampling(attention_network(), keras.Sequential([layers.Flatten()]))
    with pytest.raises(ValueError, match=r"^patch_size: cannot be inferred from input shape .*unknown sizes"):
        attention_sampling(attention_network(), keras.Sequential([keras.Input((7, None, 1)), layers.Flatten()]))


def test_unknown_sizes():
    model = functional(shape=(None, None), seed=3)
    assert model.output_shape == [(None, 3), (None, None, None), (None, 5, 8, 8, 1)]
    for side in (60, 80):
        x = np.random.default_rng(0).normal(size=(2, side, 50, 1)).astype("float32")
        features, attention, patches = model.predict(x, verbose=0)
        assert features.shape == (2, 3) and attention.shape == (2, side // 10, 5) and patches.shape == (2, 5, 8, 8, 1)


def test_explicit_rng_and_topk():
    sampled, best = functional(), functional(inference="topk")
    x = images()
    low = pool(2)(x)
    sampling = AttentionSampling(attention_network(), feature_network(), 8, 5)
    one, again, other = (to_numpy(sampling([low, x], rng=rng)[2]) for rng in ((1, 2), np.array([1, 2]), (1, 3)))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert not np.array_equal(to_numpy(sampled(x)[2]), to_numpy(sampled(x)[2]))
    features, attention, patches = map(to_numpy, best(x))
    chosen = ats_core.topk(attention, 5)
    origins = reference.locate(chosen.indices, GRID[:2], SIZE[:2], (8, 8))
    assert np.array_equal(patches, reference.extract_patches(x, origins, (8, 8)).astype("float32"))
    each = to_numpy(best.get_layer("feature")(patches.reshape(20, 8, 8, 1))).reshape(4, 5, 3)
    assert_close(features, reference.expectation(each, chosen.attention, "normalized"), "float32", scale=1)
    assert not np.array_equal(to_numpy(best(x, training=True)[2]), to_numpy(best(x, training=True)[2]))


def test_no_pixel_is_touched_while_a_model_is_put_together():
    """An image of 400 GB: only its shape can have been looked at."""
    x = keras.Input((100_000, 1_000_000, 1))
    model = Subclassed(pool=layers.AveragePooling2D(10_000))
    assert model(x).shape == (None, 3)


def test_training_reaches_the_parts_of_a_subclassed_model():
    model, x = Subclassed(inference="topk"), images()
    for training, options in ((False, {}), (False, {"training": False}), (True, {"training": True})):
        one, other = to_numpy(model(x, **options)), to_numpy(model(x, **options))
        assert np.array_equal(one, other) != training
    x, low = images(), to_numpy(pool(2)(images()))
    sampling = AttentionSampling(attention_network(), feature_network(), 8, 5, inference="topk")
    for training in (None, False, True):
        one, other = (to_numpy(sampling([low, x], training=training)[2]) for _ in range(2))
        assert np.array_equal(one, other) != (training is True)


def test_rng_as_an_input():
    x_low, x_high, rng = (
        keras.Input((6, 5, 1)),
        keras.Input((*SIZE[:2], 1)),
        keras.Input(batch_shape=(2,), dtype="int64"),
    )
    patches = attention_sampling(attention_network(), feature_network(), 8, 5)([x_low, x_high], rng=rng)[2]
    model, x = keras.Model([x_low, x_high, rng], patches), images()
    low = to_numpy(pool(2)(x))
    one, again, other = (to_numpy(model([low, x, np.array([1, offset])])) for offset in (2, 2, 3))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_the_default_data_format_is_that_of_keras():
    keras.config.set_image_data_format("channels_first")
    try:
        sampling = attention_sampling(SampleSoftmax(squeeze_channels=True), layers.Flatten(), 8, 5)
    finally:
        keras.config.set_image_data_format("channels_last")
    features, attention, patches = sampling([np.ones((2, 1, 6, 5), "float32"), np.ones((2, 1, 60, 50), "float32")])
    assert features.shape == (2, 64) and attention.shape == (2, 6, 5) and patches.shape == (2, 5, 1, 8, 8)


def test_l2_features():
    model, x = functional(), images()
    model = keras.Model(model.input, L2Normalize()(model.output[0]))
    np.testing.assert_allclose(np.linalg.norm(to_numpy(model(x)), axis=1), 1, rtol=1e-6)


# ---- training ----


def test_the_regulariser_is_in_the_losses():
    model, x = functional(attention_regularizer=multinomial_entropy(0.5)), images()
    attention = to_numpy(model(x)[1]).astype("float64")
    (loss,) = model.losses
    np.testing.assert_allclose(to_numpy(loss), 0.5 * (attention * np.log(attention + 1e-6)).sum() / 4, rtol=1e-5)
    grads = gradients(keras.Model(model.input, [keras.ops.stop_gradient(model.output[0])]), x)
    assert np.abs(next(g for path, g in grads.items() if "attention_logits/kernel" in path)).max() > 0


class Subclassed(keras.Model):
    def __init__(self, pool=None, inference="sample", **kwargs):
        super().__init__(**kwargs)
        self.pool = pool or layers.AveragePooling2D(10)
        self.sampling = attention_sampling(
            attention_network(),
            feature_network(),
            8,
            5,
            inference=inference,
            attention_regularizer=MultinomialEntropy(0.5),
            seed=5,
        )
        self.dense = layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.dense(self.sampling([self.pool(x), x])[0])


@pytest.mark.parametrize("make", [lambda: classifier(attention_regularizer=MultinomialEntropy(0.5)), Subclassed],
                         ids=["functional", "subclassed"])  # fmt: skip
def test_fit_evaluate_predict(make):
    model, x = make(), images(batch=8)
    y = np.arange(8) % 3
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.predict(x, verbose=0)  # builds it
    before = [w.copy() for w in model.get_weights()]
    losses = model.fit(x, y, batch_size=3, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and len(model.losses) == 1 and len(before) == 6
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert sum(changed) >= 5  # all but the bias before the softmax
    loss, accuracy = model.evaluate(x, y, verbose=0)
    crossentropy = -np.log(np.mean([model.predict(x, verbose=0)[np.arange(8), y] for _ in range(20)], 0)).mean()
    entropy = 0.5 * np.log(30)  # of an attention that is nearly uniform
    assert 0 <= accuracy <= 1 and abs(loss - (crossentropy - entropy)) < 0.2
    assert model.predict(x, verbose=0).shape == (8, 3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = classifier(attention_regularizer=MultinomialEntropy(0.01))
        x, y = images(), np.arange(4) % 3
        whole = keras.Model(model.input, [layer.output for layer in model.layers if layer.name.startswith("activity")])
        assert keras.backend.standardize_dtype(whole(x).dtype) == "float32"
        for path, grad in gradients(keras.Model(model.input, [model.output]), x).items():
            assert np.isfinite(grad).all() and (np.abs(grad).max() > 0 or "attention_logits/bias" in path), path
        model.compile("adam", "sparse_categorical_crossentropy")
        assert np.isfinite(model.fit(x, y, epochs=3, verbose=0).history["loss"]).all()
        assert all(np.isfinite(w).all() for w in model.get_weights())
    finally:
        keras.config.set_dtype_policy("float32")


def quick_start(kernel=3):
    from ats.core import attention_sampling
    from ats.utils.layers import L2Normalize, SampleSoftmax
    from ats.utils.regularizers import multinomial_entropy

    x_high = keras.Input((100, 100, 1))
    x_low = layers.AveragePooling2D(pool_size=(10, 10))(x_high)
    attention = keras.Sequential([
        layers.Conv2D(8, 3, padding="same", activation="tanh"),
        layers.Conv2D(1, kernel, padding="same"),
        SampleSoftmax(squeeze_channels=True),
    ])  # fmt: skip
    feature = keras.Sequential([layers.Conv2D(8, 3, activation="relu"), layers.GlobalAveragePooling2D(), L2Normalize()])
    features, attention, _ = attention_sampling(
        attention, feature, patch_size=(32, 32), n_patches=10, attention_regularizer=multinomial_entropy(0.01)
    )([x_low, x_high])
    return keras.Model(inputs=x_high, outputs=layers.Dense(10, activation="softmax")(features))


def on_torch_cpu():
    if not ON_TORCH:
        return False
    import torch

    return not torch.cuda.is_available()


def on_slow_bfloat16():
    """Where the CPU has no instructions that PyTorch's fast kernels for bfloat16 need."""
    if not on_torch_cpu():
        return False
    import torch

    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def no_gradient(where):
    """PyTorch has no gradient of a convolution with one output channel and Keras's weights where its CPU kernels are the
    slow ones: float16, a small batch of one, and bfloat16 on some CPUs. It is not ours: neither the layout of the gradient
    that comes to the convolution nor anything else behind it matters."""
    return pytest.mark.xfail(
        where,
        reason="slow_conv2d: grad_weight must be contiguous (PyTorch's CPU kernels)",
        raises=RuntimeError,
        strict=True,
    )


@pytest.mark.parametrize("policy, kernel, batch", [
    pytest.param("mixed_float16", 3, 4, marks=no_gradient(on_torch_cpu())),
    pytest.param("float32", 3, 1, marks=no_gradient(on_torch_cpu())),
    pytest.param("mixed_bfloat16", 3, 4, marks=no_gradient(on_slow_bfloat16())),
    pytest.param("mixed_bfloat16", 3, 1, marks=no_gradient(on_slow_bfloat16())),
    ("mixed_float16", 1, 4), ("float32", 1, 1), ("float32", 3, 4),
])  # fmt: skip
def test_convolutions_train(policy, kernel, batch):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model, x = quick_start(kernel), np.random.default_rng(0).normal(size=(batch, 100, 100, 1)).astype("float32")
        model.compile("adam", "sparse_categorical_crossentropy")
        before = [w.copy() for w in model.get_weights()]
        assert np.isfinite(model.fit(x, np.arange(batch), epochs=2, verbose=0).history["loss"]).all()
        after = model.get_weights()
        assert all(np.isfinite(w).all() for w in after) and not np.array_equal(before[2], after[2])
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("dtype", ["mixed_float16", "float64"])
def test_a_dtype_of_its_own(dtype):
    sampling = attention_sampling(attention_network(), feature_network(), 8, 5, dtype=dtype)
    patches = sampling([images()[:, ::10, ::10], images()])[2]
    assert keras.backend.standardize_dtype(patches.dtype) == dtype.removeprefix("mixed_")
    assert attention_sampling.from_config(sampling.get_config()).dtype_policy.name == dtype
    seen = []
    sampling = attention_sampling(attention_network(), lambda p: (seen.append(p.dtype), keras.ops.mean(p, (1, 2)))[1], 8, 5,
                                  scales=(1, 2), dtype=dtype)  # fmt: skip
    sampling([keras.Input((6, 5, 1)), keras.Input((*SIZE[:2], 1))])
    assert seen == [dtype.removeprefix("mixed_")]


def test_a_model_with_uint8_images():
    x_low, x_high = keras.Input((6, 5, 1)), keras.Input((*SIZE[:2], 1), dtype="uint8")
    sampling = attention_sampling(attention_network(), feature_network(), 8, 5, mean=128.0, std=64.0, seed=1)
    model = keras.Model([x_low, x_high], sampling([x_low, x_high]))
    x = np.random.default_rng(0).integers(0, 256, (2, *SIZE[:2], 1), np.uint8)
    _, attention, patches = model.predict([images()[:2, ::10, ::10], x], verbose=0)
    origins = reference.locate(ats_core.sample(attention, 5, rng=(1, 0)).indices, GRID[:2], SIZE[:2], (8, 8))
    assert_close(patches, reference.extract_patches(x, origins, (8, 8), mean=128.0, std=64.0), "float32", scale=2)
