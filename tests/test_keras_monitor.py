"""The Keras monitor, on whichever backend Keras has: what it writes is true, and training does not notice it."""

import itertools
import json
import math
import tracemalloc
import warnings

import numpy as np
import pytest

keras = pytest.importorskip("keras")
for package in ("PIL.Image", "matplotlib", "tensorboard"):
    pytest.importorskip(package)

import ats_core
import ats_core.keras as ak
from ats_core.diagnostics import AttentionCollapseWarning
from ats_core.keras.monitor import AttentionMonitor, Probe, _undisturbed

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


class Restless(layers.Layer):
    """Counts its calls in a variable that Keras would train, and takes from the random numbers of all layers."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros")

    def call(self, x):
        self.calls.assign(self.calls + 1)
        return x + keras.random.uniform(keras.ops.shape(x))


def state_after(looks, trainable):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((4,)), Restless(), Counter(), layers.Dropout(0.5)])
    model.trainable = trainable
    x = np.zeros((1, 4), np.float32)
    model(x)
    with _undisturbed(model):
        for _ in range(looks):
            assert not np.array_equal(*(keras.ops.convert_to_numpy(model(x)) for _ in range(2)))
    drawn = model(x, training=True)
    return [keras.ops.convert_to_numpy(value) for value in [drawn, *model.variables]]


@pytest.mark.parametrize("trainable", [True, False])
def test_no_variable_is_changed_by_a_look(trainable):
    for alone, watched in zip(state_after(0, trainable), state_after(3, trainable), strict=True):
        assert np.array_equal(alone, watched)


class Table(layers.Layer):
    """A large constant."""

    def build(self, shape):
        self.table = self.add_weight(shape=(1000, 1000), trainable=False)

    def call(self, x):
        return x @ self.table


def test_weights_are_not_copied():
    model = keras.Sequential([layers.Input((1000,)), layers.Dense(1000), Table()])
    model.trainable = False
    with _undisturbed(model):
        pass  # what is imported at the first time
    tracemalloc.start()
    try:
        with _undisturbed(model):
            pass
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # bytes; each weight has 4 million
    finally:
        tracemalloc.stop()


def test_a_pytorch_module_within_the_model_is_not_changed(monkeypatch):
    torch = pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("of the PyTorch backend")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x + torch.rand(1)

    module = Module()
    model = keras.Sequential([layers.Input((4,)), keras.layers.TorchModuleWrapper(module, output_shape=(None, 4))])
    model(np.zeros((1, 4)))
    calls, state = float(module.calls), torch.random.get_rng_state()
    fork, devices = torch.random.fork_rng, []
    monkeypatch.setattr(torch.random, "fork_rng", lambda used, **options: devices.append(used) or fork(used, **options))
    with _undisturbed(model):
        model(np.zeros((1, 4)))
        assert module.calls == calls + 1
    assert module.calls == calls
    assert torch.equal(torch.random.get_rng_state(), state)
    assert devices == [[]]  # not those of the machine: those where the model is


def test_a_look_has_random_numbers_of_its_own(tmp_path, monkeypatch):
    """No stream (seed, offset + row) twice, and none with a seed that a layer, or who calls it, would have."""
    from ats_core.keras import ops

    sample, rngs = ops.sample, []
    monkeypatch.setattr(
        ops, "sample", lambda *args, rng, **options: rngs.append(rng) or sample(*args, rng=rng, **options)
    )
    fit(siamese(), monitor(tmp_path, every=1), epochs=1)
    rngs = [rng for rng in rngs if isinstance(rng, tuple)]  # tensors are those of the layer
    assert len(rngs) == 3 * 3 * 2  # looks, draws, calls
    assert all(seed < 0 for seed, _ in rngs)
    streams = {(seed, offset + row) for seed, offset in rngs for row in range(2)}
    assert len(streams) == 2 * len(rngs)


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


def test_a_model_of_one_input(tmp_path):
    """The README's quick start makes x_low within the model."""
    high = keras.Input((60, 80, 1))
    low = layers.AveragePooling2D(10)(high)
    features, _, _ = ak.attention_sampling(attention_network(), mean_feature(1.0), 12, N)([low, high])
    model, x = ready(keras.Model(high, layers.Dense(2)(features))), images()[1] / np.float32(255)
    model.fit(x, np.zeros(6), verbose=0, callbacks=[AttentionMonitor(tmp_path, x[:2], shown=1)])
    assert len(lines(tmp_path)) == 1


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


def mean_feature(size):
    return keras.Sequential([layers.GlobalAveragePooling2D(), layers.Rescaling(size / 255)])


class Parallel(keras.Model):
    """Samples twice before it estimates: S1 S2 E1 E2."""

    def __init__(self):
        super().__init__()
        self.attention = Fixed(np.ones((6, 8)))
        self.one, self.two = ak.SamplePatches(2, 12, name="one"), ak.SamplePatches(5, 20, name="two")
        self.features = layers.TimeDistributed(mean_feature(1.0)), layers.TimeDistributed(mean_feature(1000.0))
        self.estimates = ak.Expectation("murthy"), ak.Expectation("des_raj")
        self.head = layers.Dense(2)

    def call(self, inputs):
        low, high = inputs
        attention = self.attention(low)
        sampled = [sampler([low, high, attention]) for sampler in (self.one, self.two)]
        features = [feature(patches) for feature, (patches, _) in zip(self.features, sampled, strict=True)]
        one, two = (e([f, s[1]]) for e, f, s in zip(self.estimates, features, sampled, strict=True))
        return self.head(one) + self.head(two)


