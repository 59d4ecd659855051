"""The Keras layers over sources: the same as over images in memory and as in PyTorch, fed by SourceDataset and tf.data."""

import gc
import itertools

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

from keras import layers

import ats_core
from ats_core.keras import (
    AttentionMonitor,
    AttentionSampling,
    SamplePatches,
    SampleSoftmax,
    SourceDataset,
    SourceInput,
    attention_sampling,
    multinomial_entropy,
)
from ats_core.sources import SourceBatch, from_handles, open_source, to_handles
from sources_files import pixels
from test_keras_models import ON_TORCH, feature_network, to_numpy
from test_keras_saving import in_a_fresh_process
from test_sources_batch import Tiled

pytestmark = pytest.mark.keras

SHAPES = [(128, 160), (96, 64), (80, 208)]  # a pixel of a thumbnail is 4 x 4, a cell 4 x 4 of these


def network(axes=2, n_patches=5, patch_size=8, stride=4, seed=0, width=3, smooth=0.0, channel=-1, **options):
    keras.utils.set_random_seed(seed)
    convolution = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[axes - 1]
    data_format = "channels_last" if channel == -1 else "channels_first"
    attention = keras.Sequential([
        convolution(1, stride, strides=stride, data_format=data_format),
        SampleSoftmax(squeeze_channels=True, smooth=smooth, data_format=data_format),
    ])  # fmt: skip
    feature = feature_network(axes, width) if channel == -1 else lambda x: keras.ops.mean(x, tuple(range(2, 2 + axes)))
    return AttentionSampling(attention, feature, patch_size, n_patches, data_format=data_format, **options)


def level(image, factor):
    """Every factor-th pixel."""
    return image[tuple(slice(None, None, factor) for _ in image.shape[:-1])]


def thumbnails(images, factor=4):
    """Padded with noise: it must not matter."""
    parts = [level(image, factor).astype(np.float32) / 255 for image in images]
    shapes = np.array([part.shape[:-1] for part in parts])
    low = np.random.default_rng(1).random((len(parts), *shapes.max(0), images[0].shape[-1]), np.float32)
    for out, part in zip(low, parts, strict=True):
        out[tuple(slice(size) for size in part.shape[:-1])] = part
    return low, shapes


def run(layer, inputs, **options):
    """Features, attention, patches and the gradients of both networks, as arrays."""
    outputs = layer(inputs, **options)  # builds it
    variables = layer.trainable_variables
    if ON_TORCH:
        layer.zero_grad()
        outputs = layer(inputs, **options)
        (outputs[0] ** 2).sum().backward()
        gradients = [variable.value.grad for variable in variables]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            outputs = layer(inputs, **options)
            loss = tf.reduce_sum(outputs[0] ** 2)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
    return [to_array(x) for x in (*outputs, *gradients)]


def to_array(tensor):
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return to_numpy(tensor)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# ---- the same as in memory ----


@pytest.mark.parametrize("axes, padding", [(1, "constant"), (2, "constant"), (2, "edge"), (3, "reflect")])
@pytest.mark.parametrize("normalised", [False, True])
def test_equal_sizes_are_the_arrays_in_memory(axes, padding, normalised):
    shape = (128, 96, 32)[:axes]
    options = {"padding": padding, "fill": 7.3, "receptive_field": 3}
    options |= {"mean": (100.0, 3.0), "std": (50.0, 0.7)} if normalised else {}
    images = [pixels((*shape, 2), seed=seed) for seed in range(3)]
    low, shapes = thumbnails(images)
    layer = network(axes, patch_size=24, **options)
    expected = run(layer, [low, np.stack(images)], rng=(3, 2**40))
    with SourceBatch([Tiled([image], (16,) * axes).source() for image in images]) as sources:
        for inputs in ([low, sources], [low, to_handles(sources)], [low, sources, shapes.astype(np.int32)]):
            assert_equal(run(layer, inputs, rng=(3, 2**40)), expected)
        layer.sampler.inference = layer.expectation.inference = "topk"
        assert_equal(run(layer, [low, sources]), run(layer, [low, np.stack(images)]))


