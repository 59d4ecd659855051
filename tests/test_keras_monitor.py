"""The Keras monitor, on whichever backend Keras has: what it writes is true, and training does not notice it."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest

keras = pytest.importorskip("keras")
for package in ("PIL.Image", "matplotlib", "tensorboard"):
    pytest.importorskip(package)

import ats_core
import ats_core.keras as ak
from ats_core.diagnostics import AttentionCollapseWarning
from ats_core.keras.monitor import AttentionMonitor, Probe

pytestmark = pytest.mark.keras
layers = keras.layers
N = 4  # patches


def lines(folder):
    return [json.loads(line) for line in (folder / "statistics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def data_format():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    yield
    keras.config.set_image_data_format(before)


def images(batch=6, seed=0):
    x_high = np.random.default_rng(seed).integers(0, 255, (batch, 60, 80, 1)).astype(np.uint8)
    return [x_high[:, ::10, ::10].astype(np.float32) / 255, x_high]


def attention_network(seed=1):
    initial = keras.initializers.GlorotUniform(seed=seed)
    return keras.Sequential([layers.Conv2D(1, 3, padding="same", kernel_initializer=initial), ak.SampleSoftmax()])


class Fixed(layers.Layer):
    """Attention that is the same for every image."""

    def __init__(self, attention, **options):
        super().__init__(**options)
        self.map = np.asarray(attention, np.float32)

    def call(self, x):
        return keras.ops.zeros_like(x[:, :1, :1, 0]) + keras.ops.convert_to_tensor(self.map)[None]

    def compute_output_shape(self, shape):
        return (shape[0], *self.map.shape)


class Counter(layers.Layer):
    """Changes a variable in every call."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        return x


def feature_network():
    """Moving means, random numbers, a state: all that a look could disturb."""
    return keras.Sequential(
        [
            Counter(),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 5),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.3),
            layers.GlobalAveragePooling2D(),
        ]
    )


def classifier(attention=None, **options):
    keras.utils.set_random_seed(0)
    low, high = keras.Input((None, None, 1)), keras.Input((60, 80, 1), dtype="uint8")
    options = {"patch_size": 12, "n_patches": N, "attention_regularizer": ak.multinomial_entropy(0.1), **options}
    sampling = ak.attention_sampling(attention or attention_network(), feature_network(), **options)
    features, _, _ = sampling([low, high])
    return ready(keras.Model([low, high], layers.Dense(2)(features)))


def ready(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model, *callbacks, epochs=2, **options):
    """Three batches an epoch."""
    labels = np.array([0, 1, 0, 1, 1, 0])
    return model.fit(images(), labels, batch_size=2, epochs=epochs, verbose=0, callbacks=list(callbacks), **options)


def monitor(folder, batch=2, **options):
    return AttentionMonitor(folder, images(batch), **{"shown": 1, "draws": 3, **options})


# ---- training does not notice ----


def test_training_is_the_same_bit_by_bit(tmp_path):
    results = []
    for callbacks in ([], [monitor(tmp_path, every=1)]):
        model = classifier()
        # two fits: the second finds what losses the last look left
        losses = [fit(model, *callbacks, epochs=1).history["loss"] for _ in range(2)]
        results.append((losses, [keras.ops.convert_to_numpy(v) for v in model.variables], np.random.random()))
    (alone, variables, rng), (watched, watched_variables, watched_rng) = results
    assert len(lines(tmp_path)) == 6
    assert alone == watched
    assert rng == watched_rng
    assert len(variables) == len(watched_variables)
    for one, other in zip(variables, watched_variables, strict=True):  # seeds and moving means are among them
        assert np.array_equal(one, other)


