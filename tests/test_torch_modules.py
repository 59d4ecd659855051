"""The PyTorch modules: what they compute in each mode, what they accept, and that they can be saved."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn

import ats_core.torch as ats

MODES = ("sample", "topk", "full")
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Features(nn.Module):
    """(B, C, *patch) -> (B, out)."""

    def __init__(self, channels, out=4):
        super().__init__()
        self.linear = nn.Linear(channels, out)

    def forward(self, patches):
        assert patches.shape[1] == self.linear.in_features
        return torch.tanh(self.linear(patches.flatten(2).mean(2)))


def network(axes=2, channels=2, stacked=1, n_patches=5, patch_size=8, seed=0, **options):
    torch.manual_seed(seed)
    attention = nn.Sequential(CONV[axes](channels, 1, 3, padding=1), ats.SampleSoftmax())
    return ats.AttentionSampling(attention, Features(channels * stacked), patch_size, n_patches, **options)


def images(axes=2, batch=3, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = (6, 5, 4)[:axes], (60, 50, 40)[:axes]
    return tuple(torch.rand(batch, channels, *size, generator=generator) for size in (low, high))


# ---- AttentionSampling ----


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"estimator": "des_raj"}, {"estimator": "iid", "replace": True},
                                     {"estimator": "horvitz_thompson"}], ids=str)  # fmt: skip
def test_shapes_and_gradients(axes, options):
    model, (low, high) = network(axes, **options), images(axes)
    features, attention, patches = model(low, high, rng=1)
    assert features.shape == (3, 4)
    assert attention.shape == (3, *low.shape[2:])
    assert patches.shape == (3, 5, 2, *(8,) * axes)
    features.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if "bias" not in name:  # the attention's does not matter: the softmax takes it out
            assert parameter.grad.abs().max() > 0, name


def test_it_is_the_functions_in_a_row():
    model, (low, high) = network(receptive_field=2, padding="edge", mean=0.5, std=(0.5, 2.0)), images()
    output = model(low, high, rng=7)
    attention = model.attention(low)
    draws = ats.sample(attention, 5, rng=7)
    origins = ats.patch_origins(draws.indices, (6, 5), (60, 50), 8, low_shape=(6, 5), receptive_field=2)
    patches = ats.extract_patches(high, origins, 8, padding="edge", mean=0.5, std=(0.5, 2.0))
    features = torch.stack([model.feature(patches[:, i]) for i in range(5)], 1)
    assert torch.equal(output.patches, patches)
    assert torch.equal(output.attention, attention)
    torch.testing.assert_close(output.features, ats.expectation(features, draws.attention, threshold=draws.threshold))


def test_validate_reaches_the_functions_and_changes_nothing_on_the_cpu(monkeypatch):
    seen = []

    def watched(name, function):
        def call(*args, **options):
            seen.append((name, options["validate"]))
            return function(*args, **options)

        return call

    for name in ("sample", "topk", "patch_origins", "expectation"):
        monkeypatch.setattr(f"ats_core.torch.modules.{name}", watched(name, getattr(ats, name)))
    for inference in ("sample", "topk"):
        for validate in (False, True):
            low, high = images()
            expected = network(inference=inference).eval()(low, high, rng=3)
            seen.clear()
            found = network(inference=inference, validate=validate).eval()(low, high, rng=3)
            assert seen == [(name, validate) for name in (inference, "patch_origins", "expectation")]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_estimate_is_right_on_average():
    """500 estimates of one image: their mean is within 5 standard errors of the exact expectation."""
    model, (low, high) = network(n_patches=3).eval(), images(batch=1)
    with torch.no_grad():
        estimates = model(low.expand(500, -1, -1, -1), high.expand(500, -1, -1, -1), rng=1).features
        model.inference = "full"
        exact = model(low, high).features[0]
    error = estimates.std(0) / 500**0.5
    assert error.min() > 0 and ((estimates.mean(0) - exact).abs() < 5 * error).all()


def test_full_equals_topk_of_all_equals_the_expectation_over_all_cells():
    (low, high), cells = images(), 30
    full = network(inference="full").eval()
    topk = network(inference="topk", n_patches=cells).eval()
    sampled = network(n_patches=cells).eval()  # murthy is exact when every cell was drawn
    attention = full.attention(low)
    indices = torch.arange(cells).expand(3, -1)
    patches, _ = full.sampler.cut(indices, (6, 5), high, (6, 5))
    features = full.feature(patches.flatten(0, 1)).unflatten(0, (3, cells))
    expected = (attention.flatten(1)[..., None] * features).sum(1)
    for model in (full, topk, sampled):
        torch.testing.assert_close(model(low, high).features, expected, rtol=1e-5, atol=1e-6)
    full.full_chunk = 7  # 2 images a chunk do not matter, nor does a last chunk that is shorter
    torch.testing.assert_close(full(low, high).features, expected)
    assert torch.equal(full(low, high).patches, topk(low, high).patches[:, :5])


def test_attention_need_not_be_normalised():
    (low, high), model = images(), network(n_patches=30).eval()
    expected = model(low, high).features
    model.attention.register_forward_hook(lambda module, inputs, output: 7.0 * output)
    for model.inference in MODES:
        torch.testing.assert_close(model(low, high).features, expected, rtol=1e-5, atol=1e-6)


def test_full_takes_no_more_patches_at_once_than_it_says():
    model, (low, high) = network(inference="full").eval(), images()
    model.full_chunk, sizes = 20, []
    model.feature.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    model(low, high)
    assert max(sizes) <= 20 and sum(sizes) == 3 * 30


@pytest.mark.parametrize("inference", MODES)
def test_modes(inference):
    model, (low, high) = network(inference=inference), images()
    one, other = model(low, high, rng=1).features, model(low, high, rng=2).features
    assert not torch.equal(one, other)  # training samples
    model.eval()
    one, other = model(low, high, rng=1).features, model(low, high, rng=2).features
    assert torch.equal(one, other) == (inference != "sample")
    if inference != "sample":
        best = ats.topk(model.attention(low), 5).indices
        assert torch.equal(model(low, high).patches, model.sampler.cut(best, (6, 5), high, (6, 5))[0])


def test_manual_seed_and_threads_do_not_change_the_result():
    model, (low, high) = network(), images()
    torch.manual_seed(3)
    first, second = model(low, high).features, model(low, high).features
    torch.manual_seed(3)
    assert torch.equal(model(low, high).features, first)
    assert not torch.equal(first, second)


def test_regularization():
    model, (low, high) = network(attention_regularizer=ats.MultinomialEntropy(0.1)), images()
    assert model.regularization == 0
    attention = model(low, high).attention
    torch.testing.assert_close(model.regularization, 0.1 * (attention * torch.log(attention + 1e-6)).sum() / 3)
    model.regularization.backward()
    assert model.attention[0].weight.grad.abs().max() > 0
    model.eval()
    assert model.regularization == 0
    model(low, high)
    assert model.regularization == 0
    plain = network()
    plain(low, high)
    assert plain.regularization == 0


def test_the_regularizer_is_given_a_distribution():
    model, (low, high) = network(attention_regularizer=ats.MultinomialEntropy()), images()
    model(low, high)
    expected = model.regularization
    model.attention.register_forward_hook(lambda module, inputs, output: 7.0 * output)
    attention = model(low, high).attention
    torch.testing.assert_close(attention.sum((1, 2)), torch.full((3,), 7.0))  # the map itself is returned as it is
    torch.testing.assert_close(model.regularization, expected)


@pytest.mark.parametrize("inference", MODES)
def test_scales_are_stacked_on_the_channels(inference):
    low, high = images()
    scaled = network(stacked=2, scales=(1, 2), inference=inference)
    pyramid = network(stacked=2, inference=inference)
    for model in (scaled, pyramid):
        model.train(inference == "sample")
    levels = [high, nn.functional.avg_pool2d(high, 2)]
    one, other = scaled(low, high, rng=1), pyramid(low, levels, rng=1)
    assert one.patches.shape == other.patches.shape == (3, 5, 2, 2, 8, 8)
    assert one.features.shape == other.features.shape == (3, 4)
    torch.testing.assert_close(one.patches[:, :, 0], other.patches[:, :, 0])


def test_uint8_images_stay_uint8():
    low, high = images()
    model = network(mean=0.0, std=255.0, padding="edge")
    patches = model(low, (high * 255).to(torch.uint8), rng=1).patches
    assert patches.dtype == torch.float32
    torch.testing.assert_close(patches, model(low, (high * 255).floor(), rng=1).patches)


@pytest.mark.parametrize("inference", MODES)
def test_autocast_gives_the_same_dtype_in_every_mode(inference):
    model, (low, high) = network(inference=inference).eval(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(low, high).features
    assert features.dtype == torch.float32
    assert network(inference=inference).eval().double()(low.double(), high.double()).features.dtype == torch.float64


@pytest.mark.parametrize("inference", MODES)
def test_empty_batch(inference):
    model, (low, high) = network(inference=inference), images()
    for training in (True, False):
        output = model.train(training)(low[:0], high[:0])
        assert output.features.shape == (0, 4) and output.patches.shape == (0, 5, 2, 8, 8)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"^estimator: 'iid' is for replace=True"):
        network(estimator="iid")
    with pytest.raises(ValueError, match=r"^estimator: 'iid' is for replace=True"):
        network(replace=True)
    with pytest.raises(ValueError, match=r"^estimator: must be one of 'iid', 'des_raj'.*got 'best'"):
        network(estimator="best")
    with pytest.raises(ValueError, match=r"^estimator: must be one of 'iid'.*got 'best'"):
        network(estimator="best", replace=True)  # the name before the rule
    with pytest.raises(ValueError, match=r"^estimator: 'normalized' is biased.*inference='topk'"):
        network(estimator="normalized")
    for name, value in [("patch_size", 0), ("patch_size", (8, 0)), ("patch_size", ()), ("patch_size", (8,) * 4),
                        ("n_patches", 0), ("receptive_field", -1), ("receptive_field", (1, 1, 1)), ("scales", ()),
                        ("scales", (1, 0)), ("padding", "zeros"), ("padding", 3), ("fill", "white"),
                        ("estimator", 3)]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            network(**{"patch_size": (8, 8), name: value})
    for name, value in [("patch_size", 8.0), ("patch_size", "8"), ("patch_size", None), ("n_patches", 5.0),
                        ("n_patches", "5"), ("receptive_field", 1.5), ("scales", 2), ("scales", "12")]:  # fmt: skip
        with pytest.raises(TypeError, match=rf"^{name}: "):
            network(**{name: value})
    with pytest.raises(ValueError, match=r"^inference: must be one of 'sample', 'topk', 'full', got 'max'"):
        network(inference="max")
    with pytest.raises(ValueError, match=r"^smooth: must be between 0 and 1"):
        ats.SampleSoftmax(smooth=1.5)
    model, (low, high) = network(), images()
    model.attention = nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"^attention: the network must return \(B, \*grid\).*got \(3, 3, 4, 3\)"):
        model(low, high)


def test_wrong_images_and_maps_are_named():
    model, (low, high) = network(), images()
    with pytest.raises(TypeError, match=r"^x_high: must be a torch.Tensor or a list of them, got ndarray"):
        model(low, high.numpy())
    with pytest.raises(TypeError, match=r"^x_low: must be a torch.Tensor, got ndarray"):
        model(low.numpy(), high)
    with pytest.raises(
        ValueError, match=r"^x_high: must be \(B, C, \*spatial\) with 2 spatial axes, got \(2, 60, 50\)"
    ):
        model(low, high[0])
    with pytest.raises(ValueError, match=r"^x_high: is smaller than x_low on every axis"):
        model(high, low)
    with pytest.raises(ValueError, match=r"^x_high: is smaller than x_low on every axis"):
        model(high, [low])
    model(low, low)
    with pytest.raises(TypeError, match=r"^x_high\[1\]: must be a torch.Tensor, got ndarray"):
        model(low, [high, high.numpy()])
    with pytest.raises(ValueError, match=r"^x_high\[1\]: batch and channels must be those of x_high\[0\]"):
        model(low, [high, high[:2]])
    sampler = ats.SamplePatches(8, 2)
    with pytest.raises(ValueError, match=r"^attention: must be \(B, \*grid\).*got \(3, 1, 6, 5\)"):
        sampler(torch.ones(3, 1, 6, 5), high)
    with pytest.raises(ValueError, match=r"^x_high: .*got \(2, 60, 50\)"):
        sampler(torch.ones(3, 6, 5), high[0])
    with pytest.raises(TypeError, match=r"^attention: must be a torch.Tensor, got ndarray"):
        sampler(torch.ones(3, 6, 5).numpy(), high)


# ---- saving ----


def test_copies_pickles_and_states():
    low, high = images()
    model = network(attention_regularizer=ats.MultinomialEntropy())
    expected = model(low, high, rng=1).features  # regularization now hangs on a graph
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    other = network(seed=1, attention_regularizer=ats.MultinomialEntropy())
    assert not torch.equal(other(low, high, rng=1).features, expected)
    other.load_state_dict(model.state_dict())
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False), other)
    for each in copies:
        assert torch.equal(each(low, high, rng=1).features, expected)
    assert list(model.state_dict()) == [
        "attention.0.weight", "attention.0.bias", "feature.linear.weight", "feature.linear.bias"
    ]  # fmt: skip
    assert "n_patches=5" in repr(model) and "murthy" in repr(model)


@pytest.mark.parametrize("inference", MODES)
def test_export(inference, tmp_path):
    model, (low, high), rng = network(inference=inference).eval(), images(), torch.tensor([1, 2])
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"x_low": {0: batch}, "x_high": {0: batch}, "rng": None}
    if inference == "full":  # how many cells a chunk takes depends on the batch
        shapes = None
    program = torch.export.export(model, (low, high, rng), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch_size in (3,) if shapes is None else (3, 5):
        low, high = images(batch=batch_size)
        for a, b in zip(loaded(low, high, rng), model(low, high, rng), strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_training_step():
    torch._dynamo.reset()
    low, high = images()
    model = network(attention_regularizer=ats.MultinomialEntropy(0.1), scales=(1, 2), stacked=2)

    def step(model, low, high):
        loss = model(low, high, (1, 2)).features.square().sum() + model.regularization
        return loss, torch.autograd.grad(loss, tuple(model.parameters()))

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (loss, grads), (expected, wanted) = step(compiled, low, high), step(model, low, high)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_func_grad_of_the_whole_model():
    """Per-sample gradients: vmap of grad of functional_call."""
    model, (low, high) = network(), images()
    parameters = dict(model.named_parameters())

    def loss(parameters, low, high):
        return torch.func.functional_call(model, parameters, (low[None], high[None], (1, 2))).features.square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, low, high)
    for b in range(3):
        single = torch.autograd.grad(loss(parameters, low[b], high[b]), tuple(parameters.values()))
        for (name, many), one in zip(together.items(), single, strict=True):
            torch.testing.assert_close(many[b], one, msg=name)


# ---- the small ones ----


def test_sample_softmax():
    logits = torch.randn(2, 1, 4, 5)
    expected = torch.softmax(logits.flatten(1), 1).view(2, 4, 5)
    torch.testing.assert_close(ats.SampleSoftmax()(logits), expected)
    torch.testing.assert_close(ats.SampleSoftmax()(logits[:, 0]), expected)
    torch.testing.assert_close(ats.SampleSoftmax()(logits[:, 0, 0]), torch.softmax(logits[:, 0, 0], 1))
    smooth = ats.SampleSoftmax(0.2)(100 * logits)
    torch.testing.assert_close(smooth.sum((1, 2)), torch.ones(2))
    assert smooth.min() >= 0.2 / 20 * (1 - 1e-6)
    torch.testing.assert_close(ats.SampleSoftmax(1.0)(logits), torch.full((2, 4, 5), 1 / 20))


def test_multinomial_entropy():
    uniform, peak = torch.full((2, 3, 4), 1 / 12), torch.zeros(2, 3, 4)
    peak[:, 1, 1] = 1.0
    entropy = ats.MultinomialEntropy(2.0, 1e-9)
    torch.testing.assert_close(entropy(uniform), -2 * torch.log(torch.tensor(12.0)))
    torch.testing.assert_close(entropy(peak), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert entropy(uniform[:0]) == 0


def test_sample_patches_and_expectation_alone():
    sampler, (_, high) = ats.SamplePatches((8, 6), 4, scales=(1, 2)), images()
    attention = torch.rand(3, 6, 5)
    out = sampler(attention, high, rng=3)
    draws = ats.sample(attention, 4, rng=3)
    assert torch.equal(out.indices, draws.indices) and torch.equal(out.threshold, draws.threshold)
    assert torch.equal(out.origins, ats.patch_origins(out.indices, (6, 5), (60, 50), (8, 6)))
    assert torch.equal(out.patches, ats.extract_patches(high, out.origins, (8, 6), scales=(1, 2)))
    assert torch.equal(sampler(attention, high, deterministic=True).indices, ats.topk(attention, 4).indices)
    features = torch.rand(3, 4, 7)
    for estimator in ("murthy", "horvitz_thompson"):
        assert torch.equal(
            ats.Expectation(estimator)(features, out.attention, out.threshold),
            ats.expectation(features, out.attention, estimator=estimator, threshold=out.threshold),
        )
