"""The TensorFlow adapter where there is no Python: tf.function, shapes that are not known, loops, tf.data, SavedModel,
XLA."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import ats_core
import ats_core.tensorflow as ats
from test_tensorflow_ops import assert_equal, make, origins_in, run


@pytest.fixture(autouse=True)
def no_warnings_of_autograph(caplog):
    logger = tf.get_logger()  # it does not pass on what it gets
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)
    assert [x.message for x in caplog.get_records("call") if "<function ats_" in x.message] == []


def traced(f, *specs):
    """The function for tensors so described, and what is known of its results then."""
    concrete = tf.function(f, input_signature=specs).get_concrete_function()
    return concrete, concrete.structured_outputs


def spec(*shape, dtype=tf.float32):
    return tf.TensorSpec(shape, dtype)


def anything(dtype=tf.float32):
    return tf.TensorSpec(None, dtype)


def shapes(outputs):
    return [x.shape.as_list() if x.shape.rank is not None else None for x in tf.nest.flatten(outputs)]


# ---- shapes that are not known when the graph is made ----

INDICES = anything(tf.int64)
ATTENTION, IMAGE = make(2, 4, 5, dtype="float32"), make(2, 9, 8, 3, dtype="float32")
ORIGINS, CELLS = origins_in(2, 3, 2), np.array([[0, 19, 7], [3, 3, 5]])
FEATURES, SHARES = make(2, 3, 6, dtype="float32"), np.array([[0.1, 0.2, 0.3], [0.5, 0.25, 0.125]], np.float32)
GRADS = make(2, 3, 2, 4, 3, 3, dtype="float32")


def patches(**more):
    return lambda image, origins: ats.extract_patches(image, origins, (4, 3), padding="edge", **more)


def backward(grad, origins, shape):
    return ats.extract_patches_backward(grad, origins, shape, (4, 3), scales=(1, 2), std=(1, 2, 4), padding="edge")


UNKNOWN = {  # name: function, arguments, [(what is told of them, what is known of the results)]
    "sample": (
        lambda x: ats.sample(x, 3, rng=7),
        [ATTENTION],
        [([anything()], [[None, 3], [None, 3], [None]]), ([spec(2, None, None)], [[2, 3], [2, 3], [2]])],
    ),
    "sample rng": (
        lambda x, rng: ats.sample(x, 3, replace=True, logits=True, rng=rng),
        [ATTENTION, np.array([3, -4])],
        [([spec(None, 4, 5), anything(tf.int64)], [[None, 3], [None, 3], [None]])],
    ),
    "topk": (
        lambda x: ats.topk(x, 3),
        [ATTENTION],
        [([anything()], [[None, 3], [None, 3], [None]]), ([spec(2, 4, None)], [[2, 3], [2, 3], [2]])],
    ),
    "patch_origins": (
        lambda cells: ats.patch_origins(cells, (4, 5), tf.TensorShape((40, 50)), 7, receptive_field=1),
        [CELLS],
        [([INDICES], [[None, None, 2]]), ([spec(None, 3, dtype=tf.int64)], [[None, 3, 2]])],
    ),
    "patch_origins of tensors": (
        lambda cells, x, low, image: ats.patch_origins(
            cells, tf.shape(x)[1:], tf.shape(image)[1:-1], 3, low_shape=low, receptive_field=(1, 2)
        ),
        [CELLS, ATTENTION, np.array([8, 10], np.int32), IMAGE],
        [
            ([INDICES, spec(None, None, None), spec(2, dtype=tf.int32), spec(None, None, None, None)],
             [[None, None, 2]]),
            ([INDICES, spec(None, 4, 5), anything(tf.int32), spec(None, 9, 8, 3)], [[None, None, 2]]),
        ],
    ),
    "extract_patches": (
        patches(),
        [IMAGE, ORIGINS],
        [
            ([anything(), INDICES], [[None, None, 4, 3, None]]),
            ([spec(None, None, None, 3), INDICES], [[None, None, 4, 3, 3]]),
            ([spec(2, *[None] * 3), spec(2, None, 2, dtype=tf.int64)], [[2, None, 4, 3, None]]),
            ([spec(None, None, None, 3), spec(None, 3, None, dtype=tf.int64)], [[None, 3, 4, 3, 3]]),
        ],
    ),
    "extract_patches with options": (
        patches(scales=(1, 2), mean=0.5, std=(1, 2, 3), dtype=tf.float64, data_format="channels_first"),
        [np.moveaxis(IMAGE, -1, 1), ORIGINS],
        [
            ([anything(), INDICES], [[None, None, 2, None, 4, 3]]),
            ([spec(2, 3, None, None), INDICES], [[2, None, 2, 3, 4, 3]]),
        ],
    ),
    "extract_patches of a pyramid": (
        lambda a, b, origins: ats.extract_patches([a, b], origins, (4, 3), padding="edge"),
        [IMAGE, IMAGE[:, ::2, 1::2], ORIGINS],
        [
            ([anything(), anything(), INDICES], [[None, None, 2, 4, 3, None]]),
            ([spec(2, None, None, 3), anything(), INDICES], [[2, None, 2, 4, 3, 3]]),
        ],
    ),
    "extract_patches_backward": (
        backward,
        [GRADS, ORIGINS, np.array(IMAGE.shape)],
        [([anything(), INDICES, spec(4, dtype=tf.int64)], [[None] * 4])],
    ),
    "extract_patches_backward, sizes in part": (
        lambda grad, origins, height: backward(grad, origins, (2, height, 8, 3)),
        [GRADS, ORIGINS, np.int32(9)],
        [([anything(), INDICES, spec(dtype=tf.int32)], [[2, None, 8, 3]])],
    ),
    "expectation": (
        lambda f, a, t: ats.expectation(f, a, estimator="horvitz_thompson", threshold=t),
        [FEATURES, SHARES, np.ones(2, np.float32)],
        [
            ([anything(), anything(), anything()], [None]),
            ([spec(None, None, 6), anything(), anything()], [[None, 6]]),
            ([spec(2, 3, None), spec(2, None), anything()], [[2, None]]),
        ],
    ),
    "expectation_backward": (
        lambda g, f, a: ats.expectation_backward(g, f, a),
        [FEATURES[:, 0], FEATURES, SHARES],
        [([anything()] * 3, [None, None]), ([anything(), spec(None, 3, 6), spec(None, 3)], [[None, 3, 6], [None, 3]])],
    ),
    "estimator_arrays": (
        lambda a, w: ats.estimator_arrays(a, "des_raj", weights=w),
        [SHARES, np.full(3, 1 / 3, np.float32)],
        [([anything()] * 2, [[None, None], [None] * 3]), ([spec(2, 3), anything()], [[2, 3], [2, 3, 3]])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_shapes(name):
    f, arguments, told = UNKNOWN[name]
    expected = f(*map(tf.constant, arguments))
    for specs, known in told:
        concrete, outputs = traced(f, *specs)
        assert shapes(outputs) == known
        assert_equal(concrete(*map(tf.constant, arguments)), expected)


@pytest.mark.parametrize("name", ["sample", "topk", "extract_patches", "extract_patches with options", "expectation"])
def test_gradients_of_unknown_shapes(name):
    f, arguments, told = UNKNOWN[name]

    def gradients(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss = sum(tf.reduce_sum(x**2) for x in tf.nest.flatten(f(*tensors)) if x.dtype.is_floating)
        return [grad for grad in tape.gradient(loss, tensors) if grad is not None]

    tensors = tuple(map(tf.constant, arguments))
    if name in ("sample", "topk"):  # their threshold may be inf
        f = lambda x, f=f: f(x).attention
    expected = gradients(*tensors)
    assert len(expected) == (2 if name == "expectation" else 1)
    for specs, _ in told:
        concrete, _ = traced(gradients, *specs)
        for a, b in zip(concrete(*tensors), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_patch_size_has_to_tell_the_axes_when_nothing_else_does():
    with pytest.raises(ValueError, match="patch_size: must have 1, 2 or 3 values, one a spatial axis"):
        traced(lambda image, origins: ats.extract_patches(image, origins, 4), anything(), INDICES)
    concrete, outputs = traced(lambda *x: ats.extract_patches(*x, (4,)), anything(), INDICES)
    assert shapes(outputs) == [[None, None, 4, None]]
    assert_equal(
        concrete(tf.constant(IMAGE[:, 0]), tf.constant(ORIGINS[..., :1])),
        ats_core.extract_patches(IMAGE[:, 0], ORIGINS[..., :1], 4),
    )


def test_means_of_a_graph():
    image, numbers = tf.constant(IMAGE * 255), tf.Variable([0.1, 0.2, 0.3])
    expected = ats_core.extract_patches(image.numpy(), ORIGINS, 4, mean=numbers.numpy(), std=2.0)
    patches = tf.function(lambda mean, std: ats.extract_patches(image, ORIGINS, 4, mean=mean, std=std))
    for mean in (numbers, tf.constant(numbers), tf.unstack(numbers)):
        assert_equal(patches(mean, tf.constant(2)), expected)
    integers = tf.cast(image, tf.uint8)

    @tf.function
    def gradient():  # an integer image has none, the mean is a constant
        with tf.GradientTape() as tape:
            patches = ats.extract_patches(integers, ORIGINS, 4, mean=numbers)
        return tape.gradient(patches, [numbers])

    assert gradient() == [None]


# ---- errors ----

WRONG = [  # a function of tensors of a graph, their descriptions, the words
    (lambda x: ats.sample(x, 3, rng=1), [anything(tf.int32)], "sample: attention must be one of float16, bfloat16"),
    (lambda x: ats.sample(x, 3, rng=1), [spec(4)], "sample: attention must"),
    (
        lambda x: ats.sample(x, 6, rng=1),
        [spec(None, 5)],
        "sample: attention has 5 cells a row, and n = 6 asks for more",
    ),
    (lambda x: ats.sample(x, -1, rng=1), [anything()], "sample: n must"),
    (lambda x: ats.sample(x, x, rng=1), [spec()], "n: must be an integer"),
    (lambda x: ats.sample(x, 1, rng=1), [spec(*[1] * 9)], "attention: has 9 axes, at most 8 are taken"),
    (lambda x: ats.topk(x, 6), [spec(None, 5)], "topk: attention has 5 cells a row"),
    (lambda x: ats.patch_origins(x, (2, 0), (9, 9), 3), [INDICES], "locate: grid must be at least 1"),
    (
        lambda x: ats.patch_origins(x, (2, 2), (9, 9), 3, receptive_field=2),
        [INDICES],
        "receptive_field must be smaller",
    ),
    (lambda x: ats.patch_origins([[1]], x, (9, 9), 3), [anything(tf.int32)], "grid: must be a vector of known length"),
    (lambda x: ats.patch_origins([[1]], x.shape, (9, 9), 3), [spec(None, 2)], "grid: must be known"),
    (lambda x: ats.patch_origins([[1]], (2, 2), x.shape, 3), [anything()], "image_shape: must be known"),
    (lambda x: ats.patch_origins([[1]], (2, 2), x, 3), [spec(3, dtype=tf.int32)], "image_shape: must have 2 values"),
    (lambda x: ats.patch_origins([[1]], (2, 2), (9, 9), x), [spec(2, dtype=tf.int32)], "patch_size: must be integers"),
    (lambda x: ats.extract_patches(x, ORIGINS, 0), [anything()], "extract_patches: patch_size must be at least 1"),
    (lambda x: ats.extract_patches(x, ORIGINS, 3), [spec(None, 5)], r"image: must be \(B, \*spatial, C\)"),
    (lambda x: ats.extract_patches(x, ORIGINS, 3, padding="wrap"), [anything()], "padding: must be one of 'constant'"),
    (lambda x: ats.extract_patches(x, ORIGINS, 3, scales=[0]), [anything()], "extract_patches: scales must"),
    (
        lambda x: ats.extract_patches(x, ORIGINS, 3, mean=x),
        [spec(2, 9, 9, 3)],
        "mean: must be a number or one a channel",
    ),
    (
        lambda x: ats.extract_patches(IMAGE, ORIGINS, 3, mean=[x, x]),
        [spec()],
        "mean: must be a number or one a channel",
    ),
    (lambda x: ats.extract_patches(IMAGE, ORIGINS, 3, std=x), [spec(3, dtype=tf.bool)], "std: must be a number"),
    (lambda x: ats.extract_patches(x, ORIGINS, 3, fill=x), [anything()], "fill: must be a real number"),
    (
        lambda x: ats.extract_patches(x, ORIGINS, 3),
        [spec(5, None, None, 1)],
        "extract_patches: origins has B = 2, but image",
    ),
    (lambda x: ats.expectation(x, SHARES), [spec(None, 4, None)], "expectation: "),
    (lambda x: ats.expectation(x, SHARES, estimator="best"), [anything()], "estimator: must be one of 'iid'"),
    (lambda x: ats.expectation(FEATURES, x, estimator="horvitz_thompson"), [anything()], "expectation: threshold"),
    (lambda x: ats.estimator_arrays(x, weights=x), [anything()], "weights"),
    (lambda x: ats.estimator_arrays(x, weights=x), [spec(*[None] * 9)], "attention: has 9 axes, at most 8 are taken"),
]


@pytest.mark.parametrize("at", range(len(WRONG)))
def test_what_the_shapes_tell_is_refused_while_the_graph_is_made(at):
    f, specs, words = WRONG[at]
    with pytest.raises((ValueError, TypeError), match=words):
        traced(f, *specs)


def test_the_rest_is_refused_when_the_graph_runs():
    run_sample, _ = traced(lambda x: ats.sample(x, 3, rng=1).indices, anything())
    for attention, words in (
        ([[1.0, 2.0]], "n = 3 asks for more"),
        (1.0, "attention"),
        ([[1.0, -2.0, 3.0]], "attention must be finite"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            run_sample(tf.constant(attention))
    pyramid, _ = traced(lambda *x: ats.extract_patches(x, ORIGINS, 3), anything(), anything())
    with pytest.raises(tf.errors.InvalidArgumentError, match="the levels of a pyramid must not be empty"):
        pyramid(tf.constant(IMAGE), tf.zeros((2, 0, 3, 3)))
    run_locate, _ = traced(
        lambda sizes: ats.patch_origins([[1]], (2, 2), (20, 20), 3, low_shape=sizes, receptive_field=4),
        anything(tf.int64),
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="receptive_field must be smaller than low_shape, got 4"):
        run_locate(tf.constant([4, 8], tf.int64))
    with pytest.raises(tf.errors.InvalidArgumentError, match="low_shape: must have 2 values, got 3"):
        run_locate(tf.constant([4, 8, 8], tf.int64))


# ---- loops and functions ----


def loss_of(attention, image, rng, estimator="murthy"):
    """Everything that a training step calls."""
    draws = ats.sample(attention, 3, rng=rng)
    origins = ats.patch_origins(draws.indices, tf.shape(attention)[1:], tf.shape(image)[1:-1], 4)
    features = tf.reduce_mean(ats.extract_patches(image, origins, 4, padding="edge"), (2, 3))
    expected = ats.expectation(features, draws.attention, estimator=estimator, threshold=draws.threshold)
    return tf.reduce_sum(expected**2)


def step(attention, image, rng):
    with tf.GradientTape() as tape:
        tape.watch([attention, image])
        loss = loss_of(attention, image, rng)
    return loss, *tape.gradient(loss, [attention, image])


def test_new_seeds_do_not_retrace():
    traces = []

    @tf.function
    def f(attention, image, rng):
        traces.append(1)
        return step(attention, image, rng)

    for seed in range(4):
        arguments = (tf.constant(ATTENTION), tf.constant(IMAGE), tf.constant([seed, 2], tf.int64))
        for a, b in zip(f(*arguments), step(*arguments), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    assert len(traces) == 1


def test_no_rng_draws_anew_in_every_call_of_a_graph():
    f = tf.function(lambda x: (ats.sample(x, 20).indices, ats.sample(x, 20).indices))
    tf.random.set_seed(3)
    first, second = f(tf.ones((1, 1000))), f(tf.ones((1, 1000)))
    assert len({tuple(x.numpy()[0]) for x in (*first, *second)}) == 4
    tf.random.set_seed(3)
    assert_equal(tf.function(f.python_function)(tf.ones((1, 1000))), first)


def test_loops():
    attention = tf.constant(make(4, 5, 6))

    @tf.function
    def loop():
        drawn = tf.TensorArray(tf.int64, 4)
        for b in tf.range(4):
            drawn = drawn.write(b, ats.sample(attention[b : b + 1], 3, rng=(5, b)).indices[0])
        return drawn.stack()

    expected = ats.sample(attention, 3, rng=5).indices
    assert_equal(loop(), expected)
    rows = (attention, tf.range(4, dtype=tf.int64))
    mapped = tf.map_fn(
        lambda row: ats.sample(row[0][None], 3, rng=(5, row[1])).indices[0], rows, fn_output_signature=tf.int64
    )
    assert_equal(mapped, expected)
    vectorized = tf.vectorized_map(lambda row: ats.sample(row[0][None], 3, rng=(5, row[1])).indices[0], rows)
    assert_equal(vectorized, expected)
    branch = tf.function(lambda x, yes: tf.cond(yes, lambda: ats.sample(x, 3, rng=5), lambda: ats.topk(x, 3)))
    assert_equal(branch(attention, tf.constant(True)), ats.sample(attention, 3, rng=5))
    assert_equal(branch(attention, tf.constant(False)), ats.topk(attention, 3))


def test_gradients_through_a_loop():
    attention = tf.constant(make(1, 8))

    def looped(x):
        total = tf.constant(0.0, tf.float64)
        for k in tf.range(3):
            total += tf.reduce_sum(ats.sample(x, 3, rng=(k, 0)).attention ** 2)
        return total

    def unrolled(x):
        return sum(tf.reduce_sum(ats.sample(x, 3, rng=(k, 0)).attention ** 2) for k in range(3))

    def gradient(f):
        with tf.GradientTape() as tape:
            tape.watch(attention)
            loss = f(attention)
        return tape.gradient(loss, attention)

    np.testing.assert_allclose(gradient(tf.function(looped)), gradient(unrolled), rtol=1e-12)


@pytest.mark.parametrize("pfor", [False, True])
def test_jacobian(pfor):
    x = tf.constant(make(2, 6))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = ats.sample(x, 3, rng=1).attention
    jacobian = tape.jacobian(y, x, experimental_use_pfor=pfor)
    assert jacobian.shape == (2, 3, 2, 6)
    for b, i in np.ndindex(2, 3):
        unit = np.zeros((2, 3))
        unit[b, i] = 1
        np.testing.assert_allclose(jacobian[b, i], tape.gradient(y, x, tf.constant(unit)), rtol=1e-12)


# ---- tf.data ----


def test_data_pipelines_draw_the_same():
    weights, images = make(12, 4, 5, dtype="float32"), (make(12, 9, 8, 3) * 200).astype(np.uint8)

    def patches(attention, image, at):
        draws = ats.sample(attention[None], 3, rng=(9, at))
        origins = ats.patch_origins(draws.indices, (4, 5), image.shape[:2], 4)
        return ats.extract_patches(image[None], origins, 4, mean=100.0, std=50.0)[0]

    examples = tf.data.Dataset.from_tensor_slices((weights, images, np.arange(12)))
    dataset = examples.map(patches, num_parallel_calls=2, deterministic=True)
    assert dataset.element_spec.shape == (3, 4, 4, 3)
    samples = ats_core.sample(weights, 3, rng=9)
    origins = ats_core.patch_origins(samples.indices, (4, 5), (9, 8), 4)
    expected = ats_core.extract_patches(images, origins, 4, mean=100.0, std=50.0)
    for _ in range(2):
        assert_equal(np.stack(list(dataset.as_numpy_iterator())), expected)


# ---- SavedModel ----

LOAD = """
import sys
import numpy as np, tensorflow as tf
try:
    tf.saved_model.load(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
import ats_core.tensorflow
model = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[1] + "/given.npz")
with tf.GradientTape() as tape:
    attention, image = tf.constant(given["attention"]), tf.constant(given["image"])
    tape.watch([attention, image])
    outputs = model.everything(attention, image, tf.constant(given["rng"]))
