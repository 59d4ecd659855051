"""What the Keras layers say of bad input, and of backends that do not work."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

import ats_core.keras as ats

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras


def identity(x):
    return x


def network(**options):
    return ats.attention_sampling(identity, identity, **{"patch_size": 8, **options})


OPTIONS = [
    ("patch_size", 0, ValueError), ("patch_size", (8, 0), ValueError), ("patch_size", (), ValueError),
    ("patch_size", (8,) * 4, ValueError), ("patch_size", 8.0, TypeError), ("patch_size", "8", TypeError),
    ("n_patches", 0, ValueError), ("n_patches", 5.0, TypeError), ("n_patches", "5", TypeError),
    ("receptive_field", -1, ValueError), ("receptive_field", 1.5, TypeError), ("receptive_field", None, TypeError),
    ("scales", (), ValueError), ("scales", (1, 0), ValueError), ("scales", 2, TypeError), ("scales", "12", TypeError),
    ("padding", "zeros", ValueError), ("padding", 3, ValueError), ("fill", "white", TypeError),
    ("mean", "white", TypeError), ("std", [[1.0]], ValueError), ("replace", 2, TypeError), ("seed", 1.5, TypeError),
    ("seed", True, TypeError),
    ("seed", -1, ValueError), ("seed", 2**31, ValueError), ("data_format", "NCHW", ValueError),
    ("inference", "full", ValueError),
]  # fmt: skip


@pytest.mark.parametrize("name, value, error", OPTIONS, ids=str)
def test_options_that_suit_no_image(name, value, error):
    message = rf"^({name}: |extract_patches: {name} must )"  # ours or the core's
    with pytest.raises(error, match=message):
        ats.SamplePatches(**{"n_patches": 3, "patch_size": 8, name: value})
    if name != "replace":
        with pytest.raises(error, match=message):
            network(**{name: value})


def test_no_receptive_field():
    for make in (lambda: network(receptive_field=None), lambda: ats.ATSBuilder().attention_receptive_field(None)):
        with pytest.raises(
            TypeError, match=r"^receptive_field: must be .* in pixels of x_low, or 0 if they pad, got None"
        ):
            make()


def test_a_feature_network_for_other_patches():
    """The reference library's MNIST example gives the image's shape as that of the feature network's input."""
    wanted = r"feature: takes \(60, 50, 1\), but the patches are \(8, 8, 1\): leave its input_shape out or give it the"
    x_low, x_high = keras.Input((6, 5, 1)), keras.Input((60, 50, 1))
    one = keras.Sequential([keras.Input((60, 50, 1)), keras.layers.Conv2D(2, 3), keras.layers.GlobalMaxPooling2D()])
    for feature in (one, keras.Model(x_high, keras.layers.GlobalMaxPooling2D()(x_high))):
        attention = ats.SampleSoftmax(squeeze_channels=True)
        with pytest.raises(ValueError, match=wanted):
            ats.attention_sampling(attention, feature, 8, 3)([x_low, x_high])
        with pytest.raises(ValueError, match=wanted):
            ats.attention_sampling(attention, feature, 8, 3)(
                [np.ones((2, 6, 5, 1), "float32"), np.ones((2, 60, 50, 1), "float32")]
            )
    for shape in ((8, 8, 1), (None, None, 1)):
        fits = keras.Sequential([keras.Input(shape), keras.layers.GlobalMaxPooling2D()])
        assert ats.attention_sampling(attention, fits, 8, 3)([x_low, x_high])[0].shape == (None, 1)
    built = keras.layers.Conv2D(2, 3)  # a layer takes other sizes than those that it was built with
    built.build((None, 60, 50, 1))
    assert ats.attention_sampling(attention, built, 8, 3)([x_low, x_high])[0].shape == (None, 6, 6, 2)


def test_a_receptive_field_for_other_axes():
    with pytest.raises(ValueError, match=r"^receptive_field: must have 2 values, one a spatial axis, got 3"):
        ats.SamplePatches(3, (8, 8), (1, 1, 1))


