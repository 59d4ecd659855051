"""The builder, its data, and the reference library's functions on tensors and symbolic inputs."""

import numpy as np
import pytest

import reference
from tolerances import assert_close

keras = pytest.importorskip("keras", exc_type=ImportError)

import ats_core
from ats_core.keras import ATSBuilder, ATSOutput, FromTensors, MultiResolutionBatch, SampleSoftmax, expected, sample

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras

ON_TORCH = keras.backend.backend() == "torch"
ops = keras.ops


def to_numpy(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def gradients(function, arrays, cotangent):
    """function(*tensors) -> tensor, and the gradients of sum(cotangent * result)."""
    if ON_TORCH:
        import torch

        tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
        result = function(*tensors)
        (result * torch.tensor(cotangent, dtype=result.dtype)).sum().backward()
        return to_numpy(result), [x.grad.numpy() for x in tensors]
    import tensorflow as tf

    tensors = [tf.constant(x) for x in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        result = function(*tensors)
        loss = tf.reduce_sum(result * tf.constant(cotangent, result.dtype))
    return to_numpy(result), [x.numpy() for x in tape.gradient(loss, tensors)]


# ---- FromTensors.patches ----


def patches_of(x_low, x_high, samples, offsets, *rest):
    patches, origins = FromTensors([x_low, x_high], None).patches(samples, offsets, *rest)
    return to_numpy(patches), to_numpy(origins)


def test_a_patch_that_is_the_whole_image():
    x_low, zero = normal(3, 20, 30, 2), np.zeros((3, 1, 2), "int32")
    patches, origins = patches_of(x_low, normal(3, 40, 60, 2), zero, zero, (1, 1), (20, 30), (20, 30), 0, 0)
    assert np.array_equal(patches[:, 0], x_low) and (origins == 0).all()


def test_patches_are_centred_on_what_the_cell_covers():
    x_low, x_high = normal(2, 100, 100, 1), normal(2, 1000, 1000, 1)
    zero = np.zeros((2, 1, 2), "int32")
    # cell 12 of 25: 40 pixels of the high resolution each, centre at 12.5 * 40 = 500
    patches, _ = patches_of(x_low, x_high, zero + 12, zero, (25, 25), [100, 100], [50, 50], 0, 1)
    assert np.array_equal(patches[:, 0], x_high[:, 475:525, 475:525])
    # cell 0: centre at 20, the patch begins 5 pixels outside, where it is 0
    patches, origins = patches_of(x_low, x_high, zero, zero, (25, 25), [100, 100], [50, 50], 0, 1)
    assert (origins == -5).all() and (patches[:, 0, :5] == 0).all() and (patches[:, 0, :, :5] == 0).all()
    assert np.array_equal(patches[:, 0, 5:, 5:], x_high[:, :45, :45])


def test_patches_are_those_of_patch_origins():
    """Without offsets but for the receptive field: the formula of the core."""
    x_low, x_high, field = normal(2, 21, 17, 1), normal(2, 90, 71, 1), (4, 2)
    cells = np.stack(np.meshgrid(np.arange(9), np.arange(8), indexing="ij"), -1).reshape(1, 72, 2).repeat(2, 0)
    offsets = np.zeros(cells.shape) + np.array(field) / 2
    seen = [21 - 4, 17 - 2]
    _, origins = patches_of(x_low, x_high, cells, offsets, (9, 8), seen, (7, 6), 0, 1)
    flat = np.arange(72)[None].repeat(2, 0)
    core = ats_core.patch_origins(flat, (9, 8), (90, 71), (7, 6), low_shape=(21, 17), receptive_field=field)
    assert np.array_equal(origins, core)


def test_sampling_within_patches():
    """Three levels: a patch of the second, then a patch of the third within it, at the place that both name."""
    levels = [normal(1, 10, 10, 1), normal(1, 40, 40, 1), normal(1, 160, 160, 1)]
    batch = FromTensors(levels, "y")
    _, first = batch.patches(np.array([[[2, 3]]]), np.zeros((1, 1, 2)), (10, 10), (10, 10), (8, 8), 0, 1)
    assert to_numpy(first).tolist() == [[[2 * 4 + 2 - 4, 3 * 4 + 2 - 4]]]
    patches, second = batch.patches(np.array([[[1, 0]]]), first, (2, 2), (8, 8), (12, 12), 1, 2)
    # cell (1, 0) of 2 x 2 in the 32 pixels of the third level: 16 each, centres at 24 and 8
    where = [6 * 4 + 24 - 6, 10 * 4 + 8 - 6]
    assert to_numpy(second).tolist() == [[where]]
    assert np.array_equal(to_numpy(patches)[0, 0], levels[2][0, where[0] : where[0] + 12, where[1] : where[1] + 12])
    assert batch.targets() == "y" and batch.inputs() == [] and np.array_equal(to_numpy(batch.data(1)), levels[1])


def test_channels_first():
    x_low, x_high = normal(2, 10, 8, 3), normal(2, 50, 40, 3)
    samples = np.array([[[3, 4], [9, 7]]] * 2)
    arguments = (samples, np.zeros((2, 2, 2)), (10, 8), (10, 8), (6, 6), 0, 1)
    last, _ = FromTensors([x_low, x_high], None, data_format="channels_last").patches(*arguments)
    moved = [np.moveaxis(x, -1, 1) for x in (x_low, x_high)]
    first, _ = FromTensors(moved, None, data_format="channels_first").patches(*arguments)
    assert np.array_equal(np.moveaxis(to_numpy(first), 2, -1), to_numpy(last))


# ---- sample and expected ----


@pytest.mark.parametrize("grid", [(7,), (4, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("use_logits", [False, True])
def test_sample(grid, replace, use_logits):
    attention = reference.weights_of((3, *grid))
    attention /= attention.reshape(3, -1).sum(1).reshape(3, *[1] * len(grid))
    keras.utils.set_random_seed(1)
    given = np.log(attention) if use_logits else attention
    samples, probabilities = sample(5, given, grid, replace=replace, use_logits=use_logits)
    samples, probabilities = to_numpy(samples), to_numpy(probabilities)
    assert samples.shape == (3, 5, len(grid)) and probabilities.shape == (3, 5)
    assert (samples >= 0).all() and (samples < grid).all()
    for b in range(3):
        np.testing.assert_allclose(probabilities[b], attention[b][tuple(samples[b].T)], rtol=1e-5)
        if not replace:
            assert len({tuple(cell) for cell in samples[b]}) == 5
    keras.utils.set_random_seed(1)
    again = to_numpy(sample(5, given, grid, replace=replace, use_logits=use_logits)[0])
    assert np.array_equal(samples, again)
    assert not np.array_equal(samples, to_numpy(sample(5, given, replace=replace, use_logits=use_logits)[0]))


def test_sample_of_a_symbolic_map():
    grid = keras.Input((4, 5))
    model = keras.Model(grid, sample(6, grid, (4, 5)))
    attention = reference.weights_of((3, 4, 5))
    samples, probabilities = model.predict(attention, verbose=0)
    flat = attention.reshape(3, -1)
    at = samples[..., 0] * 5 + samples[..., 1]
    assert_close(probabilities, np.take_along_axis(reference.probabilities(flat), at, 1), "float32")
    with pytest.raises(ValueError, match=r"^sample_space: must be the attention's grid, \(4, 5\), got \(5, 4\)"):
        sample(6, grid, (5, 4))


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("rest", [(), (3,), (2, 4)], ids=str)
def test_expected(replace, rest):
    rng = np.random.default_rng(0)
    attention = rng.uniform(0.02, 0.15, (2, 5)).astype("float32")
    features, cotangent = normal(2, 5, *rest), rng.normal(size=(2, *rest))
    estimator = "iid" if replace else "des_raj"
    value, grads = gradients(lambda a, f: expected(a, f, replace), [attention, features], cotangent)
    assert_close(value, reference.expectation(features, attention, estimator), "float32", scale=3)
    wanted = reference.expectation_backward(cotangent, features, attention, estimator)
    for x, y in zip(grads, wanted[::-1], strict=True):
        assert_close(x, y, "float32", scale=np.abs(y).max())


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("rest", [(), (3,)], ids=str)
def test_expected_with_weights_of_each_row(replace, rest):
    rng = np.random.default_rng(0)
    attention = rng.uniform(0.02, 0.15, (2, 5)).astype("float32")
    weights = rng.uniform(0.1, 1, (2, 5)).astype("float32")  # they need not have the sum 1
    features, cotangent = normal(2, 5, *rest), rng.normal(size=(2, *rest))
    value, (d_attention, d_features) = gradients(
        lambda a, f: expected(a, f, replace, weights), [attention, features], cotangent
    )
    for b in range(2):  # a row alone has weights (n,), in which everything is linear
        w, g, f, a = (x[b : b + 1].astype("float64") for x in (weights, cotangent, features, attention))
        if replace:
            estimator, each, w = "iid", None, w.reshape(1, 5, *[1] * len(rest))
            scale = 5 * w
        else:
            estimator, each, scale = "des_raj", w[0], 1.0
        assert_close(value[b : b + 1], reference.expectation(scale * f, a, estimator, weights=each), "float32", scale=5)
        d_f, d_a = reference.expectation_backward(g, scale * f, a, estimator, weights=each)
        assert_close(d_features[b : b + 1], scale * d_f, "float32", scale=np.abs(d_f).max())
        assert_close(d_attention[b : b + 1], d_a, "float32", scale=np.abs(d_a).max())
    same = to_numpy(expected(attention, features, replace, weights[0]))
    assert np.array_equal(same, to_numpy(expected(attention, features, replace, weights[:1].repeat(2, 0))))


def test_expected_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match=r"^weights: must be \(B, n\) or \(n,\) with n = 5, got \(2, 4\)"):
        expected(np.full((2, 5), 0.1), normal(2, 5), weights=np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"^weights: are taken with tensors, not in a functional model"):
        expected(keras.Input((5,)), keras.Input((5, 3)), weights=np.ones((2, 5)))


# ---- the builder ----


def networks():
    keras.utils.set_random_seed(0)
    attention = keras.Sequential([keras.layers.Dense(1), SampleSoftmax(squeeze_channels=True)])
    feature = keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.GlobalAveragePooling2D()])
    return attention, feature


def build(x_low, x_high, attention, feature):
    return (
        ATSBuilder()
        .from_tensors([x_low, x_high], "y")
        .attention(attention)
        .feature(feature)
        .patch_size((8, 6))
        .n_patches(5)
    )


def check(result, x_low, x_high, attention, feature, estimator, field=0):
    """The attention, one of the patches that it may mean, and the estimate from them."""
    outputs, map_, patches = (to_numpy(x) for x in (result.outputs, result.attention, result.patches))
    np.testing.assert_allclose(map_, to_numpy(attention(x_low)), rtol=1e-6)
    grid, cells = map_.shape[1:], map_[0].size
    origins = reference.locate(np.arange(cells)[None].repeat(len(x_high), 0), grid, x_high.shape[1:3], (8, 6),
                               x_low.shape[1:3], (field, field))  # fmt: skip
    possible = reference.extract_patches(x_high, origins, (8, 6)).astype("float32")
    drawn = np.array([[next(k for k in range(cells) if np.array_equal(possible[b, k], patches[b, i]))
                       for i in range(5)] for b in range(len(x_high))])  # fmt: skip
    probabilities = np.take_along_axis(map_.reshape(len(map_), -1), drawn, 1)
    features = to_numpy(feature(patches.reshape(-1, *patches.shape[2:]))).reshape(len(x_high), 5, 4)
    assert_close(outputs, reference.expectation(features, probabilities, estimator), "float32", scale=1)


@pytest.mark.parametrize("estimator", ["murthy", "des_raj", "iid"])
def test_builder_with_tensors(estimator):
    (attention, feature), x_low, x_high = networks(), normal(3, 6, 5, 2), normal(3, 62, 49, 2)
    builder = build(x_low, x_high, attention, feature).estimator(estimator)
    result = (builder.sample_with_replacement() if estimator == "iid" else builder.sample_without_replacement()).get()
    assert isinstance(result, ATSOutput)
    inputs, outputs, targets, map_, patches = result
    assert inputs == [] and targets == "y" and outputs.shape == (3, 4) and map_.shape == (3, 6, 5)
    assert patches.shape == (3, 5, 8, 6, 2)
    check(result, x_low, x_high, attention, feature, estimator)


def test_builder_with_a_receptive_field():
    attention = keras.Sequential([keras.layers.Conv2D(1, 3), SampleSoftmax(squeeze_channels=True)])
    feature, x_low, x_high = networks()[1], normal(2, 8, 7, 2), normal(2, 62, 49, 2)
    result = build(x_low, x_high, attention, feature).attention_receptive_field(2).get()
    check(result, x_low, x_high, attention, feature, "murthy", field=2)


def test_builder_with_symbolic_inputs(tmp_path):
    attention, feature = networks()
    x_low, x_high = keras.Input((6, 5, 2)), keras.Input((62, 49, 2))
    result = build(x_low, x_high, attention, feature).get()
    model = keras.Model([x_low, x_high], list(result[1:2] + result[3:]))
    low, high = normal(3, 6, 5, 2), normal(3, 62, 49, 2)
    values = model.predict([low, high], verbose=0)
    check(ATSOutput(outputs=values[0], attention=values[1], patches=values[2]), low, high, attention, feature, "murthy")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for x, y in zip(model.predict([low, high], verbose=0), loaded.predict([low, high], verbose=0), strict=True):
        assert np.array_equal(x, y)
    trained = keras.Model([x_low, x_high], result.outputs)
    trained.compile("sgd", "mse")
    assert np.isfinite(trained.fit([low, high], np.zeros((3, 4)), verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match=r"^sample_space: must be known in a functional model"):
        build(keras.Input((None, None, 2)), keras.Input((None, None, 2)), attention, feature).get()


@pytest.mark.skipif(ON_TORCH, reason="tf.function is TensorFlow's")
def test_builder_in_a_tf_function_with_unknown_sizes():
    import tensorflow as tf

    attention, feature = networks()
    attention(normal(1, 6, 5, 2)), feature(normal(1, 8, 6, 2))  # variables are made outside of a graph

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 2)), tf.TensorSpec((None, None, None, 2))])
    def compute(x_low, x_high):
        result = build(x_low, x_high, attention, feature).get()
        return result.outputs, result.patches

    low, high = normal(3, 6, 5, 2), normal(3, 62, 49, 2)
    one, other = compute(low, high), compute(low, high)
    assert one[0].shape == (3, 4) and one[1].shape == (3, 5, 8, 6, 2)
    assert not np.array_equal(one[1], other[1])  # drawn anew in every call of the graph