@pytest.mark.parametrize("to", ["float16", "bfloat16", "float64"])
def test_every_dtype_is_converted_as_in_memory(to):
    for dtype, data_format in itertools.product(
        ("uint8", "int16", "uint16", "float16", "float32", "float64"), ("channels_last", "channels_first")
    ):
        if ON_TORCH and dtype == "uint16":
            continue  # Keras makes int32 of the images in memory
        images = [pixels((40, 50, 2), dtype, seed=seed) for seed in range(2)]
        whole, low = np.stack(images), np.ones((2, 4, 5, 2), np.float32)
        if data_format == "channels_first":
            whole, low = np.moveaxis(whole, -1, 1), np.moveaxis(low, -1, 1)
        attention = np.random.default_rng(0).random((2, 4, 5), np.float32)
        for fill, scales in ((0.0, None), (0.1, None), (-3.0, (1,)), (1e6, None)):
            layer = SamplePatches(4, (12, 19), mean=(1.0, 2.0), std=3.0, fill=fill, scales=scales, dtype=to,
                                  data_format=data_format, details=True)  # fmt: skip
            with SourceBatch(images) as sources:
                found = layer([low, sources, attention], rng=1)
            assert keras.backend.standardize_dtype(found[0].dtype) == to
            assert_equal([to_array(x) for x in found], [to_array(x) for x in layer([low, whole, attention], rng=1)])


def test_scales_are_levels():
    images = [pixels((320, 192, 3), seed=seed) for seed in (0, 1)]
    pyramids = [[level(image, factor) for factor in (1, 4)] for image in images]
    more = [pyramids[1][0], level(pyramids[1][0], 2), pyramids[1][1]]  # one of them has a level more, which is not read
    low, _ = thumbnails(images, 8)
    layer = network(patch_size=16, scales=(1, 4), padding="reflect")
    with SourceBatch([Tiled(levels, (32, 32)).source() for levels in (pyramids[0], more)]) as sources:
        _, _, patches = layer([low, sources], rng=1)
        drawn = layer.sampler([low, sources, layer.attention(low)], rng=1)
        assert_equal([to_numpy(patches)], [to_numpy(drawn[0])])
        layer.sampler.details = True
        origins = to_numpy(layer.sampler([low, sources, layer.attention(low)], rng=1)[3])
    whole = [np.stack(levels).astype(np.float32) for levels in zip(*pyramids, strict=True)]
    np.testing.assert_array_equal(to_numpy(patches), ats_core.extract_patches(whole, origins, 16, padding="reflect"))
    with SourceBatch(images) as sources, pytest.raises(Exception, match=r"scales: array .* no level with downsample 4"):
        layer([low, sources])


# ---- different sizes ----


@pytest.mark.parametrize("options", [{}, {"estimator": "horvitz_thompson"}, {"estimator": "iid", "replace": True},
                                     {"receptive_field": 4, "mean": 100.0, "std": 50.0}], ids=str)  # fmt: skip
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_what_pytorch_does(options, padded):
    torch = pytest.importorskip("torch")
    import ats_core.torch as ats

    images = [pixels((*(shape if padded else (96, 64)), 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images)
    layer = network(smooth=0.1, attention_regularizer=multinomial_entropy(0.5), **options)
    layer([low, SourceBatch(images)])
    convolution, dense = layer.attention.layers[0], layer.feature.layers[0]
    attention = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 4, 4), ats.SampleSoftmax(0.1))
    with torch.no_grad():
        attention[0].weight.copy_(torch.from_numpy(to_numpy(convolution.kernel)).permute(3, 2, 0, 1))
        attention[0].bias.copy_(torch.from_numpy(to_numpy(convolution.bias)))

    class Feature(torch.nn.Module):
        def forward(self, x):
            kernel, bias = (torch.from_numpy(to_numpy(v)) for v in (dense.kernel, dense.bias))
            return torch.tanh(x.movedim(1, -1) @ kernel + bias).mean((1, 2))

    module = ats.AttentionSampling(
        attention, Feature(), 8, 5, dtype=torch.float32, attention_regularizer=ats.MultinomialEntropy(0.5), **options
    )
    with SourceBatch(images) as sources:
        more = [shapes] if padded else []
        found = [to_numpy(x) for x in layer([low, sources, *more], rng=(3, 4), training=True)]
        low_shapes = torch.from_numpy(shapes) if padded else None
        expected = module(torch.from_numpy(low).permute(0, 3, 1, 2), sources, rng=(3, 4), low_shapes=low_shapes)
    np.testing.assert_array_equal(found[2], expected.patches.movedim(2, -1).numpy())
    np.testing.assert_allclose(found[1], expected.attention.detach().numpy(), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[0], expected.features.detach().numpy(), rtol=1e-5, atol=1e-6)
    (loss,) = layer.losses
    np.testing.assert_allclose(to_numpy(loss), module.regularization.item(), rtol=1e-5)
    if padded:
        with SourceBatch(images) as sources:
            mask = sources.low_mask((8, 13), low_shape=low.shape[1:3], low_shapes=shapes,
                                    receptive_field=options.get("receptive_field", 0))  # fmt: skip
        assert not mask.all() and (found[1][~mask] == 0).all()
        np.testing.assert_allclose(found[1].sum((1, 2)), 1, rtol=1e-6)