def test_estimators():
    with pytest.raises(ValueError, match=r"^estimator: 'iid' is for replace=True"):
        network(estimator="iid")
    with pytest.raises(ValueError, match=r"^estimator: 'iid' is for replace=True.*got 'murthy' with replace=True"):
        network(estimator="murthy", replace=True)
    with pytest.raises(ValueError, match=r"^estimator: 'normalized' is biased.*inference='topk'"):
        network(estimator="normalized")
    for make in (network, ats.Expectation):
        with pytest.raises(ValueError, match=r"^estimator: must be one of 'iid', 'des_raj'.*got 'best'"):
            make(estimator="best")
    with pytest.raises(ValueError, match=r"^inference: must be one of 'sample', 'topk', got 'max'"):
        ats.Expectation(inference="max")
    with pytest.raises(TypeError, match=r"^feature: must be a Keras layer or a callable, got 3"):
        ats.attention_sampling(identity, 3, 8)


@pytest.mark.parametrize("symbolic", [False, True])
def test_wrong_images_and_maps_are_named(symbolic):
    def given(*shapes):
        return [keras.Input(s[1:]) if symbolic else np.ones(s, "float32") for s in shapes]

    low, high, grid = (2, 6, 5, 1), (2, 60, 50, 1), (2, 6, 5)
    layer = ats.SamplePatches(3, 8)
    layer(given(low, high, grid))
    with pytest.raises(ValueError, match=r"x_high: is smaller than x_low on every axis, \(6, 5\) and \(60, 50\)"):
        layer(given(high, low, grid))
    with pytest.raises(ValueError, match=r"x_high: is smaller than x_low on every axis"):
        network()(given(high, low))
    with pytest.raises(ValueError, match=r"x_high: must have as many axes as x_low, 4, got"):
        layer(given(low, (2, 60, 50), grid))
    with pytest.raises(ValueError, match=r"attention: must be \(B, \*grid\) with 2 axes in grid"):
        layer(given(low, high, (2, 6, 5, 2)))
    with pytest.raises(ValueError, match=r"x_low: must have a batch axis, channels and 1 to 3 spatial axes"):
        layer(given((2, 6), (2, 60), grid))
    with pytest.raises(ValueError, match=r"inputs: must be \[x_low, x_high, attention\]"):
        layer(given(low, high))
    with pytest.raises(ValueError, match=r"inputs: must be \[features, attention, \(threshold\)\] for 'murthy'"):
        ats.Expectation()(given(low))
    with pytest.raises(ValueError, match=r"squeeze_channels: the channel axis must have size 1"):
        ats.SampleSoftmax(squeeze_channels=True)(*given((2, 6, 5, 3)))
    for image_layer in (ats.ResizeImages(3), ats.ImagePan(3)):
        with pytest.raises(ValueError, match=r"x: must be images with 4 axes"):
            image_layer(*given((2, 6, 5)))
    with pytest.raises(ValueError, match=r"inputs: must be \[features, attention, threshold\] for 'horvitz_thompson'"):
        ats.Expectation("horvitz_thompson")(given((2, 3, 4), (2, 3)))
    with pytest.raises(ValueError, match=r"attention: must be \(B, n\), the second of the inputs, got \(\w+, 3, 4\)"):
        ats.Expectation()(given((2, 3), (2, 3, 4)))
    with pytest.raises(ValueError, match=r"features: must be \(B, n, ...\), the first of the inputs, with n as in att"):
        ats.Expectation()(given((2, 4, 5), (2, 3)))
    with pytest.raises(ValueError, match=r"features: must be \(B, n, ...\), the first of the inputs"):
        ats.Expectation()(given((2,), (2, 3)))


def test_too_few_cells():
    layer = ats.SamplePatches(31, 8)
    with pytest.raises(Exception, match=r"(?s)n\b.*30"):
        layer([np.ones((2, 6, 5, 1), "float32"), np.ones((2, 60, 50, 1), "float32"), np.ones((2, 6, 5), "float32")])


