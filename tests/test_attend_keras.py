"""Keras's models that attend to files: what they do is what they do with images in memory."""

import json

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

from keras import layers

import ats_core
from ats_core.attend.keras_model import KerasModel
from ats_core.attend.models import ModelError, load_model
from ats_core.attend.work import Settings
from ats_core.keras import (
    Expectation,
    ResizeImages,
    SamplePatches,
    SampleSoftmax,
    SourceInput,
    attention_sampling,
)
from ats_core.sources import SourceBatch, open_source
from sources_files import pixels
from test_keras_models import feature_network, to_numpy

pytestmark = pytest.mark.keras

SHAPE, LOW = (120, 80), (30, 20)


def attention_network(stride=1, smooth=0.1, **options):
    return keras.Sequential(
        [
            layers.Rescaling(1 / 255),
            layers.Conv2D(1, max(stride, 3), strides=stride, padding="same", **options),
            SampleSoftmax(squeeze_channels=True, smooth=smooth, data_format=options.get("data_format")),
        ]
    )


def sampling(width=3, attention=None, feature=None, **options):
    options = {"mean": 127.0, "std": 64.0, "seed": 1, **options}
    return attention_sampling(attention or attention_network(), feature or feature_network(2, width), 8, 5, **options)


def over_handles(size=(None, None), low_shapes=False, dtype="uint8", head=True, **options):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((*size, 3), dtype=dtype), SourceInput(), *([keras.Input((2,), dtype="int64")] * low_shapes)]
    features = sampling(**options)(inputs)[0]
    return keras.Model(inputs, layers.Dense(2)(features) if head else features)


def of_images(reduce=None, low=None, head=True, dtype="float32", shape=(None, None), **options):
    """For images in memory: x_high alone, or [x_low, x_high]."""
    keras.utils.set_random_seed(0)
    x_high = keras.Input((*shape, 3), dtype=dtype)
    x_low = (reduce or layers.AveragePooling2D(4))(x_high) if low is None else keras.Input((*low, 3), dtype=dtype)
    features, attention, patches = sampling(**options)([x_low, x_high])
    outputs = [layers.Dense(2)(features), attention, patches] if head else features
    return keras.Model(x_high if low is None else [x_low, x_high], outputs)