def parallel():
    """Functional: Keras calls the layers of one depth in turns."""
    low, high = keras.Input((6, 8, 1)), keras.Input((60, 80, 1), dtype="uint8")
    options = {"one": (12, 2, 1.0, "murthy"), "two": (20, 5, 1000.0, "des_raj")}
    features = [
        ak.attention_sampling(
            Fixed(np.ones((6, 8))), mean_feature(size), patch_size, n_patches, estimator=estimator, name=name
        )([low, high])[0]
        for name, (patch_size, n_patches, size, estimator) in options.items()
    ]
    return keras.Model([low, high], layers.Add()([layers.Dense(2)(feature) for feature in features]))


@pytest.mark.parametrize("model, suffix", [(parallel, "_sample_patches"), (Parallel, "")])
def test_parallel_branches_are_told_apart(tmp_path, model, suffix):
    """Features of two sizes: the mean grey is about 1/2 of each, and squared_mean = variance / relative_variance."""
    fit(ready(model()), monitor(tmp_path), epochs=1)
    for name, n_patches, size in (("one", 2, 1.0), ("two", 5, 1000.0)):
        (line,) = lines(tmp_path / f"{name}{suffix}")
        assert line["effective_sample_size"] == pytest.approx(n_patches, rel=0.2)
        assert math.sqrt(line["variance"] / line["relative_variance"]) == pytest.approx(size / 2, rel=0.2)


def siamese():
    """One sampling of two images, of which the second is black."""
    low, high = keras.Input((6, 8, 1)), keras.Input((60, 80, 1), dtype="uint8")
    sampling = ak.attention_sampling(attention_network(), mean_feature(1.0), 12, N, name="shared")
    features = [sampling([low, image])[0] for image in (high, layers.Rescaling(0.0)(high))]
    return ready(keras.Model([low, high], layers.Dense(2)(layers.Concatenate()(features))))


def test_a_layer_that_is_called_twice_has_a_folder_for_each(tmp_path):
    for _ in range(2):
        fit(siamese(), monitor(tmp_path), epochs=1)
    first, second = lines(tmp_path), lines(tmp_path / "estimate_2")
    assert [line["step"] for line in first] == [line["step"] for line in second] == [3, 6]
    assert first[0]["variance"] > 0.0 and second[0]["variance"] == 0.0


class Lazy(keras.Model):
    """Makes its layers when it sees an image."""

    def build(self, shapes):
        self.sampling = ak.attention_sampling(attention_network(), mean_feature(1.0), 12, N)
        self.head = layers.Dense(2)
        self.built = True

    def call(self, inputs):
        return self.head(self.sampling(inputs)[0])


def test_layers_that_are_made_late_are_found(tmp_path):
    for _ in range(2):
        fit(ready(Lazy()), monitor(tmp_path, every=2), epochs=1)
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4, 6]


class Positional(keras.Model):
    def __init__(self):
        super().__init__()
        self.attention, self.feature = attention_network(), layers.TimeDistributed(mean_feature(1.0))
        self.sampler, self.estimate, self.head = ak.SamplePatches(N, 12), ak.Expectation(), layers.Dense(2)

    def call(self, inputs):
        low, high = inputs
        patches, probabilities = self.sampler(
            [low, high, self.attention(low)], keras.ops.convert_to_tensor(np.array([7, 0]))
        )
        return self.head(self.estimate([self.feature(patches), probabilities], None))


def test_arguments_by_position(tmp_path):
    fit(ready(Positional()), monitor(tmp_path), epochs=1)
    assert lines(tmp_path)[0]["variance"] > 0.0  # the model's own random numbers were not taken


def test_a_compiled_call(tmp_path):
    """A model's own tf.function: the look sees values, and leaves nothing in the graph."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("of the TensorFlow backend")
    import tensorflow as tf

    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.sampling = ak.attention_sampling(attention_network(), mean_feature(1.0), 12, N)
            self.head = layers.Dense(2)

        @tf.function
        def call(self, inputs, training=None):
            return self.head(self.sampling(inputs)[0])

    model, x = ready(Compiled()), images(2)
    model(x)  # a tf.function makes no variables while it is traced in another
    fit(model, monitor(tmp_path), epochs=1)
    assert lines(tmp_path)[0]["variance"] > 0.0
    assert not np.array_equal(model(x, training=False), model(x, training=False))
    assert not tf.config.functions_run_eagerly()


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


class Stranger(keras.Model):
    """An `Expectation` that is given a copy of the probabilities, after one that is given themselves."""

    def __init__(self, alone):
        super().__init__()
        self.attention, self.sampler, self.head = Fixed(np.ones((6, 8))), ak.SamplePatches(N, 12), layers.Dense(2)
        self.known, self.stranger = None if alone else ak.Expectation(), ak.Expectation(name="stranger")

    def call(self, inputs):
        low, high = inputs
        patches, probabilities = self.sampler([low, high, self.attention(low)])
        features = keras.ops.mean(patches, (2, 3))
        if self.known is not None:
            features = features + 100 * self.known([features, probabilities])[:, None]
        return self.head(self.stranger([features, probabilities * 1]))


def test_what_cannot_be_paired_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"the very tensor of probabilities .* give a probe"):
        fit(ready(Stranger(alone=True)), monitor(tmp_path / "alone"), epochs=1)
    with pytest.warns(UserWarning, match=r"stranger is not watched.* give a probe"):
        fit(ready(Stranger(alone=False)), monitor(tmp_path), epochs=1)
    assert len(lines(tmp_path)) == 1 and not (tmp_path / "estimate_2").exists()


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