def test_builder_with_a_batch_of_ones_own():
    (attention, feature), x_low, x_high = networks(), normal(2, 6, 5, 2), normal(2, 62, 49, 2)
    inner = FromTensors([x_low, x_high], 3)
    seen = []

    class Mine(MultiResolutionBatch):
        def inputs(self):
            return ["a"]

        def targets(self):
            return 7

        def data(self, level):
            return inner.data(level)

        def patches(self, *arguments):
            seen.append(arguments)
            return inner.patches(*arguments)

    result = ATSBuilder().from_batch(Mine()).attention(attention).feature(feature).patch_size(8).n_patches(3).get()
    assert result.inputs == ["a"] and result.targets == 7 and result.patches.shape == (2, 3, 8, 8, 2)
    samples, offsets, space, previous, size, *levels = seen[0]
    assert samples.shape == (2, 3, 2) and (to_numpy(offsets) == 0).all() and tuple(space) == (6, 5)
    assert tuple(previous) == (6, 5) and tuple(size) == (8, 8) and levels == [0, 1]


@pytest.mark.parametrize("symbolic", [False, True])
def test_builder_takes_an_attention_with_a_channel(symbolic):
    x_low, x_high = normal(3, 6, 5, 2), normal(3, 62, 49, 2)
    attention = keras.Sequential([keras.layers.Dense(1), SampleSoftmax()])
    given = [keras.Input(x.shape[1:]) for x in (x_low, x_high)] if symbolic else [x_low, x_high]
    result = build(*given, attention, networks()[1]).get()
    if symbolic:
        values = keras.Model(given, [result.outputs, result.attention, result.patches])([x_low, x_high])
        result = ATSOutput(outputs=values[0], attention=values[1], patches=values[2])
    assert result.attention.shape == (3, 6, 5, 1)
    result = result._replace(attention=result.attention[..., 0])
    check(result, x_low, x_high, lambda x: attention(x)[..., 0], networks()[1], "murthy")


