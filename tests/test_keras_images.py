"""ImagePan and ImageLinearTransform: a pan is a shift with zeros, p is honoured, nothing happens outside training."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

from ats_core.keras import ImageLinearTransform, ImagePan

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras


def to_numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def images(batch=6, height=11, width=14, channels=2):
    """No pixel is 0."""
    return np.random.default_rng(0).uniform(1, 2, (batch, height, width, channels)).astype("float32")


def shifted(image, down, right):
    """image (H, W, C) moved by any distance, linearly interpolated, zeros outside: a loop over pixels."""
    result = np.zeros_like(image, dtype="float64")
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            y, x = i - down, j - right
            for a in (int(np.floor(y)), int(np.floor(y)) + 1):
                for b in (int(np.floor(x)), int(np.floor(x)) + 1):
                    share = (1 - abs(y - a)) * (1 - abs(x - b))
                    if 0 <= a < height and 0 <= b < width and share > 0:
                        result[i, j] += share * image[a, b]
    return result


def find_shift(image, result, pixels):
    """The whole shift that maps image to result; it is unique as no pixel is 0 or equal to another."""
    found = [
        (down, right)
        for down in range(-pixels, pixels + 1)
        for right in range(-pixels, pixels + 1)
        if np.array_equal(shifted(image, down, right).astype(image.dtype), result)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("horizontally, vertically", [(True, False), (False, True), (True, True)])
def test_a_pan_is_a_shift_with_zeros(data_format, horizontally, vertically):
    x = images()
    layer = ImagePan(3, 1.0, horizontally, vertically, data_format=data_format, seed=1)
    given = np.moveaxis(x, -1, 1) if data_format == "channels_first" else x
    result = to_numpy(layer(given, training=True))
    result = np.moveaxis(result, 1, -1) if data_format == "channels_first" else result
    shifts = np.array([find_shift(a, b, 3) for a, b in zip(x, result, strict=True)])
    assert (np.abs(shifts).max(0) > 0).tolist() == [vertically, horizontally]
    assert len(np.unique(shifts, axis=0)) > 1  # each its own


def test_every_whole_shift_is_as_likely():
    """Chi-square over the 7 x 7 shifts of 4900 images: 48 degrees of freedom, false alarm 1e-9. The seed is fixed."""
    x = np.zeros((4900, 9, 9, 1), "uint8")
    x[:, 4, 4] = 1
    result = to_numpy(ImagePan(3, 1.0, True, True, seed=0)(x, training=True))
    assert result.dtype == np.uint8 and (result.sum((1, 2, 3)) == 1).all()
    counts = result.sum(0, dtype="int64")[1:8, 1:8, 0]
    assert counts.sum() == 4900
    assert ((counts - 100.0) ** 2 / 100.0).sum() < 131.7


def test_bilinear_shifts_by_any_distance():
    x = images()
    result = to_numpy(ImagePan(3, 1.0, True, True, mode="BILINEAR", seed=3)(x, training=True))
    ramp = (
        np.stack(np.meshgrid(np.arange(40.0), np.arange(50.0), indexing="ij"), -1)[None].repeat(6, 0).astype("float32")
    )
    moved = to_numpy(ImagePan(3, 1.0, True, True, mode="BILINEAR", seed=3)(ramp, training=True))
    shifts = (ramp - moved)[:, 20, 25]  # the same seed: what a linear image loses inside is the shift
    assert np.abs(shifts).max() <= 3 and (np.abs(shifts - np.round(shifts)) > 1e-3).all()
    for image, got, (down, right) in zip(x, result, shifts.astype("float64"), strict=True):
        np.testing.assert_allclose(got, shifted(image, down, right), atol=1e-4)  # a shift read off a float32 ramp


@pytest.mark.parametrize("make", [lambda p: ImagePan(3, p, seed=4), lambda p: ImagePan(3, p, mode="BILINEAR", seed=4),
                                  lambda p: ImageLinearTransform(p=p, seed=4)])  # fmt: skip
def test_p_is_honoured(make):
    """Of 3000 images 0.7 change: six standard errors are 0.05 (false alarm 2e-9). Shifts of 0 are one in seven."""
    x = np.random.default_rng(0).uniform(1, 2, (3000, 4, 5, 1)).astype("float32")
    layer = make(0.7)
    changed = (to_numpy(layer(x, training=True)) != x).any((1, 2, 3)).mean()
    expected = 0.7 * 6 / 7 if getattr(layer, "mode", "") == "NEAREST" else 0.7
    assert abs(changed - expected) < 0.0503
    assert np.array_equal(to_numpy(make(0.0)(x, training=True)), x)


@pytest.mark.parametrize("layer", [ImagePan(3, 1.0), ImagePan(3, 1.0, mode="BILINEAR"), ImageLinearTransform(p=1.0)],
                         ids=["nearest", "bilinear", "linear"])  # fmt: skip
def test_only_in_training(layer):
    x = images()
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    assert np.array_equal(model.predict(x, verbose=0), x)
    assert np.array_equal(to_numpy(model(x)), x) and np.array_equal(to_numpy(model(x, training=False)), x)
    model.compile("sgd", "mse")
    assert model.evaluate(x, x, verbose=0) == 0
    first, second = (to_numpy(model(x, training=True)) for _ in range(2))
    assert not np.array_equal(first, x) and not np.array_equal(first, second)


def test_linear_transform_is_linear_with_one_a_and_b_an_image():
    x = images()
    for a, b in (((0.5, 1.5), (-0.25, 0.25)), ((0.8, 0.8), (0.1, 0.1))):
        result = to_numpy(ImageLinearTransform(a, b, 1.0, seed=1)(x, training=True))
        found = np.array([np.polyfit(i.reshape(-1), j.reshape(-1), 1) for i, j in zip(x, result, strict=True)])
        for image, got, (slope, shift) in zip(x, result, found, strict=True):
            np.testing.assert_allclose(got, slope * image + shift, atol=1e-5)
        for values, (low, high) in zip(found.T, (a, b), strict=True):
            assert (values >= low - 1e-5).all() and (values <= high + 1e-5).all()
            assert (np.ptp(values) > 1e-3) == (high > low)


def test_dtypes():
    x = (images() * 100).astype("uint8")
    assert to_numpy(ImagePan(3)(x, training=True)).dtype == np.uint8  # whole pixels need no arithmetic
    for layer in (ImagePan(3, mode="BILINEAR", dtype="mixed_float16"), ImageLinearTransform(dtype="mixed_float16")):
        for training in (False, True):
            assert to_numpy(layer(x, training=training)).dtype == np.float16
    assert to_numpy(ImagePan(3, dtype="mixed_float16")(images(), training=True)).dtype == np.float32


def test_they_train_in_a_model_and_their_state_is_saved(tmp_path):
    x = images(8)
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), ImagePan(3, seed=1), ImagePan(2, mode="BILINEAR", seed=2), ImageLinearTransform(seed=3),
         keras.layers.Flatten(), keras.layers.Dense(1)]
    )  # fmt: skip
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(x, np.zeros((8, 1)), batch_size=3, verbose=0).history["loss"]).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(to_numpy(model(x, training=True)), to_numpy(loaded(x, training=True)))


def test_only_the_layer_that_uses_our_operations_refuses_jit():
    assert ImageLinearTransform().supports_jit and not ImagePan(3).supports_jit
    x = images(4)
    model = keras.Sequential([keras.Input(x.shape[1:]), ImageLinearTransform(p=1.0), keras.layers.Flatten(),
                              keras.layers.Dense(1)])  # fmt: skip
    if keras.backend.backend() == "tensorflow":
        model.compile("sgd", "mse", jit_compile=True)
        assert np.isfinite(model.fit(x, np.zeros((4, 1)), verbose=0).history["loss"]).all()


def test_a_set_seed_repeats():
    def run():
        keras.utils.set_random_seed(3)
        return to_numpy(ImageLinearTransform(p=1.0)(ImagePan(3, 1.0)(images(), training=True), training=True))

    assert np.array_equal(run(), run())
