"""Attention in strips: the map of the whole, its gradients, and only a strip of either in memory."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import ats_core.torch as ats
from ats_core.sources import FunctionSource, Level, open_source

# (layers, receptive field, stride, padding) along the first axis, by the formulas of `tiled_attention`
NETWORKS = {
    "padding-free": (lambda: [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 1, 4)], 6, 1, 0),
    "zero padding": (lambda: [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 1, 5, padding=2)], 7, 1, 3),
    "strides, padding-free": (lambda: [nn.Conv2d(2, 3, 3, 2), nn.Tanh(), nn.Conv2d(3, 1, 2, 3)], 5, 6, 0),
    "strides and padding": (
        lambda: [
            nn.Conv2d(2, 3, 3, 2, padding=1),
            nn.Tanh(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(3, 1, 3, padding=1),
        ],
        15,
        4,
        7,
    ),
    "dilation": (lambda: [nn.Conv2d(2, 3, 3, dilation=4, padding=4), nn.ReLU(), nn.Conv2d(3, 1, 1)], 9, 1, 4),
    "pooling": (lambda: [nn.AvgPool2d(5), nn.Conv2d(2, 1, 3, padding=1)], 15, 5, 5),
    "mixed": (lambda: [nn.Conv2d(2, 3, 5, padding=1), nn.Tanh(), nn.Conv2d(3, 1, 3, 2)], 7, 2, 1),
}
CLOSE = {"rtol": 0, "atol": 1e-13}  # float64 sums of some 30 products below 1 in another order


def network(name):
    layers, field, stride, padding = NETWORKS[name]
    torch.manual_seed(0)
    return nn.Sequential(*layers()).double(), {"receptive_field": field, "stride": stride, "padding": padding}


def image(rows=43, columns=21, batch=2):
    return torch.rand(batch, 2, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("strip", [1, 2, 3, 7, 100])
def test_the_map_of_the_whole(name, strip):
    model, options = network(name)
    for rows in (15, 16, 17, 30, 43, 44):
        x = image(rows)
        with torch.no_grad():
            found = ats.tiled_attention(model, x, strip=strip, **options)
            torch.testing.assert_close(found, model(x), **CLOSE)


@pytest.mark.parametrize("name, wrong", [("zero padding", {"receptive_field": 5, "padding": 2}),
                                         ("strides and padding", {"receptive_field": 11, "padding": 5})])  # fmt: skip
def test_a_receptive_field_that_is_too_small_shows(name, wrong):
    model, options = network(name)
    with torch.no_grad():
        found = ats.tiled_attention(model, image(), strip=2, **{**options, **wrong})
        assert (found - model(image())).abs().max() > 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wider_receptive_field_is_the_same(name):
    model, options = network(name)
    wider = {**options, "receptive_field": options["receptive_field"] + 6, "padding": options["padding"] + 3}
    with torch.no_grad():
        found = ats.tiled_attention(model, image(), strip=2, **wider)
        torch.testing.assert_close(found, model(image()), **CLOSE)


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes(axes):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    model = nn.Sequential(conv(1, 2, 3, padding=1), nn.Tanh(), conv(2, 1, 3, padding=1), nn.Flatten(1, 2)).double()
    x = torch.rand(2, 1, 19, *(6, 5)[: axes - 1], dtype=torch.float64)
    with torch.no_grad():
        found = ats.tiled_attention(model, x, strip=4, receptive_field=5, padding=2)
        assert found.shape == (2, 19, *(6, 5)[: axes - 1])
        torch.testing.assert_close(found, model(x), **CLOSE)


# ---- gradients ----


def gradients(model, attention, x, rng=3):
    """Through one draw over the whole map, at the parameters and the image."""
    logits = attention(x)
    samples = ats.sample(logits.squeeze(1), 6, logits=True, rng=rng)
    features = torch.sin(samples.indices.double())[..., None] + torch.arange(3)
    ats.expectation(features, samples.attention).square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()] + [x.grad.clone()]
    model.zero_grad()
    x.grad = None
    return samples.indices, found


@pytest.mark.parametrize("name", ["padding-free", "zero padding", "strides and padding"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_gradients_of_the_whole(name, checkpoint):
    model, options = network(name)
    x = image().requires_grad_()
    tiled = ats.TiledAttention(model, 3, checkpoint=checkpoint, **options)
    indices, expected = gradients(model, model, x)
    again, found = gradients(model, tiled, x)
    assert torch.equal(indices, again)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, float(b.abs().max())))
    assert all(gradient.abs().max() > 0 for gradient in expected[:1] + expected[-1:])


def test_what_is_kept_for_the_gradient_does_not_grow():
    """Bytes that autograd saves while the map is computed, of an image twice as high: all of it, or next to none."""
    model, options = network("zero padding")

    def saved(rows, checkpoint):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ats.tiled_attention(model, image(rows), strip=4, checkpoint=checkpoint, **options)
        return count

    assert saved(80, False) > 1.9 * saved(40, False) > 1e4
    assert saved(80, True) < 0.01 * saved(80, False)


def test_the_network_never_sees_more_than_a_strip():
    model, options = network("zero padding")
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
    x = image(200).requires_grad_()
    ats.tiled_attention(model, x, strip=5, **options).sum().backward()
    assert len(seen) == 2 * 40  # forward, and backward again
    assert max(seen) == 5 + 7 - 1


# ---- in place of a network ----


def test_it_is_an_attention_network():
    def make(tiled):
        torch.manual_seed(0)
        logits = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))
        if tiled:
            logits = ats.TiledAttention(logits, 3, 5, padding=2)
        feature = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return ats.AttentionSampling(nn.Sequential(logits, ats.SampleSoftmax()), feature, 8, 4).double()

    x_low, x_high = image(20), torch.rand(2, 2, 200, 210, dtype=torch.float64)
    expected, found = (make(tiled)(x_low, x_high, rng=1) for tiled in (False, True))
    assert torch.equal(found.patches, expected.patches)
    torch.testing.assert_close(found.features, expected.features, rtol=0, atol=1e-12)
    assert "strip=3, receptive_field=5, stride=1, padding=2" in repr(make(True))


# ---- sources ----


class Counting:
    """Two levels in memory that note the regions they are asked for."""

    def __init__(self):
        whole = np.random.default_rng(0).integers(0, 255, (120, 44, 2), np.uint8)
        self.levels, self.asked = [whole, whole[::2, ::2]], []

    def __call__(self, level, start, stop):
        self.asked.append((level, start, stop))
        return self.levels[level][tuple(slice(*ends) for ends in zip(start, stop, strict=True))]

    def source(self):
        levels = [Level(level.shape[:2], (), None) for level in self.levels]
        return FunctionSource(self, levels, np.uint8, 2, name="counting")


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", ["padding-free", "zero padding", "strides and padding"])
def test_a_level_of_a_source(name, level):
    model, options = network(name)
    model = model.float()
    levels = Counting()
    pixels = torch.from_numpy(np.ascontiguousarray(levels.levels[level])).movedim(-1, 0).unsqueeze(0)
    mean = torch.tensor([100.0, 120.0]).reshape(1, 2, 1, 1)
    expected = model((pixels.float() - mean) / 50)
    with levels.source() as source:
        found = ats.tiled_attention(model, source, strip=6, level=level, mean=[100.0, 120.0], std=50.0, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # float32, where 1e-7 is one rounding
        whole = ats.tiled_attention(model, pixels, strip=6, mean=[100.0, 120.0], std=50.0, **options)
        assert torch.equal(found, whole)  # a tensor is converted in the same way
        forward = list(levels.asked)
        assert {number for number, *_ in forward} == {level}
        longest = (6 - 1) * options["stride"] + options["receptive_field"] + options["stride"] - 1
        assert max(stop[0] - start[0] for _, start, stop in forward) <= longest
        found.sum().backward()
        assert sorted(levels.asked) == sorted(forward * 2)  # read a second time, not kept
        assert next(model.parameters()).grad.abs().max() > 0


def test_a_source_in_memory_that_floats():
    model, options = network("zero padding")
    x = image(batch=1)
    with open_source(x[0].movedim(0, -1).numpy()) as source, torch.no_grad():
        found = ats.tiled_attention(model, source, strip=6, **options)
        torch.testing.assert_close(found, model(x), **CLOSE)


# ---- what is refused ----


@pytest.mark.parametrize("options, error, words", [
    ({"strip": 0}, ValueError, "strip: must be at least 1, got 0"),
    ({"stride": 0}, ValueError, "stride: must be at least 1, got 0"),
    ({"padding": -1}, ValueError, "padding: must be at least 0, got -1"),
    ({"receptive_field": 0}, ValueError, "receptive_field: must be at least 1, got 0"),
    ({"receptive_field": 2.5}, TypeError, "receptive_field: must be an integer"),
    ({"level": 1}, ValueError, "level: a tensor has level 0 only, got 1"),
    ({"receptive_field": 60, "padding": 3}, ValueError, "43 pixels and 3 of padding are less than a receptive field"),
    ({"padding": 0}, ValueError, r"must give \d+ rows with receptive_field=7, stride=1 and padding=0, got the shape"),
    ({"stride": 2}, ValueError, "10 pixels must give 5 rows"),
    ({"dtype": "float32"}, TypeError, "dtype: must be a torch.dtype"),
], ids=str)  # fmt: skip
def test_errors_name_the_argument(options, error, words):
    model, right = network("zero padding")
    with pytest.raises(error, match=words):
        ats.tiled_attention(model, image(), **{"strip": 4, **right, **options})


def test_other_images():
    model, options = network("zero padding")
    for wrong, error in ((np.zeros((1, 2, 9, 9)), TypeError), (torch.zeros(2, 9), ValueError)):
        with pytest.raises(error, match="image: must be"):
            ats.tiled_attention(model, wrong, strip=4, **options)
    with pytest.raises(TypeError, match="network: its result: must be a"):
        ats.tiled_attention(lambda x: None, image(), strip=4, **options)