def test_the_layers_are_left_as_they_were(tmp_path):
    model = classifier(inference="topk")
    fit(model, monitor(tmp_path), epochs=1)
    for layer in model.layers:
        assert "call" not in layer.__dict__
    (sampler,) = (layer for layer in model.layers if isinstance(layer, ak.SamplePatches))
    (expectation,) = (layer for layer in model.layers if isinstance(layer, ak.Expectation))
    assert (sampler.inference, sampler.details, expectation.inference) == ("topk", False, "topk")
    assert lines(tmp_path)[0]["variance"] > 0.0  # it sampled all the same


# ---- what is written ----


def test_steps_files_and_resuming(tmp_path):
    model = classifier()
    watch = monitor(tmp_path, every=2)
    fit(model, watch)
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4, 6]
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {f"{kind}_{step:07d}.png" for kind in ("overlay", "patches") for step in (2, 3, 4, 6)}
    fit(model, watch, epochs=1)
    fit(model, monitor(tmp_path), epochs=1)
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4, 6, 8, 9, 12]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_tensorboard_reads_it(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(classifier(), monitor(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in lines(tmp_path)[0].keys() - {"step"}:
        found = [(event.step, event.value) for event in events.Scalars(f"attention/{name}")]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines(tmp_path)]
    assert len(events.Images("attention/overlay")) == len(events.Images("attention/patches")) == 2


def test_the_numbers_are_those_of_the_images(tmp_path):
    attention = np.random.default_rng(0).random((6, 8))
    fit(classifier(Fixed(attention)), monitor(tmp_path), epochs=1)
    (line,) = lines(tmp_path)
    a = attention / attention.sum()
    entropy = -(a * np.log(a)).sum()
    assert line["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert line["border_share"] == pytest.approx(1 - a[1:-1, 1:-1].sum(), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"replace": True}], ids=str)
def test_the_variance_is_that_of_all_draws(tmp_path, options):
    """100 estimates of one image with 4 cells, against every ordered draw: within 5 standard errors, a false alarm in
    1.7e6; the monitor's random numbers are fixed. Nothing is trained on before the look."""
    draws = 100
    weights = np.array([0.5, 0.25, 0.15, 0.1])
    keras.utils.set_random_seed(0)
    low, high = keras.Input((2, 2, 1)), keras.Input((16, 16, 1))
    feature = keras.Sequential([layers.Flatten(), layers.Dense(2)])
    sampling = ak.attention_sampling(Fixed(weights.reshape(2, 2)), feature, 8, 2, **options)
    features, _, _ = sampling([low, high])
    model = ready(keras.Model([low, high], features))
    model.trainable = False
    x_high = np.random.default_rng(0).random((1, 16, 16, 1)).astype(np.float32)
    x = [x_high[:, ::8, ::8], x_high]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*trainable")  # Keras's, of a model without any
        model.fit(x, np.zeros(1), verbose=0, callbacks=[AttentionMonitor(tmp_path, x, draws=draws)])
    (line,) = lines(tmp_path)
    patches = np.stack([x_high[0, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)])
    cells = keras.ops.convert_to_numpy(feature(patches)).astype(np.float64)
    mean = weights @ cells
    replace = options.get("replace", False)
    pick = np.array(list(itertools.product(range(4), repeat=2) if replace else itertools.permutations(range(4), 2)))
    probabilities = np.array([weights[i] * weights[j] / (1 if replace else 1 - weights[i]) for i, j in pick])
    estimates = ats_core.expectation(cells[pick], weights[pick], estimator="iid" if replace else "murthy")
    squares = ((estimates - mean) ** 2).sum(1)
    variance = probabilities @ squares
    error = math.sqrt(probabilities @ (squares - variance) ** 2 / draws)
    assert abs(line["variance"] - variance) < 5 * error


def test_noise_of_the_network_is_not_the_estimators(tmp_path):
    low, high = keras.Input((6, 8, 1)), keras.Input((60, 80, 1))
    feature = keras.Sequential([layers.Flatten(), layers.Dropout(0.5), layers.Dense(2)])
    features, _, _ = ak.attention_sampling(Fixed(np.ones((6, 8))), feature, 12, N, padding="edge")([low, high])
    x = [np.ones((2, 6, 8, 1), np.float32), np.ones((2, 60, 80, 1), np.float32)]
    ready(keras.Model([low, high], features)).fit(
        x, np.zeros(2), verbose=0, callbacks=[AttentionMonitor(tmp_path, x, draws=4)]
    )
    assert lines(tmp_path)[0]["relative_variance"] < 1e-10  # float32's rounding: all patches are alike


def test_a_look_draws_the_same_whatever_the_seed(tmp_path):
    found = []
    for seed in (1, 2):
        model = classifier(Fixed(np.ones((6, 8))), seed=seed)
        model.optimizer.learning_rate = 0.0
        fit(model, monitor(tmp_path / str(seed)), epochs=1)
        found.append((tmp_path / str(seed) / "patches_0000003.png").read_bytes())
    assert found[0] == found[1]


def test_equal_cells_count_alike(tmp_path):
    fit(classifier(Fixed(np.ones((6, 8))), estimator="horvitz_thompson"), monitor(tmp_path), epochs=1)
    assert lines(tmp_path)[0]["effective_sample_size"] == pytest.approx(N, rel=1e-5)


# ---- models of every kind ----


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.sampling = ak.attention_sampling(attention_network(), feature_network(), 12, N)
        self.head = layers.Dense(2)

    def call(self, inputs, training=None):
        features, _, _ = self.sampling([inputs["low"], inputs["high"]], training=training)
        return self.head(features)


def test_a_subclassed_model(tmp_path):
    model = ready(Subclassed())
    low, high = images()
    watch = AttentionMonitor(tmp_path, {"low": low[:2], "high": high[:2]}, shown=1)
    model.fit({"low": low, "high": high}, np.zeros(6), batch_size=3, verbose=0, callbacks=[watch])
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_two_samplings_one_of_them_within_a_model(tmp_path):
    low, high = keras.Input((6, 8, 1)), keras.Input((60, 80, 1), dtype="uint8")
    inner = classifier(name="inner")
    sampling = ak.attention_sampling(attention_network(), feature_network(), 20, 2, name="outer")
    features, _, _ = sampling([low, high])
    model = ready(keras.Model([low, high], layers.Dense(2)(layers.Concatenate()([features, inner([low, high])]))))
    fit(model, monitor(tmp_path), epochs=1)
    assert len(lines(tmp_path / "outer_sample_patches")) == len(lines(tmp_path / "inner_sample_patches")) == 1


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(tmp_path, dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    fit(model, monitor(tmp_path), epochs=1)
    assert lines(tmp_path)[0]["variance"] > 0.0


def test_logits_scales_and_receptive_field(tmp_path):
    low, high = keras.Input((8, 10, 1)), keras.Input((80, 100, 1), dtype="uint8")
    logits = layers.Conv2D(1, 3)(low)
    sampler = ak.SamplePatches(N, 12, receptive_field=2, use_logits=True, scales=(1, 2))
    patches, probabilities = sampler([low, high, logits])
    features = ak.Expectation()([layers.Reshape((N, -1))(patches), probabilities])
    model = ready(keras.Model([low, high], layers.Dense(2)(layers.Flatten()(features))))
    x_high = np.random.default_rng(0).integers(0, 255, (2, 80, 100, 1)).astype(np.uint8)
    x = [x_high[:, ::10, ::10] / np.float32(255), x_high]
    model.fit(x, np.zeros(2), verbose=0, callbacks=[AttentionMonitor(tmp_path, x, draws=2)])
    (line,) = lines(tmp_path)
    logits = keras.ops.convert_to_numpy(keras.Model(low, logits)(x[0])).reshape(2, -1).astype(np.float64)
    a = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # the logits after a step of Adam are those that the monitor saw: it looked after the step
    assert line["entropy"] == pytest.approx(-(a * np.log(a)).sum(1).mean(), rel=1e-4)


def test_channels_first(tmp_path):
    low, high = keras.Input((1, 6, 8)), keras.Input((2, 60, 80))
    attention = keras.Sequential([layers.Reshape((6, 8)), ak.SampleSoftmax()])
    feature = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    features, _, _ = ak.attention_sampling(attention, feature, 12, N, data_format="channels_first")([low, high])
    model = ready(keras.Model([low, high], features))
    x = [np.ones((2, 1, 6, 8), np.float32), np.random.default_rng(0).random((2, 2, 60, 80)).astype(np.float32)]
    model.fit(x, np.zeros(2), verbose=0, callbacks=[AttentionMonitor(tmp_path, x, draws=2)])
    assert len(list(tmp_path.glob("*.png"))) == 2


CALLS = itertools.count()  # other draws every time


def probe_of(x):
    attention = np.full((len(x[0]), 6, 8), 1 / 48)
    samples = ats_core.sample(attention, N, rng=next(CALLS))
    x_high = keras.ops.convert_to_numpy(x[1])
    origins = ats_core.patch_origins(samples.indices, (6, 8), (60, 80), 12)
    patches = ats_core.extract_patches(x_high, origins, 12, dtype=np.float32)
    features = ats_core.expectation(patches.mean((2, 3)), samples.attention)
    tensors = map(keras.ops.convert_to_tensor, (features, attention, patches, samples.attention, origins, x_high))
    return Probe(*tensors, patch_size=12)


def test_a_probe_serves_other_models(tmp_path):
    low, high = keras.Input((6, 8, 1)), keras.Input((60, 80, 1))
    model = ready(keras.Model([low, high], layers.Dense(2)(layers.Flatten()(low))))
    fit(model, monitor(tmp_path, probe=probe_of), epochs=1)
    (line,) = lines(tmp_path)
    assert line["entropy"] == pytest.approx(math.log(48))
    assert line["variance"] > 0.0


# ---- warnings and errors ----


def warned(attention, folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AttentionCollapseWarning)
        fit(classifier(Fixed(attention)), monitor(folder))
    return [str(one.message) for one in caught if one.category is AttentionCollapseWarning]


def test_a_collapse_is_told_once(tmp_path):
    cell, edge = np.full((2, 12, 12), 1e-4)
    cell[5, 7] = edge[0] = 1.0
    (message,) = warned(cell, tmp_path / "cell")
    assert "single cells" in message and "entropy" in message
    (message,) = warned(edge, tmp_path / "edge")
    assert "edge" in message
    assert warned(np.eye(12) + 0.01, tmp_path / "few") == []


def test_a_model_without_sampling_is_refused(tmp_path):
    low, high = keras.Input((6, 8, 1)), keras.Input((60, 80, 1), dtype="uint8")
    model = ready(keras.Model([low, high], layers.Dense(2)(layers.Flatten()(low))))
    with pytest.raises(ValueError, match="no SamplePatches layer; give a probe"):
        fit(model, monitor(tmp_path))
    patches, _ = ak.SamplePatches(N, 12)([low, high, Fixed(np.ones((6, 8)))(low)])
    model = ready(keras.Model([low, high], layers.Dense(2)(layers.Flatten()(patches))))
    with pytest.raises(ValueError, match="no SamplePatches layer with an Expectation"):
        fit(model, monitor(tmp_path))


@pytest.mark.parametrize(
    "options, error, name",
    [
        ({"every": 0}, ValueError, "every"),
        ({"shown": 0}, ValueError, "shown"),
        ({"draws": 1}, ValueError, "draws"),
        ({"draws": 2.5}, TypeError, "draws"),
        ({"cell": 2.0}, ValueError, "cell"),
        ({"batch": 0}, ValueError, "images"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        monitor(tmp_path, **options)