def test_builder_refuses_what_attention_sampling_refuses():
    (attention, feature), x_low, x_high = networks(), normal(2, 6, 5, 2), normal(2, 62, 49, 2)
    for given in ([x_high, x_low], [keras.Input((62, 49, 2)), keras.Input((6, 5, 2))]):
        with pytest.raises(
            ValueError, match=r"^xs\[1\]: is smaller than xs\[0\] on every axis, \(6, 5\) and \(62, 49\)"
        ):
            ATSBuilder().from_tensors(given, None)
    with pytest.raises(ValueError, match=r"^xs\[1\]: must have as many axes as xs\[0\], 4, got"):
        ATSBuilder().from_tensors([x_low, x_high[0]], None)
    for wrong in (keras.layers.Dense(2), keras.layers.Flatten()):
        with pytest.raises(ValueError, match=r"^attention: must be \(B, \*grid\) with 2 axes in grid"):
            build(x_low, x_high, wrong, feature).get()
    with pytest.raises(TypeError, match=r"^batch: must be a MultiResolutionBatch, got \[1\]"):
        ATSBuilder().from_batch([1])
    with pytest.raises(ValueError, match=r"^estimator: must be one of .*got 'best'"):
        ATSBuilder().estimator("best")
    with pytest.raises(ValueError, match=r"^estimator: 'normalized' is biased"):
        ATSBuilder().estimator("normalized")
    with pytest.raises(TypeError, match=r"^replacement: must be True or False, got 'yes'"):
        ATSBuilder().sample_with(replacement="yes")
    whole = build(x_low, x_high, attention, feature).sample_with(replacement=1).estimator("iid")
    check(whole.get(), x_low, x_high, attention, feature, "iid")