@pytest.mark.parametrize("use_logits", [False, True])
@pytest.mark.parametrize("channel", [False, True])
def test_no_padded_cell_is_drawn(use_logits, channel):
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images)
    layer = SamplePatches(24, 8, use_logits=use_logits, details=True)
    weights = np.random.default_rng(0).random((3, 8, 13), np.float32)
    with SourceBatch(images) as sources:
        mask = sources.low_mask((8, 13), low_shape=low.shape[1:3], low_shapes=shapes).reshape(3, -1)
        attention = weights[..., None] if channel else weights
        drawn = [to_numpy(x) for x in layer([low, sources, attention, shapes], rng=(2, 1))]
        assert mask[np.arange(3)[:, None], drawn[2]].all() and len(set(drawn[2][1])) == 24  # all there are
        weights = np.exp(weights) if use_logits else weights
        expected = ats_core.sample(weights * mask.reshape(weights.shape), 24, rng=(2, 1))
        np.testing.assert_allclose(drawn[1], expected.attention, rtol=1e-5)
        origins = sources.patch_origins(drawn[2], (8, 13), 8, low_shape=low.shape[1:3], low_shapes=shapes)
        np.testing.assert_array_equal(drawn[3], origins)
        np.testing.assert_array_equal(drawn[0], sources.read_patches(origins, 8).astype(np.float32))
        with pytest.raises(Exception, match="n_patches: 25 cells cannot be drawn from the 24 of array"):
            SamplePatches(25, 8)([low, sources, attention, shapes])


