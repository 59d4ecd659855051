"""The TensorFlow adapter, eagerly: the same bits as NumPy and PyTorch, what it takes as arguments, gradients, threads.

(Numbers are compared with the reference in tests/test_<op>.py; tf.function and what runs without Python are in
test_tensorflow_graph.py.)
"""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import ats_core
import ats_core.tensorflow as ats
from ats_core.tensorflow import _ops

ESTIMATORS = ("iid", "des_raj", "murthy", "horvitz_thompson", "normalized")


def make(*shape, dtype="float64", seed=0):
    """As NumPy, whose casts keep subnormals."""
    return (np.random.default_rng(seed).random(shape) + 0.1).astype(tf.as_dtype(dtype).as_numpy_dtype)


def origins_in(*shape, size=8, seed=0):
    return np.random.default_rng(seed).integers(-5, size, shape)


def assert_equal(ours, theirs):
    """Bit for bit, any structure."""
    ours, theirs = tf.nest.flatten(ours), tf.nest.flatten(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def run(script, *arguments, **environment):
    """What a script prints in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], check=False,
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# ---- the same bits ----


def pipeline(ats, to, seed=0):
    """Every function, called as in any of the three libraries; `to` makes its arrays."""
    rng = np.random.default_rng(seed)
    attention = rng.gamma(0.3, size=(4, 12, 11)).astype(np.float32) + np.float32(1e-3)
    tiny = (rng.integers(1, 2**23, (4, 50)) * 2.0**-149).astype(np.float32)  # all subnormal
    tiny64 = rng.integers(1, 2**52, (4, 50)) * 2.0**-1074
    image, features = rng.random((4, 30, 40, 3), np.float32), rng.standard_normal((4, 9, 5)).astype(np.float32)
    for weights in (attention, tiny, tiny64):
        for replace in (False, True):
            yield from ats.sample(to(weights), 9, replace=replace, rng=(7, -2))
        yield from ats.topk(to(weights), 9)
    yield from ats.sample(to(np.log(attention)), 9, logits=True, rng=-3)
    draws = ats.sample(to(attention), 9, rng=3)
    origins = ats.patch_origins(draws.indices, (12, 11), (30, 40), (7, 6), low_shape=(24, 22), receptive_field=3)
    yield origins
    yield ats.extract_patches(to(image * np.float32(1e-38)), origins, (7, 6), data_format="channels_last")
    options = {"scales": (1, 2), "padding": "reflect", "data_format": "channels_last"}
    yield ats.extract_patches(to(image), origins, (7, 6), mean=(0.1, 0.2, 0.3), std=0.3, **options)
    grad = to(np.resize(image, (4, 9, 2, 7, 6, 3)))
    yield ats.extract_patches_backward(grad, origins, image.shape, (7, 6), std=0.3, **options)
    for estimator in ESTIMATORS:
        given = {"estimator": estimator, "threshold": draws.threshold}
        yield ats.expectation(to(features), draws.attention, **given)
        yield from ats.expectation_backward(to(features[:, 0]), to(features), draws.attention, **given)
        yield from ats.estimator_arrays(draws.attention, **given)


def test_same_bits_as_numpy():
    assert_equal(list(pipeline(ats, tf.constant)), list(pipeline(ats_core, np.asarray)))


def test_same_bits_as_pytorch_in_one_process():
    torch = pytest.importorskip("torch")
    import ats_core.torch

    assert_equal(list(pipeline(ats, tf.constant)), [x.numpy() for x in pipeline(ats_core.torch, torch.from_numpy)])


def test_gradients_keep_subnormals_too():
    attention = (np.arange(1, 9) * 2.0**-1074).reshape(1, 8)
    cotangent = make(1, 3)
    with tf.GradientTape() as tape:
        x = tf.constant(attention)
        tape.watch(x)
        draws = ats.sample(x, 3, rng=1)
    samples = ats_core.sample(attention, 3, rng=1)
    assert_equal(tape.gradient(draws.attention, x, cotangent), ats_core.sample_backward(cotangent, attention, samples))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_that_come_out(dtype):
    attention, real = tf.constant(make(2, 3, 4, dtype=dtype)), "float64" if dtype == "float64" else "float32"
    with tf.GradientTape() as tape:
        tape.watch(attention)
        draws = ats.sample(attention, 3, rng=1)
    assert [x.dtype.name for x in draws] == ["int64", real, real]
    grad = tape.gradient(draws.attention, attention)
    assert (grad.dtype.name, grad.shape) == (dtype, attention.shape)
    image, origins = tf.constant(make(2, 8, 8, 3, dtype=dtype)), tf.constant(origins_in(2, 3, 2))
    with tf.GradientTape() as tape:
        tape.watch(image)
        patches, wide = ats.extract_patches(image, origins, 4), ats.extract_patches(image, origins, 4, dtype="float64")
        loss = tf.reduce_sum(tf.cast(patches, tf.float64)) + tf.reduce_sum(wide)
    assert (patches.dtype.name, wide.dtype.name, tape.gradient(loss, image).dtype.name) == (dtype, "float64", dtype)
    features = tf.constant(make(2, 3, 5, dtype=dtype))
    expected = ats.expectation(features, draws.attention)
    assert expected.dtype.name == dtype
    d_features, d_attention = ats.expectation_backward(expected, features, draws.attention)
    assert (d_features.dtype.name, d_attention.dtype.name) == (dtype, real)


# ---- random numbers ----


@pytest.mark.parametrize(
    "rng",
    [7, np.int64(7), np.array(7), (7, 0), [np.uint8(7), 0], np.array([7, 0]), tf.constant([7, 0], tf.int64),
     tf.Variable([7, 0], dtype=tf.int64), (tf.constant(7), 0), (7, tf.constant(0, tf.int64)), tf.constant(7), tf.constant([7, 0])],
    ids=lambda rng: type(rng).__name__,
)  # fmt: skip
def test_every_form_of_a_seed(rng):
    assert_equal(ats.sample(make(3, 40), 9, rng=rng), ats_core.sample(make(3, 40), 9, rng=7))


def test_no_rng_follows_the_global_generator():
    attention = tf.ones((4, 1000))
    tf.random.set_seed(11)
    first, second = ats.sample(attention, 20).indices, ats.sample(attention, 20).indices
    tf.random.set_seed(11)
    assert_equal([ats.sample(attention, 20).indices for _ in range(2)], [first, second])
    assert not np.array_equal(first, second)
    tf.random.set_seed(12)
    assert not np.array_equal(ats.sample(attention, 20).indices, first)


def test_rows_are_numbered_by_the_offset():
    attention = tf.constant(make(6, 50))
    whole = ats.sample(attention, 7, rng=(3, -2))  # across 2**64
    for b in range(6):
        assert_equal(ats.sample(attention[b : b + 1], 7, rng=(3, b - 2)), [x[b : b + 1] for x in whole])


# ---- what is taken ----


def test_lists_arrays_and_variables_are_tensors():
    attention, features = make(2, 6, dtype="float32"), make(2, 3, 4, dtype="float32")
    image, origins = make(2, 8, 8, 3, dtype="float32"), origins_in(2, 3, 2)
    for to in (np.ndarray.tolist, np.asarray, tf.Variable):
        draws = ats.sample(to(attention), 3, rng=1)
        assert_equal(draws, ats_core.sample(attention, 3, rng=1))
        assert_equal(ats.topk(to(attention), 3), ats_core.topk(attention, 3))
        assert_equal(
            ats.patch_origins(to(np.asarray(draws.indices)), (2, 3), (8, 8), 4),
            ats_core.patch_origins(np.asarray(draws.indices), (2, 3), (8, 8), 4),
        )
        for mean in (to(np.array([0.25, 0.5, 1.0], np.float32)), to(np.array([0.5], np.float32))):
            numbers = np.broadcast_to(np.asarray(mean), 3)
            assert_equal(
                ats.extract_patches(to(image), to(origins), 4, mean=mean, std=mean),
                ats_core.extract_patches(image, origins, 4, mean=numbers, std=numbers),
            )
        assert_equal(
            ats.expectation(to(features), draws.attention, estimator="des_raj", weights=to(np.full(3, 1 / 3, "f4"))),
            ats_core.expectation(
                features, np.asarray(draws.attention), estimator="des_raj", weights=np.full(3, 1 / 3, "f4")
            ),
        )


def test_narrower_integers_and_every_form_of_sizes():
    image, origins = make(2, 16, 16, 3), origins_in(2, 3, 2)
    expected = ats_core.extract_patches(image, origins, (4, 4), scales=(1, 2))
    for patch_size in (4, np.int64(4), [4, np.uint8(4)], np.array([4, 4]), tf.constant(4), tf.TensorShape((4, 4))):
        assert_equal(
            ats.extract_patches(image, origins.astype(np.int32), patch_size, scales=np.array([1, 2])), expected
        )
    indices = np.array([[1, 3]])
    expected = ats_core.patch_origins(indices, (2, 2), (20, 20), 3, low_shape=(8, 8), receptive_field=2)
    for to in (tuple, tf.TensorShape, np.array, tf.constant, lambda x: tf.constant(x, tf.int64), tf.Variable,
               lambda x: (x[0], tf.constant(x[1])), lambda x: [tf.constant(x[0]), tf.constant(x[1])]):  # fmt: skip
        for dtype in (np.uint8, np.int32, np.int64):
            ours = ats.patch_origins(
                indices.astype(dtype), to((2, 2)), to((20, 20)), 3, low_shape=to((8, 8)), receptive_field=2
            )
            assert_equal(ours, expected)
    assert ats.patch_origins(indices, 4, tf.constant(20), 3).shape == (1, 2, 1)


def test_channels_first_is_channels_last_elsewhere():
    for axes in (1, 2, 3):
        image, origins = make(2, *(9, 8, 7)[:axes], 3), origins_in(2, 5, axes)
        for scales in (None, (1, 3)):
            last = ats.extract_patches(image, origins, 4, scales=scales, mean=(1, 2, 3))
            options = {"scales": scales, "data_format": "channels_first"}
            first = ats.extract_patches(np.moveaxis(image, -1, 1), origins, 4, mean=(1, 2, 3), **options)
            assert_equal(np.moveaxis(first.numpy(), 2 if scales is None else 3, -1), last)
            grad = make(*first.shape)
            ours = ats.extract_patches_backward(grad, origins, (2, 3, *(9, 8, 7)[:axes]), 4, std=(1, 2, 4), **options)
            theirs = ats.extract_patches_backward(
                np.moveaxis(grad, 2 if scales is None else 3, -1), origins, image.shape, 4, std=(1, 2, 4), scales=scales
            )
            assert_equal(np.moveaxis(ours.numpy(), 1, -1), theirs)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_pyramid_is_numpys(data_format):
    shapes = ((64, 48), (31, 24), (16, 12))
    levels = [make(2, *((*s, 3) if data_format == "channels_last" else (3, *s)), seed=i) for i, s in enumerate(shapes)]
    origins = origins_in(2, 4, 2, size=60)
    options = {"padding": "edge", "mean": (0.1, 0.2, 0.3), "data_format": data_format}
    assert_equal(
        ats.extract_patches(tuple(map(tf.constant, levels)), origins, (7, 8), **options),
        ats_core.extract_patches(levels, origins, (7, 8), **options),
    )
    mixed = [levels[0].astype(np.uint8), levels[1].astype(np.uint8)]
    assert ats.extract_patches(mixed, origins, 4, std=2.0, data_format=data_format).dtype == tf.float32
    wide = [levels[0].astype(np.float32), levels[1]]  # the finest says which dtype
    assert ats.extract_patches(wide, origins, 4, data_format=data_format).dtype == tf.float32


@pytest.mark.parametrize("image_dtype", ["uint8", "int16", "uint16"])
def test_default_dtype_and_normalisation(image_dtype):
    image, origins = (make(2, 8, 8, 3) * 200).astype(image_dtype), origins_in(2, 3, 2)
    plain = ats.extract_patches(image, origins, 4)
    assert plain.dtype.name == image_dtype
    for dtype in (tf.float16, tf.bfloat16, "float64", np.float32):
        assert ats.extract_patches(image, origins, 4, dtype=dtype).dtype == dtype
    for mean, std in ((3.0, 2.0), ((3.0,) * 3, [2.0] * 3), (tf.fill((3,), 3.0), tf.constant(2)), (3, None)):
        patches = ats.extract_patches(image, origins, 4, mean=mean, std=std)
        assert patches.dtype == tf.float32
        np.testing.assert_allclose(patches, (plain.numpy() - 3.0) / (1.0 if std is None else 2.0), rtol=1e-6)


def test_nothing_to_do():
    """No rows, no draws from images without channels, all the cells, a single one."""
    draws = ats.sample(tf.zeros((0, 4, 5)), 3, rng=1)
    assert [tuple(x.shape) for x in draws] == [(0, 3), (0, 3), (0,)]
    origins = ats.patch_origins(draws.indices, (4, 5), (40, 50), 8)
    patches = ats.extract_patches(tf.zeros((0, 40, 50, 3)), origins, 8)
    assert (origins.shape, patches.shape) == ((0, 3, 2), (0, 3, 8, 8, 3))
    assert ats.extract_patches_backward(patches, origins, (0, 40, 50, 3), 8).shape == (0, 40, 50, 3)
    for estimator in ESTIMATORS:
        assert ats.expectation(
            tf.zeros((0, 3, 2)), draws.attention, estimator=estimator, threshold=draws.threshold
        ).shape == (0, 2)
    assert ats.estimator_arrays(draws.attention)[1].shape == (0, 3, 3)
    no_channels = tf.zeros((2, 9, 9, 0))
    with tf.GradientTape() as tape:
        tape.watch(no_channels)
        patches = ats.extract_patches(no_channels, origins_in(2, 3, 2), 4, mean=0.5)
    assert patches.shape == (2, 3, 4, 4, 0)
    assert tape.gradient(patches, no_channels).shape == no_channels.shape
    everything = ats.sample(make(3, 6), 6, rng=1)
    assert np.array_equal(np.sort(everything.indices), np.tile(np.arange(6), (3, 1)))
    assert np.isinf(everything.threshold).all()
    single = ats.sample(make(3, 1), 1, rng=1)
    assert np.array_equal(single.indices, [[0]] * 3) and np.array_equal(single.attention, [[1.0]] * 3)


# ---- gradients ----


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("how", ["sample", "replace", "topk"])
def test_gradient_of_the_probabilities_is_that_of_the_formula(how, logits):
    attention, cotangent = tf.constant(make(3, 4, 5)), tf.constant(make(3, 6, seed=1))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(attention)
        if how == "topk":
            draws = ats.topk(attention, 6, logits=logits)
        else:
            draws = ats.sample(attention, 6, replace=how == "replace", logits=logits, rng=1)
        cells = tf.reshape(attention, (3, -1))
        shares = tf.nn.softmax(cells) if logits else cells / tf.reduce_sum(cells, 1, keepdims=True)
        formula = tf.gather(shares, draws.indices, batch_dims=1)
    np.testing.assert_allclose(draws.attention, formula, rtol=1e-12)
    ours, theirs = (tape.gradient(x, attention, cotangent) for x in (draws.attention, formula))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_gradient_of_the_patches_is_its_transpose(data_format):
    """The patches are linear in the image: <extract(x), g> - <extract(0), g> = <x, backward(g)>."""
    shapes = ((2, 2, 9, 8), (2, 2, 4, 4)) if data_format == "channels_first" else ((2, 9, 8, 2), (2, 4, 4, 2))
    origins = origins_in(2, 3, 2)
    options = {"padding": "reflect", "mean": 0.2, "std": (0.5, 2.0), "data_format": data_format}
    for pyramid in (False, True):
        levels = [tf.constant(make(*shape, seed=i)) for i, shape in enumerate(shapes)]
        with tf.GradientTape() as tape:
            tape.watch(levels)
            more = {} if pyramid else {"scales": (1, 2, 3)}
            patches = ats.extract_patches(levels if pyramid else levels[0], origins, 3, **options, **more)
        nothing = [tf.zeros_like(level) for level in levels]
        constant = ats.extract_patches(nothing if pyramid else nothing[0], origins, 3, **options, **more)
        cotangent = make(*patches.shape, seed=5)
        grads = tape.gradient(patches, levels, cotangent)
        inner = sum(np.vdot(x, g) for x, g in zip(levels, grads, strict=True) if g is not None)
        assert sum(g is not None for g in grads) == 1 + pyramid
        np.testing.assert_allclose(inner, np.vdot(patches - constant, cotangent), rtol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_the_expectation_is_that_of_its_arrays(estimator):
    attention = tf.nn.softmax(tf.constant(make(2, 6)))[:, :4]
    features, threshold, cotangent = map(tf.constant, (make(2, 4, 3), make(2), make(2, 3, seed=3)))
    with tf.GradientTape() as tape:
        tape.watch([features, attention, threshold])
        expected = ats.expectation(features, attention, estimator=estimator, threshold=threshold)
    d_features, d_attention, d_threshold = tape.gradient(expected, (features, attention, threshold), cotangent)
    c, m = ats.estimator_arrays(attention, estimator, threshold=threshold)
    np.testing.assert_allclose(expected, tf.einsum("bn,bnf->bf", c, features), rtol=1e-12)
    np.testing.assert_allclose(d_features, c[..., None] * cotangent[:, None], rtol=1e-12)
    np.testing.assert_allclose(d_attention, tf.einsum("bij,bjf,bf->bi", m, features, cotangent), rtol=1e-9, atol=1e-12)
    assert d_threshold is None


def functions():
    origins, features = origins_in(2, 3, 1, size=5), make(2, 3, 2)
    yield "sample", lambda x: ats.sample(x, 3, rng=1).attention, make(2, 6)
    yield "topk", lambda x: ats.topk(x, 3).attention, make(2, 6)
    yield "extract_patches", lambda x: ats.extract_patches(x, origins, 3), make(2, 6, 1)
    yield "expectation", lambda x: ats.expectation(features, x, estimator="normalized"), make(2, 3)


FUNCTIONS = [pytest.param(f, x, id=name) for name, f, x in functions()]


@pytest.mark.parametrize("f, x", FUNCTIONS)
def test_gradients_that_arrive_in_other_forms(f, x):
    """Sparse ones, from a gather along the batch, and a persistent tape read twice."""
    x = tf.Variable(x)
    with tf.GradientTape(persistent=True) as tape:
        y = f(x)
        sparse, dense = tf.reduce_sum(tf.gather(y, [1, 1]) ** 2), 2 * tf.reduce_sum(y[1] ** 2)
    expected = tape.gradient(dense, x)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(tape.gradient(sparse, x), expected, rtol=1e-12)
    assert_equal(tape.gradient(dense, x), expected)


@pytest.mark.parametrize("f, x", FUNCTIONS)
def test_second_derivatives_and_forward_mode_are_clear_errors(f, x):
    x = tf.constant(x)

    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(f(x) ** 2)
            grad = inner.gradient(loss, x)
        return outer.gradient(grad, x)

    for call in (second, tf.function(second)):
        with pytest.raises(NotImplementedError, match=r"Ats>\w+: its gradient cannot be differentiated again"):
            call(x)
    with (
        pytest.raises(NotImplementedError, match="cannot be differentiated again"),
        tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)),
    ):
        f(x)


# ---- threads ----

LARGE = """
import importlib, sys
for name in sys.argv[2].split():
    importlib.import_module(name)
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
import ats_core, ats_core.tensorflow

rng = np.random.default_rng(0)
attention, image = rng.random((5, 300, 500), np.float32), rng.random((5, 300, 500, 3), np.float32)
attention[0] *= np.float32(1e-41)
features = rng.random((5, 40, 2000), np.float32)

def run(ats, rows):
    weights, images, several = attention[:rows], image[:rows], features[:rows]
    draws = ats.sample(weights, 40, rng=(5, 6))
    origins = ats.patch_origins(draws.indices, (300, 500), (300, 500), 32)
    patches = ats.extract_patches(images, origins, 32, scales=(1, 2))
    yield from (*draws, *ats.topk(weights, 40), origins, patches)
    yield ats.extract_patches_backward(patches, origins, images.shape, 32, scales=(1, 2))
    yield ats.expectation(several, draws.attention)
    yield from ats.expectation_backward(several[:, 0], several, draws.attention)

for rows in (5, 1):
    for ours, theirs in zip(run(ats_core.tensorflow, rows), run(ats_core, rows), strict=True):
        np.testing.assert_array_equal(ours, theirs)
if "torch" in sys.argv[2]:
    import torch, ats_core.torch
    for ours, theirs in zip(ats_core.tensorflow.sample(attention, 9, rng=5), ats_core.torch.sample(torch.from_numpy(attention), 9, rng=5)):
        np.testing.assert_array_equal(ours, theirs)
print("the same")
"""


@pytest.mark.parametrize(
    "threads, first", [(1, "ats_core.tensorflow ats_core.torch"), (2, "ats_core.torch ats_core.tensorflow")]
)
def test_any_number_of_threads_and_either_framework_first(threads, first):
    """Rows enough for every thread, and one that is large."""
    if importlib.util.find_spec("torch") is None:
        first = "ats_core.tensorflow"
    assert run(LARGE, threads, first) == "the same"


def test_several_threads_call_at_once():
    attention, image = tf.constant(make(8, 200, 200, dtype="float32")), tf.constant(make(8, 60, 60, 3, dtype="float32"))

    def call(seed):
        with tf.GradientTape() as tape:
            tape.watch([attention, image])
            draws = ats.sample(attention, 12, rng=seed)
            origins = ats.patch_origins(draws.indices, (200, 200), (60, 60), 8)
            patches = ats.extract_patches(image, origins, 8)
            expected = ats.expectation(tf.reduce_mean(patches, (2, 3)), draws.attention)
        return [*draws, expected, *tape.gradient(expected, [attention, image])]

    alone = [call(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert_equal(list(pool.map(call, range(6))), alone)


def test_errors_in_several_threads_at_once_are_their_own():
    def call(n):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"n = {n} asks for more"):
            ats.sample(tf.ones((1, 3)), n, rng=0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4, 104)))


# ---- devices ----


STRATEGY = """
import sys
import numpy as np, tensorflow as tf
import ats_core, ats_core.tensorflow as ats

kinds = {"one device": lambda: tf.distribute.OneDeviceStrategy("/cpu:0"),
         "mirrored": lambda: tf.distribute.MirroredStrategy(["/cpu:0"])}
strategy = kinds[sys.argv[1]]()
weights = np.random.default_rng(5).random((2, 20), np.float32)
with strategy.scope():
    attention = tf.Variable(weights)

@tf.function
def step():
    with tf.GradientTape() as tape:
        draws = ats.sample(attention, 4, rng=(3, 4))
    return draws.indices, tape.gradient(draws.attention, attention)

indices, grad = strategy.run(step)
samples = ats_core.sample(weights, 4, rng=(3, 4))
expected = ats_core.sample_backward(np.ones((2, 4), np.float32), weights, samples)
print((indices.numpy() == samples.indices).all() and (grad.numpy() == expected).all())
"""


@pytest.mark.parametrize("kind", ["one device", "mirrored"])
def test_distribution_strategies(kind):
    # In a process of its own: tf.map_fn, called eagerly, leaves a scope behind in which no strategy can make variables.
    assert run(STRATEGY, kind).split()[-1] == "True"


@pytest.mark.parametrize("version", [None, "2.17.1"])
def test_missing_or_old_tensorflow_says_what_to_install(version, monkeypatch):
    if version is None:
        monkeypatch.setitem(sys.modules, "tensorflow", None)
    else:
        monkeypatch.setattr(tf, "__version__", version)
    with pytest.raises(
        ImportError, match=r"^ats_core\.tensorflow needs TensorFlow 2\.18 or newer: python -m pip install"
    ):
        importlib.reload(ats)


def test_raw_operations_check_what_the_functions_give_them():
    attention, rng = tf.ones((1, 4)), tf.constant([1, 2], tf.int64)
    options = {"n": 2, "replace": False, "logits": False, "R": tf.float32}
    refused = pytest.raises((tf.errors.InvalidArgumentError, OverflowError, TypeError))
    for changed in ({"R": tf.float64}, {"R": tf.string}, {"R": tf.variant}, {"n": 2**63}, {"n": "2"}):
        with refused:
            _ops.sample(attention, rng, **(options | changed))
    for wrong in (rng[:1], rng[None], tf.constant([1, 2]), tf.constant([1.0, 2.0]), tf.constant(["a", "b"])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="rng"):
            _ops.sample(attention, wrong, **options)
    indices, sizes = tf.zeros((1, 1), tf.int64), tf.constant([4, 5], tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"low_shape: must have 2 values, got 1"):
        _ops.locate(indices, sizes, sizes[:1], sizes, patch_size=[1, 1], receptive_field=[0, 0])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"patch_size: at most 3 values are taken"):
        _ops.locate(indices, sizes, sizes, sizes, patch_size=[1] * 4, receptive_field=[0] * 4)
    patches, origins = tf.ones((1, 1, 2, 2, 1)), tf.zeros((1, 1, 2), tf.int64)
    none, options = tf.zeros((0,), tf.float64), {"patch_size": [2, 2], "scales": [], "padding": "edge"}
    options |= {"channels_first": False, "dtype": tf.float32}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"fill: must be one number"):
        _ops.extract_patches(patches[0], origins, none, none, none, **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"scales: at most 16 values are taken"):
        _ops.extract_patches(patches[0], origins, none, none, none, **(options | {"scales": [1] * 17}))
    for shape in ([1, -4, 4, 1], [1, 2**62, 2, 1], [2**62, 2**62, 0, 1], [2**63 - 1] * 4):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"image_shape: must not be negative, nor have too many"
        ):
            _ops.extract_patches_grad(patches, origins, tf.constant(shape, tf.int64), none, **options)