def test_the_data_format_of_a_batch_of_ones_own():
    """Its channels come first because it says so, or because Keras does."""
    x_low, x_high = np.moveaxis(normal(2, 6, 5, 2), -1, 1), np.moveaxis(normal(2, 62, 49, 2), -1, 1)
    inner = FromTensors([x_low, x_high], None, data_format="channels_first")

    class Mine(MultiResolutionBatch):
        inputs, targets, data, patches = inner.inputs, inner.targets, inner.data, inner.patches

    class First(Mine):
        data_format = "channels_first"

    def patches(batch):
        builder = (
            ATSBuilder().from_batch(batch).attention(lambda x: ops.exp(x[:, 0])).feature(lambda p: ops.mean(p, (2, 3)))
        )
        return builder.patch_size(8).n_patches(3).get().patches

    assert MultiResolutionBatch.data_format is None and patches(First()).shape == (2, 3, 2, 8, 8)
    with pytest.raises(ValueError, match=r"^data_format: must be one of .*got 'first'"):
        patches(type("Wrong", (Mine,), {"data_format": "first"})())
    keras.config.set_image_data_format("channels_first")
    try:
        assert patches(Mine()).shape == (2, 3, 2, 8, 8)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_builder_says_what_is_missing():
    with pytest.raises(ValueError, match=r"^batch: is missing; call from_tensors\(\) or from_batch\(\) before get"):
        ATSBuilder().get()
    attention, feature = networks()
    whole = build(normal(2, 6, 5, 2), normal(2, 62, 49, 2), attention, feature)
    with pytest.raises(ValueError, match=r"^estimator: 'iid' is for sampling with replacement"):
        whole.estimator("iid").get()
    for name in ("attention", "feature", "patch_size", "n_patches"):
        builder = build(normal(2, 6, 5, 2), normal(2, 62, 49, 2), attention, feature)
        setattr(builder, f"_{name}", None)
        with pytest.raises(ValueError, match=rf"^{name}: is missing; call {name}\(\) before get"):
            builder.get()
    with pytest.raises(ValueError, match=r"^n_patches: must be at least 1, got 0"):
        ATSBuilder().n_patches(0)
