"""The PyTorch operations under torch.compile, torch.export and autocast."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend

import ats_core.torch as ats


def make(*shape, dtype=torch.float64, grad=True, seed=0):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values + 0.1).to(dtype).requires_grad_(grad)


def pipeline(attention, image, weight, scales=(1, 2), rng=(1, 2), estimator="murthy"):
    """Everything in a row, with a gradient to each input."""
    draws = ats.sample(attention, 4, logits=True, rng=rng)
    origins = ats.patch_origins(draws.indices, attention.shape[1:], image.shape[2:], 6, receptive_field=1)
    patches = ats.extract_patches(image, origins, 6, scales=scales, mean=0.5, std=0.25)
    features = torch.tanh(patches.flatten(2) @ weight)
    return ats.expectation(features, draws.attention, estimator=estimator, threshold=draws.threshold)


def inputs(batch=2, grid=(5, 4), size=(30, 24), dtype=torch.float32):
    return make(batch, *grid, dtype=dtype), make(batch, 3, *size, dtype=dtype), make(2 * 3 * 36, 7, dtype=dtype)


def gradients(f, tensors):
    output = f(*tensors)
    return (output, *torch.autograd.grad((output**2).sum(), tensors))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("estimator", ["murthy", "horvitz_thompson"])
def test_compile_equals_eager(dynamic, estimator):
    f = lambda *tensors: pipeline(*tensors, estimator=estimator)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    sizes = [{}, {"batch": 3, "grid": (6, 7), "size": (40, 50)}] if dynamic else [{}]
    for size in sizes:
        for a, b in zip(gradients(compiled, inputs(**size)), gradients(f, inputs(**size)), strict=True):
            torch.testing.assert_close(a, b)


def test_dynamic_shapes_are_compiled_once():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(pipeline, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for batch, grid, size in [(2, (5, 4), (30, 24)), (3, (6, 7), (40, 50)), (4, (9, 8), (31, 33))]:
        tensors = inputs(batch, grid, size)
        torch.testing.assert_close(compiled(*tensors), pipeline(*tensors))
        frames.append(counter.frame_count)
    assert frames[0] == frames[1] == frames[2]


@pytest.mark.slow  # the C++ compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from within PyTorch
def test_compile_with_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(pipeline, fullgraph=True)
    for a, b in zip(gradients(compiled, inputs()), gradients(pipeline, inputs()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rng", [None, 3, "tensor"])
def test_compile_with_every_kind_of_rng(rng):
    torch._dynamo.reset()
    attention = torch.ones(2, 500)
    given = torch.tensor([3, 0]) if rng == "tensor" else rng
    compiled = torch.compile(lambda a, rng: ats.sample(a, 9, rng=rng).indices, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    first, second = compiled(attention, given), compiled(attention, given)
    torch.manual_seed(5)
    assert torch.equal(compiled(attention, given), first)
    assert torch.equal(first, second) == (rng is not None)
    if rng is not None:
        assert torch.equal(first, ats.sample(attention, 9, rng=3).indices)


def test_compile_a_pyramid_and_topk():
    def f(attention, image):
        draws = ats.topk(attention, 3)
        origins = ats.patch_origins(draws.indices, attention.shape[1:], image.shape[2:], 4)
        pyramid = [image, torch.nn.functional.avg_pool2d(image, 2)]
        return ats.extract_patches(pyramid, origins, 4) * draws.attention[:, :, None, None, None, None]

    torch._dynamo.reset()
    tensors = inputs()[:2]
    for dynamic in (False, True):
        compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for a, b in zip(gradients(compiled, tensors), gradients(f, tensors), strict=True):
            torch.testing.assert_close(a, b)


def test_compile_of_func_grad_and_vmap():
    torch._dynamo.reset()
    loss = lambda x: (ats.sample(x, 3, rng=(1, 2)).attention ** 2).sum()
    many = make(4, 2, 6, grad=False)
    for transform in (
        torch.func.grad(lambda x: torch.func.vmap(loss)(x).sum()),
        torch.func.vmap(torch.func.grad(loss)),
    ):
        compiled = torch.compile(transform, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(many), transform(many))


@pytest.mark.parametrize("strict", [False, True])
def test_export_round_trip(strict, tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(inputs()[2].detach())

        def forward(self, attention, image, rng):
            return pipeline(attention, image, self.weight, rng=rng)

    model, (attention, image, _), rng = Model(), inputs(), torch.tensor([1, 2])
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"attention": {0: batch}, "image": {0: batch}, "rng": None}
    program = torch.export.export(model, (attention, image, rng), dynamic_shapes=shapes, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in (2, 5):
        attention, image, _ = inputs(batch=size)
        torch.testing.assert_close(loaded(attention, image, rng), model(attention, image, rng))
    (grad,) = torch.autograd.grad(loaded(attention, image, rng).sum(), attention)  # the loaded program trains
    torch.testing.assert_close(grad, torch.autograd.grad(model(attention, image, rng).sum(), attention)[0])


# ---- autocast ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_float32(dtype):
    attention, features = make(2, 30, dtype=dtype), make(2, 4, 5, dtype=dtype)
    image, origins = make(2, 1, 8, dtype=dtype), torch.tensor([[[-1], [2], [5]]] * 2)
    with torch.autocast("cpu", dtype=dtype):
        draws, best = ats.sample(attention, 4, rng=1), ats.topk(attention, 4)
        expected = ats.expectation(features, draws.attention)
        assert ats.extract_patches(image, origins, 3).dtype == dtype  # untouched
        double = ats.expectation(features.double(), draws.attention.double())
    assert draws.attention.dtype == best.attention.dtype == expected.dtype == torch.float32
    assert double.dtype == torch.float64  # as the losses of PyTorch, it does not cast down
    assert ats.expectation(features, draws.attention).dtype == dtype  # outside
    exact = ats.expectation(features.float(), draws.attention)
    assert torch.equal(expected, exact)
    (expected.sum() + best.attention.sum()).backward()
    assert attention.grad.dtype == features.grad.dtype == dtype


def test_autocast_under_compile():
    torch._dynamo.reset()

    def f(attention, image, weight):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pipeline(attention, image, weight)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, inputs()), gradients(f, inputs()), strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtypes", list(itertools.product([torch.float16, torch.bfloat16, torch.float32], repeat=2)))
def test_mixed_dtypes_of_features_and_maps(dtypes):
    attention, features = make(2, 30, dtype=dtypes[0]), make(2, 4, 5, dtype=dtypes[1])
    draws = ats.sample(attention, 4, rng=1)
    expected = ats.expectation(features, draws.attention)
    expected.float().sum().backward()
    assert expected.dtype == features.grad.dtype == dtypes[1]
    assert draws.attention.dtype == torch.float32 and attention.grad.dtype == dtypes[0]
