"""Normalisation as a part of a model: any dtype in, the module's out, saved with the model."""

import copy
import io
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import ats_core.torch as ats
from ats_core.sources import SourceBatch
from sources_files import pixels

DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("mean", "std"), [(3.5, 2.0), ([1.0, 200.0], [0.25, 7.0]), (torch.tensor([5.0, 6.0]), 3)])
def test_every_dtype(dtype, axes, mean, std):
    image = pixels((*(7, 6, 5)[:axes], 2), dtype)
    x = torch.from_numpy(np.moveaxis(image, -1, 0)[None].copy())
    found = ats.Normalize(mean, std)(x)
    expected = (image.astype(np.float64) - np.array(mean, np.float64)) / np.array(std, np.float64)
    assert found.dtype == torch.float32 and found.shape == x.shape
    torch.testing.assert_close(
        found.double(), torch.from_numpy(np.moveaxis(expected, -1, 0)[None]), rtol=1e-6, atol=1e-6
    )


def test_the_dtype_is_the_models():
    x = torch.full((1, 1, 2, 2), 60_001, dtype=torch.uint16)  # beyond what half numbers tell apart
    layer = ats.Normalize(60_000.0, 2.0)
    assert layer.double()(x).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(layer).to(dtype)
        assert half(x).dtype == dtype
        mean = float(half.mean)
        torch.testing.assert_close(half(x).float(), torch.full((1, 1, 2, 2), (60_001 - mean) / 2), rtol=0.01, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        model = nn.Sequential(ats.Normalize(60_000.0, 2.0), nn.Conv2d(1, 1, 1))
        assert model[0](x).dtype == torch.float32 and (model[0](x) == 0.5).all()
        assert model(x).dtype == torch.bfloat16


def test_it_is_saved_with_the_model():
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    model = nn.Sequential(ats.Normalize((150, 100, 50), 50.0), nn.Conv2d(3, 1, 3))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = nn.Sequential(ats.Normalize((0, 0, 0), 1.0), nn.Conv2d(3, 1, 3))
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), model(x))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), model(x))
    assert "mean=[150.0, 100.0, 50.0], std=[50.0]" in repr(model)
    assert not list(model[0].parameters())


def test_it_compiles_and_exports():
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    layer = ats.Normalize((150, 100, 50), 50.0)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), layer(x))


def test_a_model_takes_thumbnails_as_they_are_and_has_the_same_gradient():
    images = [pixels((64, 48, 3), seed=seed) for seed in range(2)]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 1, 4, stride=4), ats.SampleSoftmax())
    feature = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    options = {"patch_size": 8, "n_patches": 3, "mean": 100.0, "std": 30.0}
    with SourceBatch(images) as sources:
        low, shapes, _ = sources.thumbnails(downsample=4)
        low = torch.from_numpy(low).movedim(-1, 1)
        results = []
        for attention, x_low in (
            (nn.Sequential(ats.Normalize(100.0, 30.0), network), low),
            (network, (low.float() - 100.0) / 30.0),
        ):
            model = ats.AttentionSampling(attention, feature, **options)
            model.zero_grad()
            output = model(x_low, sources, rng=1, low_shapes=torch.from_numpy(shapes))
            output.features.square().sum().backward()
            results.append([*output, *(parameter.grad.clone() for parameter in network.parameters())])
    assert low.dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ats.Normalize((0.1, 0.2, 0.3), 0.5).double(), x)


@pytest.mark.parametrize(
    ("mean", "std", "error", "words"),
    [
        (0.0, 0.0, ValueError, "std: must be positive"),
        (0.0, (1.0, -1.0), ValueError, "std: must be positive"),
        (float("nan"), 1.0, ValueError, "mean: must be a finite number"),
        (0.0, float("inf"), ValueError, "std: must be a finite number"),
        ((), 1.0, ValueError, "mean: must be a finite number"),
        (None, 1.0, ValueError, "mean: must be a finite number"),
        ("128", 1.0, TypeError, "mean: must be a number"),
        ((1, 2, 3), (1, 2), ValueError, "std: must have as many values as mean, 3, or one, got 2"),
        (torch.ones(2, 2), 1.0, ValueError, "mean: must be a number or one a channel"),
    ],
)
def test_bad_arguments(mean, std, error, words):
    with pytest.raises(error, match=f"^{words}"):
        ats.Normalize(mean, std)


def test_bad_input():
    layer = ats.Normalize((1, 2, 3), 1.0)
    for x in (torch.zeros(1, 2, 4, 4), torch.zeros(3, 4), torch.zeros(1, 3, 4, 4, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"^x: must be real numbers \(B, 3, \*spatial\), got"):
            layer(x)
    with pytest.raises(TypeError, match=r"^x: must be a torch\.Tensor"):
        layer([[[1.0]]])
    with pytest.raises(ValueError, match=r"^x: must be real numbers \(B, C, \*spatial\)"):
        ats.Normalize(1, 1)(torch.zeros(3, 4))