def test_gradients_are_those_without_padding():
    """All cells are drawn, so that both estimates are exact."""
    image = pixels((96, 32, 3), seed=9)
    part, shapes = thumbnails([image])
    low = np.full((1, 32, 32, 3), 0.7, np.float32)
    low[:, : shapes[0, 0], : shapes[0, 1]] = part
    layer = network(n_patches=12)
    with SourceBatch([image]) as sources:
        found = run(layer, [low, sources, shapes], rng=1)
    expected = run(layer, [part, image[None]], rng=2)
    assert found[1].shape == (1, 8, 8) and np.count_nonzero(found[1]) == 12
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(found[3:], expected[3:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# ---- in models ----


def model(size=(None, None), channels=3, dtype="uint8", low_shapes=True, **options):
    keras.utils.set_random_seed(3)
    x_low, handles = keras.Input((*size, channels), dtype=dtype), SourceInput("slides")
    more = [keras.Input((2,), dtype="int64")] if low_shapes else []
    attention = keras.Sequential(
        [layers.Rescaling(1 / 255), layers.Conv2D(1, 4, strides=4), SampleSoftmax(squeeze_channels=True, smooth=0.1)]
    )
    options = {"mean": 127.0, "std": 64.0, "attention_regularizer": multinomial_entropy(0.01), "seed": 5, **options}
    features, _, patches = attention_sampling(attention, feature_network(), 8, 5, **options)([x_low, handles, *more])
    assert patches.shape == (None, 5, *((1,) if "scales" in options else ()), 8, 8, channels)
    return keras.Model([x_low, handles, *more], layers.Dense(2, activation="softmax")(features))


def in_memory(x_low, x_high):
    """The same model over images in memory."""
    keras.utils.set_random_seed(3)
    x_low, x_high = keras.Input(x_low.shape[1:], dtype="uint8"), keras.Input(x_high.shape[1:], dtype="uint8")
    attention = keras.Sequential(
        [layers.Rescaling(1 / 255), layers.Conv2D(1, 4, strides=4), SampleSoftmax(squeeze_channels=True, smooth=0.1)]
    )
    features, _, _ = attention_sampling(attention, feature_network(), 8, 5, mean=127.0, std=64.0, seed=5,
                                        attention_regularizer=multinomial_entropy(0.01))([x_low, x_high])  # fmt: skip
    return keras.Model([x_low, x_high], layers.Dense(2, activation="softmax")(features))


def test_fit_is_that_of_images_in_memory():
    images = [pixels((96, 64, 3), seed=seed) for seed in range(6)]
    y = np.arange(6) % 2
    data = SourceDataset(images, (24, 16), y, batch_size=2)
    x_low = np.stack([open_source(image).thumbnail((24, 16))[0] for image in images])
    histories = []
    for make, fed in (
        (model, {"x": data}),
        (lambda: in_memory(x_low, np.stack(images)), {"x": [x_low, np.stack(images)], "y": y, "batch_size": 2}),
    ):
        net = make()
        net.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        histories.append(net.fit(**fed, epochs=3, shuffle=False, verbose=0).history["loss"])
        assert np.isfinite(histories[-1]).all()
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-5)
    assert len(set(histories[0])) == 3
    assert net.predict([x_low, np.stack(images)], verbose=0).shape == (6, 2)


def test_training_over_sources_of_different_sizes(tmp_path):
    paths = []
    for seed, shape in enumerate((*SHAPES, (64, 64), (100, 90))):
        np.save(tmp_path / f"{seed}.npy", pixels((*shape, 3), seed=seed))
        paths.append(tmp_path / f"{seed}.npy")
    data = SourceDataset(paths, 40, [0, 1, 0, 1, 1], batch_size=2, shuffle=True, seed=1, workers=2)
    net = model()
    net.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = [w.copy() for w in net.get_weights()]
    assert np.isfinite(net.fit(data, epochs=2, verbose=0).history["loss"]).all()
    assert sum(not np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True)) >= 5
    assert len(net.evaluate(data, verbose=0)) == 2
    plain = SourceDataset(paths, 40, batch_size=3)
    assert net.predict(plain, verbose=0).shape == (5, 2)
    assert net.predict_on_batch(plain[1][0]).shape == (2, 2)


@pytest.mark.skipif(ON_TORCH, reason="tf.data")
def test_tf_data():
    import tensorflow as tf

    data = SourceDataset([pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)], 40, [0, 1, 1])
    signature = (
        (
            tf.TensorSpec((None, 40, 40, 3), tf.uint8),
            tf.TensorSpec((None,), tf.int64),
            tf.TensorSpec((None, 2), tf.int64),
        ),
        tf.TensorSpec((None,), tf.int64),
    )
    batches = tf.data.Dataset.from_generator(
        lambda: map(data.__getitem__, range(len(data))), output_signature=signature
    )
    batches = batches.apply(tf.data.experimental.assert_cardinality(len(data)))
    histories = []
    for fed in (batches.prefetch(2), data):
        net = model()
        net.compile("adam", "sparse_categorical_crossentropy")
        histories.append(net.fit(fed, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-6)
    sampler = SamplePatches(4, 8)
    attention = tf.ones((1, 10, 10))
    found = list(batches.map(lambda x, _: sampler([x[0], x[1], attention, x[2]], rng=(1, 2))[0]))
    assert found[2].shape == (1, 4, 8, 8, 3)
    for (x, _), patches in zip((data[i] for i in range(3)), found, strict=True):
        np.testing.assert_array_equal(patches, sampler([x[0], x[1], attention, x[2]], rng=(1, 2))[0])


@pytest.mark.skipif(ON_TORCH, reason="tf.function")
def test_in_a_graph_of_unknown_shapes():
    import tensorflow as tf

    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images)
    layer = network()
    layer.call([low, np.zeros((3, 99, 99, 3), np.float32)])  # builds the networks
    signature = [
        tf.TensorSpec((None, None, None, 3)),
        tf.TensorSpec((None,), tf.int64),
        tf.TensorSpec((None, 2), tf.int64),
    ]
    traced = tf.function(lambda *inputs: layer(list(inputs), rng=(1, 2)), input_signature=signature)
    with SourceBatch(images) as sources:
        assert_equal(
            [x.numpy() for x in traced(tf.constant(low), to_handles(sources), shapes)],
            [x.numpy() for x in layer([low, sources, shapes], rng=(1, 2))],
        )
    assert traced.get_concrete_function().structured_outputs[2].shape.as_list() == [None, 5, 8, 8, 3]


