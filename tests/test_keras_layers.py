"""The small layers and the regulariser: what they compute, their dtypes and shapes, and that configs bring them back."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

import ats_core.keras as ats

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras


def to_numpy(tensor):
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


LAYERS = [
    (ats.SamplePatches, {"n_patches": 3, "patch_size": (4, 5), "receptive_field": (1, 2), "use_logits": True,
                         "scales": (1, 2), "padding": "edge", "fill": 2.0, "mean": (0.5, 1.0), "std": 2.0,
                         "inference": "topk", "data_format": "channels_first", "seed": 5, "details": True}),
    (ats.SamplePatches, {"n_patches": 3, "patch_size": 4, "replace": True}),
    (ats.Expectation, {"estimator": "des_raj", "inference": "topk"}),
    (ats.SampleSoftmax, {"squeeze_channels": True, "smooth": 0.25, "data_format": "channels_first"}),
    (ats.L2Normalize, {"axis": (1, 2)}),
    (ats.ResizeImages, {"size": (3, 4), "mode": "bicubic", "antialias": True, "data_format": "channels_first"}),
    (ats.TotalReshape, {"shape": (-1, 3, 4)}),
    (ats.ImageLinearTransform, {"a": (0.5, 0.75), "b": (0.0, 0.125), "p": 0.5, "seed": 1}),
    (ats.ImagePan, {"pixels": 7, "p": 0.5, "horizontally": False, "vertically": True, "mode": "BILINEAR",
                    "data_format": "channels_first", "seed": 2}),
]  # fmt: skip


@pytest.mark.parametrize("make, options", LAYERS, ids=lambda x: getattr(x, "__name__", ""))
def test_configs_bring_layers_back(make, options):
    layer = make(**options, name="mine", dtype="mixed_float16", trainable=False)
    config = layer.get_config()
    for key, value in options.items():
        assert config[key] == value, key
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is make and again.get_config() == config
    assert again.name == "mine" and again.dtype_policy.name == "mixed_float16" and again.trainable is False
    assert keras.saving.get_registered_name(make) == f"ats>{make.__name__}"
    assert make.from_config(config).get_config() == config


def test_regularisers_come_back():
    entropy = ats.MultinomialEntropy(0.5, 1e-4)
    assert entropy.get_config() == {"strength": 0.5, "eps": 1e-4}
    assert ats.multinomial_entropy(0.5, 1e-4).get_config() == entropy.get_config()
    assert ats.multinomial_entropy().get_config() == {"strength": 1.0, "eps": 1e-6}
    layer = ats.ActivityRegularizer(entropy, name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again.regularizer, ats.MultinomialEntropy) and again.name == "mine"
    assert again.regularizer.get_config() == entropy.get_config()
    built_in = ats.ActivityRegularizer("l1")
    assert isinstance(type(built_in).from_config(built_in.get_config()).regularizer, keras.regularizers.L1)


def softmax(x, smooth=0.0):
    flat = x.astype("float64").reshape(len(x), -1)
    weights = np.exp(flat - flat.max(1, keepdims=True))
    weights = weights / weights.sum(1, keepdims=True)
    return ((1 - smooth) * weights + smooth / flat.shape[1]).reshape(x.shape)


@pytest.mark.parametrize("shape", [(2, 7, 1), (2, 4, 5, 1), (2, 3, 4, 2, 1), (2, 4, 5, 3), (2, 9)], ids=str)
@pytest.mark.parametrize("smooth", [0.0, 0.25, 1.0])
def test_sample_softmax(shape, smooth):
    x = normal(*shape) * 30
    np.testing.assert_allclose(to_numpy(ats.SampleSoftmax(smooth=smooth)(x)), softmax(x, smooth), rtol=1e-5, atol=1e-12)
    for data_format in ("channels_last", "channels_first") if shape[-1] == 1 else ():
        one = x if data_format == "channels_last" else np.moveaxis(x, -1, 1)
        layer = ats.SampleSoftmax(squeeze_channels=True, smooth=smooth, data_format=data_format)
        np.testing.assert_allclose(to_numpy(layer(one)), softmax(x, smooth)[..., 0], rtol=1e-5, atol=1e-12)


def test_sample_softmax_keeps_its_precision():
    x = (normal(2, 100, 100, 1) * 3).astype("float16")
    layer = ats.SampleSoftmax(squeeze_channels=True, dtype="mixed_float16")
    result = to_numpy(layer(x))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, softmax(x)[..., 0], rtol=1e-5)
    assert layer.compute_output_spec(keras.KerasTensor((None, 5, 5, 1), "float16")).dtype == "float32"
    assert to_numpy(ats.SampleSoftmax(dtype="float64")(normal(2, 3, dtype="float64"))).dtype == np.float64
    far = ats.SampleSoftmax()(np.array([[1e4, 1e4 + 1, -1e4, -np.inf]], "float32"))
    np.testing.assert_allclose(to_numpy(far)[0], [1 / (1 + np.e), np.e / (1 + np.e), 0, 0], rtol=1e-6)


def test_l2_normalize():
    x = normal(3, 4, 5)
    for axis in (-1, 1, (1, 2)):
        expected = x / np.sqrt((x.astype("float64") ** 2).sum(axis, keepdims=True))
        np.testing.assert_allclose(to_numpy(ats.L2Normalize(axis)(x)), expected, rtol=1e-5)
    assert (to_numpy(ats.L2Normalize()(np.zeros((2, 3), "float32"))) == 0).all()
    large = ats.L2Normalize(dtype="float16")(np.full((1, 4), 1000.0, "float16"))  # 4e6 is no float16
    assert to_numpy(large).dtype == np.float16 and (to_numpy(large) == 0.5).all()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_images(mode):
    x = normal(2, 12, 16, 3)
    layer = ats.ResizeImages((6, 4), mode)
    expected = to_numpy(keras.ops.image.resize(x, (6, 4), interpolation=mode, data_format="channels_last"))
    assert np.array_equal(to_numpy(layer(x)), expected)
    first = ats.ResizeImages((6, 4), mode, data_format="channels_first")(np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(np.moveaxis(to_numpy(first), 1, -1), expected, rtol=1e-5, atol=1e-6)
    even = to_numpy(ats.ResizeImages(4, mode, antialias=True)(np.full((1, 9, 9, 1), 200, np.uint8)))
    assert even.dtype == np.float32
    np.testing.assert_allclose(even, np.full((1, 4, 4, 1), 200), rtol=1e-6)


def test_bilinear_by_two_is_the_mean_of_four():
    x = normal(2, 8, 6, 1)
    expected = x.reshape(2, 4, 2, 3, 2, 1).mean((2, 4))
    np.testing.assert_allclose(to_numpy(ats.ResizeImages((4, 3))(x)), expected, rtol=1e-5, atol=1e-6)


def test_total_reshape():
    x = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)
    result = to_numpy(ats.TotalReshape((-1, 3, 2))(x))
    assert np.array_equal(result, x.reshape(8, 3, 2)) and result.dtype == np.uint8
    assert ats.TotalReshape((-1, 3, 2)).compute_output_spec(keras.KerasTensor((2, 4, 6))).shape == (8, 3, 2)
    assert ats.TotalReshape((-1, 3, 2))(keras.Input((4, 6))).shape == (None, 3, 2)


def test_activity_regularizer_and_entropy():
    attention = np.random.default_rng(0).dirichlet(np.ones(12), 3).reshape(3, 3, 4).astype("float32")
    expected = 2.0 * np.sum(attention * np.log(attention.astype("float64") + 1e-3)) / 3
    layer = ats.ActivityRegularizer(ats.MultinomialEntropy(2.0, 1e-3))
    assert np.array_equal(to_numpy(layer(attention)), attention)
    np.testing.assert_allclose(to_numpy(layer.losses[0]), expected, rtol=1e-5)
    layer = ats.ActivityRegularizer(lambda x: keras.ops.sum(x))
    layer(attention)
    np.testing.assert_allclose(to_numpy(layer.losses[0]), 3, rtol=1e-5)  # as it says, not over the batch
    entropy = ats.MultinomialEntropy()
    assert to_numpy(entropy(keras.ops.ones((0, 3)))) == 0
    half = entropy(keras.ops.full((1, 4096), 1 / 4096, dtype="float16"))
    np.testing.assert_allclose(to_numpy(half), -np.log(4096), rtol=1e-2)


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16"])
def test_specs_tell_the_shape_and_dtype_of_the_result(policy):
    x = normal(2, 8, 6, 1)
    cases = [ats.SampleSoftmax(dtype=policy), ats.SampleSoftmax(True, dtype=policy), ats.L2Normalize(dtype=policy),
             ats.ResizeImages((3, 4), dtype=policy), ats.TotalReshape((4, -1), dtype=policy),
             ats.ActivityRegularizer("l2", dtype=policy), ats.ImageLinearTransform(dtype=policy),
             ats.ImagePan(2, dtype=policy), ats.ImagePan(2, mode="BILINEAR", dtype=policy)]  # fmt: skip
    for layer in cases:
        spec = layer(keras.Input((8, 6, 1), batch_size=2))
        for options in [{"training": False}, {"training": True}] if "Image" in type(layer).__name__[:5] else [{}]:
            result = layer(x, **options)
            assert tuple(result.shape) == spec.shape, layer.name
            assert keras.backend.standardize_dtype(result.dtype) == spec.dtype, layer.name


def test_layers_in_a_sequential_model_with_unknown_sizes():
    model = keras.Sequential([keras.Input((None, None, 1)), ats.L2Normalize((1, 2)), ats.SampleSoftmax(True, 0.1)])
    assert model.output_shape == (None, None, None)
    x = normal(2, 8, 6, 1)
    expected = softmax(x / np.sqrt((x**2).sum((1, 2), keepdims=True)), 0.1)[..., 0]
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5)