def test_options_of_the_small_layers():
    for make, message in [
        (lambda: ats.SampleSoftmax(smooth=1.5), "smooth: must be between 0 and 1, got 1.5"),
        (lambda: ats.SampleSoftmax(data_format="first"), "data_format: must be one of"),
        (lambda: ats.L2Normalize(axis=[]), r"axis: must be an axis or several, got \[\]"),
        (lambda: ats.ResizeImages((3, 0)), "size: must be at least 1"),
        (lambda: ats.ResizeImages((3, 4, 5)), "size: must have 2 values"),
        (lambda: ats.ResizeImages(3, "nearest"), "mode: must be one of 'bilinear', 'bicubic', got 'nearest'"),
        (lambda: ats.TotalReshape((-1, -1)), "shape: must be sizes, with -1 for one of them at most"),
        (lambda: ats.ImagePan(-1), "pixels: must be at least 0, got -1"),
        (lambda: ats.ImagePan(mode="CUBIC"), "mode: must be one of 'NEAREST', 'BILINEAR', got 'CUBIC'"),
        (lambda: ats.ImagePan(p=2), "p: must be between 0 and 1, got 2"),
        (lambda: ats.ImageLinearTransform(a=(2, 1)), r"a: must be finite and in the order \(low, high\)"),
        (lambda: ats.ActivityRegularizer(None), "regularizer: must be a regulariser or a callable, got None"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^{message}"):
            make()
    with pytest.raises(TypeError, match=r"^b: must be a pair \(low, high\), got 3"):
        ats.ImageLinearTransform(b=3)
    with pytest.raises(TypeError, match=r"^strength: must be a real number, got 'much'"):
        ats.MultinomialEntropy("much")


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="sizes are always known there")
def test_a_pan_in_a_graph_needs_the_size():
    model = keras.Sequential([keras.Input((None, None, 1)), ats.ImagePan(3)])
    model.compile("sgd", "mse")
    x = np.ones((2, 6, 5, 1), "float32")
    assert np.array_equal(model.predict(x, verbose=0), x)
    import tensorflow as tf

    graph = tf.function(lambda y: model(y, training=True), input_signature=[tf.TensorSpec((None, None, None, 1))])
    with pytest.raises(ValueError, match=r"x: its height and width must be known to shift it"):
        graph(x)


# ---- backends that do not work ----


def import_error(environment, code="import ats_core.keras"):
    process = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert process.returncode == 1
    return process.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["jax", "numpy", "openvino", "theano"])
def test_other_backends_are_refused_in_one_line(name):
    message = import_error({"KERAS_BACKEND": name})
    assert message == (
        f"ImportError: ats_core.keras works with Keras on the TensorFlow and the PyTorch backend, not on '{name}': set "
        "KERAS_BACKEND=tensorflow or KERAS_BACKEND=torch before anything imports keras"
    )


def test_the_backend_of_the_settings_file(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    environment = {"KERAS_BACKEND": "", "KERAS_HOME": str(tmp_path)}
    assert "not on 'jax'" in import_error(environment)
    assert "not on 'jax'" in import_error(environment, "import ats.core")


def test_a_missing_or_old_keras():
    message = import_error({"KERAS_BACKEND": "torch"}, "import sys; sys.modules['keras'] = None; import ats_core.keras")
    assert message.startswith(
        "ImportError: ats_core.keras needs Keras 3.10 or newer and the backend that it is set to, "
    )
    assert "python -m pip install 'keras>=3.10' torch" in message
    for version in ("2.15.0", "3.9.2"):
        old = f"import sys, types; sys.modules['keras'] = k = types.ModuleType('keras'); k.__version__ = {version!r}"
        message = import_error({"KERAS_BACKEND": "torch"}, f"{old}; import ats_core.keras")
        assert message.startswith("ImportError: ats_core.keras needs Keras 3.10 or newer: python -m pip install")
        assert message.endswith(f"(found {version})")