def test_saving(tmp_path):
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    net = model(estimator="horvitz_thompson", scales=(1,))
    paths = [tmp_path / f"{seed}.npy" for seed in range(3)]
    for path, image in zip(paths, images, strict=True):
        np.save(path, image)
    data = SourceDataset(paths, 40, batch_size=3)
    net.predict(data, verbose=0)
    net.save(tmp_path / "model.keras")
    net.save(tmp_path / "model.h5")
    code = """
        import sys
        import numpy as np, keras
        from ats_core.keras import SourceDataset
        folder = sys.argv[1]
        data = SourceDataset([f"{folder}/{i}.npy" for i in range(3)], 40, batch_size=3)
        for name in ("model.keras", "model.h5"):
            model = keras.models.load_model(f"{folder}/{name}", compile=False)
            np.save(f"{folder}/{name}.npy", model.predict(data, verbose=0))
        """
    in_a_fresh_process(code, tmp_path)
    expected = net.predict(data, verbose=0)
    assert np.array_equal(np.load(tmp_path / "model.keras.npy"), expected)  # the random state was saved too
    assert np.load(tmp_path / "model.h5.npy").shape == expected.shape


@keras.saving.register_keras_serializable(package="test_keras_sources")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        attention = keras.Sequential([layers.Rescaling(1 / 255), layers.Dense(1), SampleSoftmax(squeeze_channels=True)])
        self.sampling = attention_sampling(attention, feature_network(), 8, 5, seed=1)
        self.head = layers.Dense(2)

    def call(self, inputs):
        return self.head(self.sampling(inputs)[0])


def test_a_subclassed_model(tmp_path):
    data = SourceDataset([pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)], 40, [0, 1, 1], 3)
    net = Subclassed()
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(net.fit(data, epochs=2, verbose=0).history["loss"]).all()
    net.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), net.predict(data, verbose=0))


# ---- SourceDataset ----


def test_batches_hold_what_they_say():
    images = [pixels((*shape, 3), "uint16", seed=seed) for seed, shape in enumerate(SHAPES)]
    for data_format, channel in (("channels_last", -1), ("channels_first", 1)):
        data = SourceDataset(images, 40, np.eye(3), 2, fill=9, data_format=data_format)
        assert len(data) == 2
        (low, handles, shapes), y = data[0]
        with SourceBatch(images[:2]) as sources:
            expected, low_shapes, _ = sources.thumbnails(40)
        assert np.array_equal(shapes, low_shapes) and np.array_equal(y, np.eye(3)[:2])
        assert np.array_equal(from_handles(handles)[1].read(0, (0, 0), 9), images[1][:9, :9])
        low = np.moveaxis(low, channel, -1)
        assert low.shape == (2, 40, 40, 3) and low.dtype == np.uint16
        for row, (height, width) in enumerate(shapes):
            np.testing.assert_array_equal(low[row, :height, :width], expected[row, :height, :width])
            assert (low[row, height:] == 9).all() and (low[row, :, width:] == 9).all()
        assert data[1][0][0].shape[0] == 1
        gc.collect()
        assert np.array_equal(data[0][0][1], handles)  # it holds its sources
        with pytest.raises(IndexError):
            data[2]
    assert SourceDataset(images, (20, 30))[0][0][0].shape == (1, 20, 30, 3)
    low, _, shapes = SourceDataset(images, downsample=4, batch_size=2)[1][0]
    assert low.shape == (1, 32, 52, 3) and shapes.tolist() == [[20, 52]]


def test_orders_depend_on_seed_and_epoch():
    images = [pixels((8, 8, 1), seed=seed) for seed in range(12)]

    def epochs(**options):
        data = SourceDataset(images, 8, np.arange(12), 5, **options)
        orders = []
        for _ in range(3):
            orders.append(np.concatenate([data[i][1] for i in range(3)]).tolist())
            data.on_epoch_end()
        return orders

    one = epochs(shuffle=True, seed=4)
    assert one == epochs(shuffle=True, seed=4) != epochs(shuffle=True, seed=5)
    assert len({tuple(order) for order in one}) == 3 and all(sorted(order) == list(range(12)) for order in one)
    assert epochs() == [list(range(12))] * 3
    keras.utils.set_random_seed(1)
    drawn = epochs(shuffle=True)
    keras.utils.set_random_seed(1)
    assert drawn == epochs(shuffle=True)