def blocks(shape=SHAPE, seed=0):
    """An image that average pooling by 4 shrinks without rounding."""
    return pixels((shape[0] // 4, shape[1] // 4, 3), seed=seed).repeat(4, 0).repeat(4, 1)


def watched(model, inputs, rng):
    """What the model makes of images in memory when its layer draws with this rng."""
    (sampler,) = (layer for layer in model._flatten_layers() if isinstance(layer, SamplePatches))
    call = sampler.call
    sampler.__dict__["call"] = lambda inputs, **_: call(inputs, rng=rng, training=False)
    try:
        return [to_numpy(x) for x in keras.tree.flatten(model(inputs))]
    finally:
        del sampler.__dict__["call"]


# ---- models for images in memory ----


@pytest.mark.parametrize(
    "how, low", [("pool", None), ("resize", None), ("fixed", None), ("given", (None, None)), ("given", LOW)]
)
def test_it_does_what_the_model_does_in_memory(tmp_path, how, low):
    model = of_images(
        ResizeImages(LOW) if how == "resize" else layers.AveragePooling2D(4),
        low,
        shape=SHAPE if how == "fixed" else (None, None),
    )
    model.save(tmp_path / "model.keras")
    image = blocks()
    x = image[None].astype(np.float32)
    rng = (7, 2**50 + 3)
    expected = watched(model, x if low is None else [x[:, ::4, ::4], x], rng)
    loaded = KerasModel.load(Settings(str(tmp_path / "model.keras"), "out", size=30))
    with open_source(image) as source:
        attended = loaded.attend(source, rng)
    np.testing.assert_allclose(attended.prediction, expected[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attended.attention, expected[1][0], rtol=1e-5)
    assert attended.attention.dtype == np.float64 and attended.attention.sum() == pytest.approx(1)
    np.testing.assert_allclose((attended.patches[:, 0].astype(np.float32) - 127) / 64, expected[2][0], rtol=1e-6)
    np.testing.assert_array_equal(attended.thumbnail, image[::4, ::4])
    drawn = ats_core.sample(expected[1], 5, rng=rng)
    np.testing.assert_array_equal(attended.indices, drawn.indices[0])
    np.testing.assert_array_equal(attended.origins, ats_core.patch_origins(drawn.indices, LOW, SHAPE, 8)[0])
    np.testing.assert_allclose(attended.probabilities, drawn.attention[0], rtol=1e-5)
    np.testing.assert_allclose(attended.weights, ats_core.estimator_arrays(drawn.attention)[0][0], rtol=1e-4)
    if how == "pool":  # the model itself is as it was
        again = watched(model, x, rng)
        np.testing.assert_array_equal(again[0], expected[0])


def test_what_follows_the_pooling_is_kept():
    """Of x_high on the way to x_low only the first layer is left out."""
    image = blocks()
    x = keras.Input((None, None, 3))
    low = layers.Rescaling(2.0, offset=3.0)(layers.AveragePooling2D(4)(x))
    keras.utils.set_random_seed(0)
    net = keras.Model(x, layers.Dense(2)(sampling()([low, x])[0]))
    expected = watched(net, image[None].astype(np.float32), (1, 2))
    attended = KerasModel(net, size=30).attend(open_source(image), (1, 2))
    np.testing.assert_allclose(attended.prediction, expected[0][0], rtol=1e-5, atol=1e-6)


def test_models_that_do_not_come_apart_are_refused():
    x, low = keras.Input((64, 64, 3)), keras.Input((16, 16, 3))
    pooled = layers.AveragePooling2D(4)

    def refused(inputs, outputs, match):
        with pytest.raises(ModelError, match=match):
            KerasModel(keras.Model(inputs, outputs), size=16)

    scaled = layers.Rescaling(1 / 255, name="scaled")(x)
    refused(x, sampling()([pooled(scaled), scaled])[0], "x_high must be an input of it as it is, 'scaled' comes before")
    refused(x, sampling()([layers.MaxPooling2D(4, name="max")(x), x])[0], "for x_low, only, goes into 'max'")
    refused(
        x, sampling()([layers.AveragePooling2D(4)(layers.Rescaling(1.0, name="first")(x)), x])[0], "goes into 'first'"
    )
    features = sampling()([pooled(x), x])[0]
    whole = layers.GlobalAveragePooling2D(name="whole")(x)
    refused(x, layers.Concatenate()([features, whole]), "goes into 'average_pooling2d.*', 'whole'")
    features = sampling()([low, x])[0]
    refused([low, x], layers.Concatenate()([features, whole]), "x_high must go into patches only, goes into 'whole'")
    more = keras.Input((3,))
    refused([low, x, more], layers.Concatenate()([features, more]), "must take x_low and x_high, has 1 inputs more")
    gray = keras.Input((16, 16, 1))
    refused([gray, x], sampling()([gray, x])[0], "x_low must have the channels of x_high")
    inner = keras.Model([low, x], sampling()([low, x])[0])
    outer = keras.Input((16, 16, 3)), keras.Input((64, 64, 3))
    refused(list(outer), layers.Dense(2)(inner(list(outer))), "samples within a layer or a model in it")
    refused([low, x], layers.Dense(2)(layers.Flatten()(low)), "must have one SamplePatches layer.*has 0")
    twice = [sampling(feature=feature)([low, x])[0] for feature in (layers.Flatten(), layers.Flatten())]
    refused([low, x], layers.Add()(twice), "must have one SamplePatches layer.*has 2")
    with pytest.raises(ModelError, match="--low-size or --low-downsample"):
        KerasModel(of_images())
    with pytest.raises(ModelError, match="must have one SamplePatches"):
        KerasModel(lambda x: x, size=3)


# ---- models over sources ----


@pytest.mark.parametrize(
    "options",
    [{}, {"estimator": "des_raj"}, {"estimator": "horvitz_thompson"}, {"estimator": "iid", "replace": True},
     {"inference": "topk"}, {"scales": (1, 2)}, {"dtype": "float32"}, {"low_shapes": True}],
    ids=str,
)  # fmt: skip
def test_weighted_features_of_the_patches_add_up_to_the_estimate(options):
    net = over_handles(head=False, **options)
    levels = [pixels((*SHAPE, 3))[::step, ::step] for step in (1, 2)]
    from test_sources_batch import Tiled

    with Tiled(levels, (32, 32)).source() as source:
        attended = KerasModel(net, size=30).attend(source, rng=(3, 0))
        scales = options.get("scales", (1,))
        patches = SourceBatch([source]).read_patches(attended.origins[None], 8, scales=scales)[0]
    np.testing.assert_array_equal(attended.patches, patches)
    assert attended.scales == scales and attended.patch_size == (8, 8)
    stacked = np.moveaxis(patches, 1, -2).reshape(5, 8, 8, -1)
    feature = next(layer for layer in net.layers if isinstance(layer, keras.Sequential) and "feature" in layer.name)
    features = to_numpy(feature((stacked.astype(np.float32) - 127) / 64))
    np.testing.assert_allclose(attended.weights @ features, attended.prediction, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(attended.probabilities, attended.attention.reshape(-1)[attended.indices], rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 4])
def test_thumbnails_are_padded_for_a_model_that_takes_their_shapes(stride):
    image = pixels((*SHAPE, 3))
    results = []
    for size in ((None, None), (32, 32)):
        keras.utils.set_random_seed(1)
        attention = attention_network(stride, 0)
        net = over_handles(size, low_shapes=True, attention=attention, head=False)
        results.append(KerasModel(net, size=32 if size[0] is None else None).attend(open_source(image), (5, 6)))
    alone, padded = results
    assert alone.thumbnail.shape == padded.thumbnail.shape == (32, 21, 3)
    assert alone.attention.shape == padded.attention.shape == (32 // stride, -(-21 // stride))
    if stride == 1:  # the convolution itself pads with what thumbnails are padded with
        np.testing.assert_allclose(padded.attention, alone.attention, rtol=1e-4)
    np.testing.assert_allclose(padded.probabilities, padded.attention.reshape(-1)[padded.indices], rtol=1e-5)
    low = np.array([32, 21])
    cells = np.stack(np.unravel_index(padded.indices, padded.attention.shape), -1)
    step = np.array(SHAPE) / low * stride
    np.testing.assert_allclose(padded.origins, cells * step + step / 2 - 4, atol=0.51)
    with pytest.raises(ModelError, match=r"takes thumbnails of uint8, array .* has uint16"):
        KerasModel(over_handles(), size=32).attend(open_source(pixels((*SHAPE, 3), "uint16")), (5, 6))
    for net in (over_handles((32, 32)), over_handles((20, 20), low_shapes=True)):
        with pytest.raises(ModelError, match=r"takes thumbnails of .* pixels, that of array .* has \(32, 21\)"):
            KerasModel(net, size=32).attend(open_source(image), (5, 6))


def test_logits_receptive_fields_and_channels_first():
    image = pixels((*SHAPE, 3))
    keras.utils.set_random_seed(0)
    x_low, handles = keras.Input((3, None, None), name="low"), SourceInput("slides")
    logits = layers.Permute((3, 1, 2))(layers.Dense(1)(layers.Permute((2, 3, 1))(layers.Rescaling(1 / 255)(x_low))))
    logits = layers.Cropping2D(1, data_format="channels_first")(logits)
    sampler = SamplePatches(5, 8, 2, use_logits=True, data_format="channels_first", details=True)
    patches, probabilities, _, _, threshold = sampler([x_low, handles, logits])
    features = Expectation("horvitz_thompson")([patches, probabilities, threshold])
    net = keras.Model({"low": x_low, "slides": handles}, {"y": features})
    with pytest.raises(ModelError, match="must return a tensor"):
        KerasModel(net, size=30).attend(open_source(image), (1, 1))
    net = keras.Model({"low": x_low, "slides": handles}, features)
    attended = KerasModel(net, size=30).attend(open_source(image), (1, 1))
    assert attended.attention.shape == (28, 18) and attended.margin == (4, 4)
    weighted = np.tensordot(attended.weights, attended.patches[:, 0].astype(float), 1)
    np.testing.assert_allclose(attended.prediction, np.moveaxis(weighted, -1, 0), rtol=1e-4)
    np.testing.assert_allclose(attended.probabilities, attended.attention.reshape(-1)[attended.indices], rtol=1e-4)


@keras.saving.register_keras_serializable(package="test_attend_keras")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.sampling = sampling()
        self.head = layers.Dense(2)

    def call(self, inputs):
        return self.head(self.sampling([inputs["low"], inputs["slides"]] if isinstance(inputs, dict) else inputs)[0])


@pytest.mark.parametrize("form", ["list", "dict"])
def test_subclassed_models(tmp_path, form):
    image = pixels((*SHAPE, 3))
    source = open_source(image)
    low, _ = source.thumbnail(30)
    from ats_core.sources import to_handles

    inputs = [low[None], to_handles([source])]
    inputs = {"low": inputs[0], "slides": inputs[1]} if form == "dict" else inputs
    net = Subclassed()
    net(inputs)
    net.save(tmp_path / "model.keras")
    model = load_model(Settings(str(tmp_path / "model.keras"), "out", size=30))
    np.testing.assert_allclose(
        model.attend(source, (4, 5)).prediction, watched(net, inputs, (4, 5))[0][0], rtol=1e-5, atol=1e-6
    )
    images = Subclassed()
    images([low[None], image[None]])
    with pytest.raises(ModelError, match="must take thumbnails"):
        KerasModel(images, size=30)
    with pytest.raises(ModelError, match=r"must take thumbnails .* its inputs are not known"):
        KerasModel(Subclassed(), size=30)


def test_a_model_leaves_no_trace():
    """Draws depend on the rng alone, and the model's own random numbers are not used up."""
    net, source = over_handles(), open_source(pixels((*SHAPE, 3)))
    model = KerasModel(net, size=30)
    state = [to_numpy(layer.seed_generator.state) for layer in net.layers if isinstance(layer, SamplePatches)]
    one, other, again = (model.attend(source, rng) for rng in ((1, 2), (1, 3), (1, 2)))
    assert one.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    np.testing.assert_array_equal(one.prediction, again.prediction)
    after = [to_numpy(layer.seed_generator.state) for layer in net.layers if isinstance(layer, SamplePatches)]
    np.testing.assert_array_equal(state, after)


def test_broken_files(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"no model")
    for name, match in (("model.keras", "cannot be loaded by Keras"), ("none.keras", "cannot be loaded by Keras")):
        with pytest.raises(ModelError, match=match):
            load_model(Settings(str(tmp_path / name), "out"))
    with pytest.raises(ModelError, match="weights: are for a model that a function makes"):
        load_model(Settings("model.keras", "out", weights="a.pt"))


def test_the_command(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for package in ("imagecodecs", "bokeh", "matplotlib", "PIL", "tqdm"):
        pytest.importorskip(package)
    from ats_core.attend.work import to_rng
    from ats_core.command import main

    net = over_handles()
    net.save(tmp_path / "model.keras")
    (tmp_path / "slides").mkdir()
    for seed in range(2):
        tifffile.imwrite(
            tmp_path / "slides" / f"{seed}.tif", pixels((*SHAPE, 3), seed=seed), tile=(32, 32), photometric="rgb"
        )
    command = [
        "attend",
        str(tmp_path / "slides"),
        "--model",
        str(tmp_path / "model.keras"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--low-size", "30", "--seed", "9"]) == 0
    for seed in range(2):
        with open_source(tmp_path / "slides" / f"{seed}.tif") as source:
            expected = KerasModel(net, size=30).attend(source, to_rng(9, f"{seed}.tif"))
        found = json.loads((tmp_path / "out" / f"{seed}.tif" / "prediction.json").read_text())
        np.testing.assert_allclose(found["prediction"], expected.prediction, rtol=1e-5)
        assert [patch["index"] for patch in found["patches"]] == expected.indices.tolist()