outputs = [*outputs, *model.step(attention, image, tf.constant(given["rng"]))]  # backward operations in the graph too
grads = tape.gradient(outputs[0], [attention, image])
served = model.signatures["serving_default"](attention=attention)["indices"]
np.savez(sys.argv[1] + "/results.npz", *[x.numpy() for x in (*outputs, *grads, served)])
"""


SIGNATURE = [spec(None, None, None), spec(None, None, None, 3), spec(2, dtype=tf.int64)]


class Everything(tf.Module):
    @tf.function(input_signature=SIGNATURE)
    def everything(self, attention, image, rng):
        best = ats.topk(attention, 3)
        pyramid = ats.extract_patches([image, image[:, ::2, ::2]], tf.zeros((2, 3, 2), tf.int64), 4)
        return loss_of(attention, image, rng), *best, pyramid, *ats.estimator_arrays(best.attention, "normalized")

    @tf.function(input_signature=SIGNATURE)
    def step(self, attention, image, rng):
        return step(attention, image, rng)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.float32, "attention")])
    def serve(self, attention):
        return {"indices": ats.sample(attention, 3, rng=5).indices}


def test_saved_model_in_a_fresh_process(tmp_path):
    model, path = Everything(), str(tmp_path / "model")
    rng = np.array([3, 4])
    tf.saved_model.save(model, path, signatures=model.serve)
    np.savez(path + "/given.npz", attention=ATTENTION, image=IMAGE, rng=rng)
    message = run(LOAD, path)  # of the attempt without the import
    assert "Op type not registered 'Ats>" in message
    with tf.GradientTape() as tape:
        inputs = tf.constant(ATTENTION), tf.constant(IMAGE)
        tape.watch(inputs)
        outputs = model.everything(*inputs, tf.constant(rng))
    expected = [
        *outputs,
        *model.step(*inputs, tf.constant(rng)),
        *tape.gradient(outputs[0], inputs),
        model.serve(ATTENTION)["indices"],
    ]
    with np.load(path + "/results.npz") as results:
        assert_equal([results[name] for name in results.files], expected)


# ---- XLA ----


def test_jit_compile_is_a_clear_error():
    plain = tf.function(lambda x: ats.sample(x, 3, rng=1).indices)
    words = (
        "jit_compile: ats_core has no XLA kernels, so that a function or model that uses it runs with jit_compile=False"
    )
    for f in (lambda x: ats.sample(x, 3, rng=1).indices, plain, lambda x: plain(x) + 1,
              lambda x: tf.map_fn(lambda row: ats.topk(row[None], 3).attention, x),
              lambda x: ats.estimator_arrays(x)[0]):  # fmt: skip
        with pytest.raises(NotImplementedError, match=words):
            tf.function(f, jit_compile=True)(tf.ones((2, 5)))
    outer = tf.function(lambda x: tf.function(lambda x: ats.sample(x, 3, rng=1).indices, jit_compile=True)(x))
    with pytest.raises(NotImplementedError, match=words):
        outer(tf.ones((2, 5)))
    plain(tf.ones((2, 5)))  # traced by now, so that the words are TensorFlow's
    with pytest.raises(tf.errors.InvalidArgumentError, match="Ats>Sample"):
        tf.function(lambda x: plain(x) + 1, jit_compile=True)(tf.ones((2, 5)))


AUTOCLUSTERING = """
import numpy as np, tensorflow as tf
tf.config.optimizer.set_jit("autoclustering")
import ats_core, ats_core.tensorflow as ats

@tf.function
def f(x, features):
    with tf.GradientTape() as tape:
        tape.watch(x)
        weights = tf.exp(tf.tanh(x * 2 + 1) * 3)
        draws = ats.sample(weights / tf.reduce_sum(weights, 1, keepdims=True), 4, rng=(1, 2))
        loss = tf.reduce_sum(tf.sin(ats.expectation(tf.tanh(features) * 2, draws.attention)) ** 2)
    return draws.indices, tf.exp(tape.gradient(loss, x) * 2) + 1

x, features = np.random.default_rng(0).random((3, 50)), np.random.default_rng(1).random((3, 4, 5))
tf.config.optimizer.set_jit(False)
expected = tf.function(f.python_function)(x, features)
tf.config.optimizer.set_jit("autoclustering")
found = f(tf.constant(x), tf.constant(features))
np.testing.assert_array_equal(found[0], expected[0])
np.testing.assert_allclose(found[1], expected[1], rtol=1e-9)
print("the same")
"""


def test_autoclustering_leaves_the_operations_alone():
    assert run(AUTOCLUSTERING, TF_XLA_FLAGS="--tf_xla_cpu_global_jit --tf_xla_min_cluster_size=1") == "the same"
