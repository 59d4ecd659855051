"""Models with attention_sampling saved, loaded and exported, also in another process; and jit_compile."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

from ats_core.keras import AttentionSampling, MultinomialEntropy, SamplePatches
from test_keras_models import (
    ON_TORCH,
    Subclassed,
    attention_network,
    classifier,
    feature_network,
    functional,
    images,
    quick_start,
    to_numpy,
)

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras


def in_a_fresh_process(code, *arguments):
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_a_subclassed_model_owns_everything(tmp_path):
    model, x = Subclassed(), images()
    model(x)
    assert len(model.trainable_variables) == 6
    assert any(isinstance(layer, SamplePatches) for layer in model._flatten_layers())
    model.save_weights(tmp_path / "weights.weights.h5")
    other = Subclassed()
    other(x), other(x)
    other.load_weights(tmp_path / "weights.weights.h5")  # the random state too
    assert np.array_equal(to_numpy(model(x)), to_numpy(other(x)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Subclassed": Subclassed})
    assert np.array_equal(to_numpy(model(x)), to_numpy(loaded(x)))


def test_quick_start_trained_saved_and_loaded_in_another_process(tmp_path):
    model = quick_start()
    x = np.random.default_rng(0).normal(size=(6, 100, 100, 1)).astype("float32")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(6), batch_size=3, verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    code = """
        import sys
        import numpy as np, keras
        import ats_core.keras
        model = keras.models.load_model(sys.argv[1] + "/model.keras")
        np.save(sys.argv[1] + "/y.npy", model.predict(np.load(sys.argv[1] + "/x.npy"), verbose=0))
        """
    in_a_fresh_process(code, tmp_path)
    assert np.array_equal(np.load(tmp_path / "y.npy"), model.predict(x, verbose=0))  # the random state was saved too


def test_an_h5_file(tmp_path):
    """Keras's older format has no place for plain operations: everything in the model is a layer."""
    more = {"scales": (1, 2), "estimator": "horvitz_thompson", "attention_regularizer": MultinomialEntropy(0.1)}
    for options in ({}, more):
        model, x = classifier(inference="topk", name="eye", **options), images()
        model.save(tmp_path / "model.h5")
        again = keras.models.load_model(tmp_path / "model.h5")
        assert np.array_equal(to_numpy(model(x)), to_numpy(again(x)))
    assert sum(layer.name.startswith("total_reshape") for layer in model.layers) == 2
    assert sum(layer.name.startswith("permute") for layer in model.layers) == 1


def test_the_layers_of_ats_are_loaded_without_it(tmp_path):
    import ats

    features, attention = keras.Input((3, 4)), keras.Input((3,))
    model = keras.Model([features, attention], ats.core.Expectation(name="mean")([features, attention]))
    model.save(tmp_path / "expectation.keras")
    sampling = ats.core.attention_sampling(attention_network(), feature_network(), 8, 5, inference="topk", name="eye")

    (tmp_path / "config.json").write_text(json.dumps(keras.saving.serialize_keras_object(sampling)))
    code = """
        import json, sys
        import keras
        import ats_core.keras
        mean = keras.models.load_model(sys.argv[1] + "/expectation.keras").get_layer("mean")
        sampling = keras.saving.deserialize_keras_object(json.load(open(sys.argv[1] + "/config.json")))
        assert type(mean) is ats_core.keras.Expectation and mean.estimator == "des_raj"
        assert type(sampling) is ats_core.keras.AttentionSampling and sampling.expectation.estimator == "des_raj"
        assert "ats" not in sys.modules
        """
    in_a_fresh_process(code, tmp_path)


def test_every_option_survives_a_save(tmp_path):
    model = classifier(
        estimator="horvitz_thompson", scales=(1, 2), padding="reflect", fill=1.0, mean=0.5, std=(2.0,), inference="topk",
        receptive_field=2, attention_regularizer=MultinomialEntropy(0.1, 1e-5), seed=3, name="eye",
    )  # fmt: skip
    model.save(tmp_path / "model.keras")
    loaded, x = keras.models.load_model(tmp_path / "model.keras"), images()
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert {"eye_sample_patches", "eye_expectation", "eye_activity_regularizer"} <= {
        layer.name for layer in loaded.layers
    }
    assert [layer.get_config() for layer in keras.models.clone_model(model).layers[1:]] == [
        layer.get_config() for layer in model.layers[1:]
    ]
    for training in (False, True):
        assert np.array_equal(to_numpy(model(x, training=training)), to_numpy(loaded(x, training=training)))
    assert to_numpy(model.losses[0]) == to_numpy(loaded.losses[0]) != 0


def test_the_layer_itself_has_a_config():
    layer = AttentionSampling(
        attention_network(), feature_network(), (8, 7), 5, False, MultinomialEntropy(0.1), 2, estimator="des_raj",
        inference="topk", data_format="channels_last", seed=3, name="eye", scales=(1, 2), padding="edge", mean=0.5, std=2.0,
    )  # fmt: skip
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
    assert again.sampler.get_config() == layer.sampler.get_config()


@pytest.mark.parametrize("inference", ["topk", "sample"])
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_export_to_another_process(inference, tmp_path):
    model, x = functional(inference=inference, seed=9), images()
    target = tmp_path / ("model.pt2" if ON_TORCH else "model")
    if ON_TORCH:
        import torch

        model.export(target, format="torch", dynamic_shapes={0: torch.export.Dim("b", min=1, max=64)}, verbose=False)
        code = """
            import sys
            import numpy as np, torch, ats_core.torch
            torch.manual_seed(0)
            model = torch.export.load(sys.argv[1]).module()
            call = lambda x: model(torch.from_numpy(x))
            """
    else:
        model.export(target, verbose=False)
        code = """
            import sys
            import numpy as np, ats_core.tensorflow, tensorflow as tf
            model = tf.saved_model.load(sys.argv[1])
            call = model.serve
            """
    code = textwrap.dedent(code) + textwrap.dedent("""
        x = np.load(sys.argv[2] + "/x.npy")
        np.savez(sys.argv[2] + "/y.npz", *[np.asarray(y.detach() if hasattr(y, "detach") else y)
                                           for x in (x, x, x[:2]) for y in call(x)])
        """)
    np.save(tmp_path / "x.npy", x)
    in_a_fresh_process(code, target, tmp_path)
    outputs = list(np.load(tmp_path / "y.npz").values())
    first, second, fewer = outputs[:3], outputs[3:6], outputs[6:]
    assert [y.shape for y in fewer] == [(2, *y.shape[1:]) for y in first]
    if inference == "topk":
        for y, z in zip(first, map(to_numpy, model(x)), strict=True):
            np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-6)
    assert np.array_equal(first[2], second[2]) == (inference == "topk")  # the random numbers go on


# ---- jit_compile ----


def test_compile_with_jit_falls_back_and_says_so():
    model = classifier()
    with pytest.warns(UserWarning, match=r"Model doesn't support `jit_compile=True`"):
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    assert np.isfinite(model.fit(images(), np.arange(4) % 3, verbose=0).history["loss"]).all()
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert model.jit_compile is False


@pytest.mark.skipif(ON_TORCH, reason="XLA is TensorFlow's")
def test_tf_function_with_jit_says_what_is_wrong():
    import tensorflow as tf

    model, x = functional(), images()
    with pytest.raises(NotImplementedError, match=r"jit_compile: ats_core has no XLA kernels"):
        tf.function(model, jit_compile=True)(x)
    assert tf.function(model)(x)[0].shape == (4, 3)
