"""The reference library's import paths: names, signatures, defaults."""

import importlib
import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import reference
from tolerances import assert_close

keras = pytest.importorskip("keras", exc_type=ImportError)

import ats_core.keras

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras

NAMES = {
    "ats": ["__version__", "core", "data", "ops", "utils"],
    "ats.core": ["SamplePatches", "Expectation", "attention_sampling", "ATSBuilder", "ATSOutput", "expected", "sample"],
    "ats.core.ats_layer": ["SamplePatches", "Expectation", "attention_sampling"],
    "ats.core.builder": ["ATSBuilder", "ATSOutput"],
    "ats.core.expectation": ["expected"],
    "ats.core.sampling": ["sample"],
    "ats.data": ["FromTensors", "MultiResolutionBatch"],
    "ats.data.base": ["MultiResolutionBatch"],
    "ats.data.from_tensors": ["FromTensors"],
    "ats.ops": ["extract_patches"],
    "ats.ops.extract_patches": ["extract_patches"],
    "ats.utils": ["layers", "regularizers", "training"],
    "ats.utils.layers": ["SampleSoftmax", "L2Normalize", "ResizeImages", "TotalReshape", "ActivityRegularizer",
                         "ImageLinearTransform", "ImagePan"],
    "ats.utils.regularizers": ["MultinomialEntropy", "multinomial_entropy"],
    "ats.utils.training": ["Batcher", "DataTransform", "LambdaTransform", "compose_sequences"],
}  # fmt: skip

# Positional parameters and their defaults in the reference library; ours may have more behind them.
SIGNATURES = {
    "ats.core.attention_sampling": "attention, feature, patch_size=None, n_patches=10, replace=False, "
    "attention_regularizer=None, receptive_field=0",
    "ats.core.SamplePatches": "n_patches, patch_size, receptive_field=0, replace=False, use_logits=False",
    "ats.core.Expectation": "replace=False",
    "ats.core.expectation.expected": "attention, features, replace=False, weights=None",
    "ats.utils.layers.SampleSoftmax": "squeeze_channels=False, smooth=0",
    "ats.utils.layers.L2Normalize": "axis=-1",
    "ats.utils.layers.ResizeImages": "size, mode='bilinear'",
    "ats.utils.layers.TotalReshape": "shape",
    "ats.utils.layers.ActivityRegularizer": "regularizer",
    "ats.utils.layers.ImageLinearTransform": "a=(0.8, 1.2), b=(-0.1, 0.1), p=0.8",
    "ats.utils.layers.ImagePan": "pixels=100, p=0.8, horizontally=True, vertically=False, mode='NEAREST'",
    "ats.utils.regularizers.MultinomialEntropy": "strength=1, eps=1e-06",
    "ats.utils.regularizers.multinomial_entropy": "strength=1, eps=1e-06",
    "ats.utils.training.Batcher": "sequence, batch_size=16",
    "ats.utils.training.DataTransform": "sequence",
    "ats.utils.training.LambdaTransform": "sequence, transform_function",
    "ats.utils.training.compose_sequences": "sequence, sequences",
    "ats.ops.extract_patches.extract_patches": "x, offsets, size",
    "ats.data.FromTensors": "xs, y",
    "ats.data.FromTensors.patches": "self, samples, offsets, sample_space, previous_patch_size, patch_size, fromlevel, "
    "tolevel",
}  # fmt: skip


def to_numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    found = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(NAMES[module])
    for name in NAMES[module]:
        assert getattr(found, name).__doc__


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures(path):
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:  # a method
        module, _, owner = module.rpartition(".")
        found = getattr(getattr(importlib.import_module(module), owner), name)
    expected = inspect.signature(eval(f"lambda {SIGNATURES[path]}: 0")).parameters.values()
    parameters = [p for p in inspect.signature(found).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in parameters] == [(p.name, p.default) for p in expected]


def test_the_estimator_is_the_papers():
    from ats.core import Expectation, attention_sampling
    from ats.core.builder import ATSBuilder

    assert Expectation().estimator == "des_raj" and Expectation(replace=True).estimator == "iid"
    assert (
        Expectation(True).get_config()["estimator"] == "iid" and Expectation(estimator="murthy").estimator == "murthy"
    )
    assert isinstance(Expectation(), ats_core.keras.Expectation)
    for options, estimator in (({}, "des_raj"), ({"replace": True}, "iid"), ({"estimator": "murthy"}, "murthy")):
        assert attention_sampling(abs, abs, 8, **options).expectation.estimator == estimator
    assert ATSBuilder.default_estimator == "des_raj" and ats_core.keras.ATSBuilder.default_estimator == "murthy"
    assert ats_core.keras.attention_sampling(abs, abs, 8).expectation.estimator == "murthy"
    features, attention = np.random.default_rng(0).normal(size=(2, 3, 4)), np.array([[0.5, 0.1, 0.2]] * 2)
    result = to_numpy(Expectation()([features, attention]))
    assert_close(result, reference.expectation(features, attention, "des_raj"), "float64", scale=3)


def test_a_config_makes_the_layer_that_it_is_derived_from():
    """So that a program loads it that does not import ats."""
    from ats.core import Expectation, attention_sampling

    network = keras.layers.Flatten()
    for layer, base in (
        (Expectation(True, name="a"), ats_core.keras.Expectation),
        (Expectation(inference="topk"), ats_core.keras.Expectation),
        (attention_sampling(network, network, 8), ats_core.keras.AttentionSampling),
    ):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert type(again) is base and again.get_config() == layer.get_config()
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(again))
        assert type(again) is base and isinstance(layer, base)


def test_submodules_come_with_the_package():
    code = "import ats; print(ats.core.ATSBuilder, ats.utils.layers, ats.data.FromTensors, ats.ops.extract_patches)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ)


def test_help_shows_every_option():
    from ats.core import Expectation, attention_sampling

    ours = inspect.signature(ats_core.keras.attention_sampling)
    assert inspect.signature(attention_sampling) == ours
    assert {"scales", "padding", "mean", "std", "inference", "seed", "dtype"} <= set(ours.parameters)
    assert "inference" in inspect.signature(Expectation).parameters
    for name in set(ours.parameters) - {"kwargs"}:
        assert re.search(rf"\b{name}\b[\w, ]*:", attention_sampling.__doc__), name


def test_extract_patches():
    from ats.ops.extract_patches import extract_patches

    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype("float32")
    offsets = np.array([[[0, 0], [7, -2]], [[3, 3], [-1, 100]]])
    for size in ((4, 3), np.array([4, 3]), keras.ops.convert_to_tensor([4, 3])):
        patches = extract_patches(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(offsets), size)
        assert np.array_equal(to_numpy(patches), reference.extract_patches(x, offsets, (4, 3)).astype("float32"))


def test_version():
    import ats

    assert ats.__version__ == ats_core.__version__