def test_bad_feeding():
    images = [pixels((8, 8, 1))] * 3
    with pytest.raises(ValueError, match="targets: must be one for each of 3 sources, got 1"):
        SourceDataset(images, 8, [0])
    with pytest.raises(ValueError, match="use_multiprocessing: handles of sources mean nothing"):
        SourceDataset(images, 8, workers=2, use_multiprocessing=True)
    with pytest.raises(ValueError, match="batch_size: must be at least 1, got 0"):
        SourceDataset(images, 8, batch_size=0)
    with pytest.raises(TypeError, match="exactly one of size and downsample"):
        SourceDataset(images)
    with pytest.raises(TypeError, match="size: must be"):
        SourceDataset(images, 8.5)


# ---- errors ----


def test_bad_input():
    images = [pixels((64, 64, 3)), pixels((64, 32, 3))]
    low, shapes = thumbnails(images)
    layer = network()
    sources = SourceBatch(images)
    handles = to_handles(sources)
    with pytest.raises(Exception, match=r"x_high: must be 1 sources with 2 axes.*got 2 with 2"):
        layer([low[:1], sources])
    with pytest.raises(Exception, match=r"x_high: must be 1 sources with 2 axes.*got 2 with 2"):
        layer([low[:1], sources, shapes])
    with pytest.raises(ValueError, match=r"low_shapes: must be \(B, 2\), got \(2, 3\)"):
        layer([low, sources, np.ones((2, 3), np.int64)])
    with pytest.raises(Exception, match=r"low_shapes: must have the shape \(2, 2\)"):
        layer([low, sources, shapes[:1]])
    with pytest.raises(Exception, match=r"low_shapes: must be 1 to \(16, 16\), got \(16, 17\) for array"):
        layer([low, sources, shapes + np.array([0, 1])])
    with pytest.raises(ValueError, match="low_shapes: is for sources"):
        layer([low, np.zeros((2, 64, 64, 3), np.float32), shapes])
    with pytest.raises(
        ValueError, match=r"x_low: must have a batch axis, channels and 1 to 3 spatial axes, got \(2, 3\)"
    ):
        layer([np.zeros((2, 3), np.float32), sources])
    with pytest.raises(Exception, match=r"x_high: must have the 1 channels of x_low, got sources with 3"):
        network(n_patches=2)([low[..., :1], sources])
    with pytest.raises(ValueError, match=r"x_high: handles of sources must be int64 \(SourceInput\), got float32"):
        layer([keras.Input((16, 16, 3)), keras.Input(())])
    with pytest.raises(ValueError, match=r"inputs: must be \[x_low, x_high\], or low_shapes too"):
        layer([low, sources, shapes, shapes])
    with pytest.raises(Exception, match="handles: 7 stands for no source that is there"):
        layer([low, np.array([7, handles[0]])])
    net = keras.Model(
        [x := keras.Input((16, 16, 3)), s := SourceInput()],
        attention_sampling(layer.attention, layer.feature, 8, 5)([x, s]),
    )
    del sources
    gc.collect()
    with pytest.raises(Exception, match=r"handles: .* stands for no source that is there: nothing holds its source"):
        net.predict([low, handles], verbose=0)


def test_a_file_that_vanishes_is_named(tmp_path):
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path in paths:
        np.save(path, pixels((64, 64, 3)))
    data = SourceDataset(paths, 16, [0, 1], 2)
    x, _ = data[0]
    net = model()
    for source in from_handles(x[1]):
        source._release()
    paths[1].unlink()
    with pytest.raises(Exception, match=r"b\.npy: level 0, region .*no such file"):
        net.predict_on_batch(x)


def test_the_monitor_shows_images_in_memory(tmp_path):
    for package in ("PIL", "matplotlib", "tensorboard"):
        pytest.importorskip(package)
    data = SourceDataset([pixels((64, 64, 3))] * 2, 16, [0, 1], 2)
    net = model()
    net.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(TypeError, match="x_high: AttentionMonitor shows images in memory; give a probe"):
        net.fit(data, verbose=0, callbacks=[AttentionMonitor(tmp_path, list(data[0][0]), draws=2)])
