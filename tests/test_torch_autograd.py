"""Gradients of the PyTorch operations: autograd and torch.func."""

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck

import ats_core.torch as ats

ops = torch.ops.ats
ESTIMATORS = ("iid", "des_raj", "murthy", "horvitz_thompson", "normalized")


def make(*shape, dtype=torch.float64, grad=True, seed=0):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values + 0.1).to(dtype).requires_grad_(grad)


def origins_in(*shape, size, seed=0):
    return torch.randint(-4, size, shape, generator=torch.Generator().manual_seed(seed))


# ---- gradcheck ----


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("how", ["sample", "replace", "topk"])
def test_gradient_of_the_probabilities(how, logits):
    attention = make(2, 3, 4)

    def probabilities(attention):
        if how == "topk":
            return ats.topk(attention, 5, logits=logits).attention
        return ats.sample(attention, 5, replace=how == "replace", logits=logits, rng=(1, 2)).attention

    assert gradcheck(probabilities, attention)


def test_gradient_of_the_probabilities_is_that_of_the_formula():
    attention = make(3, 10)
    draws = ats.sample(attention, 4, rng=5)
    cotangent = torch.rand_like(draws.attention)
    (ours,) = torch.autograd.grad(draws.attention, attention, cotangent)
    formula = (attention / attention.sum(1, keepdim=True)).gather(1, draws.indices)
    (theirs,) = torch.autograd.grad(formula, attention, cotangent)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("scales", [None, (1,), (1, 2, 3)])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_gradient_of_the_patches(padding, scales, axes, data_format):
    spatial, patch = (7, 5, 4)[:axes], (3, 2, 2)[:axes]
    image = make(1, 2, *spatial) if data_format == "channels_first" else make(1, *spatial, 2)
    origins = origins_in(1, 2, axes, size=6)
    assert gradcheck(
        lambda image: ats.extract_patches(
            image, origins, patch, scales=scales, padding=padding, fill=0.3, mean=0.2, std=(0.5, 2.0),
            data_format=data_format,
        ),
        image,
    )  # fmt: skip


def test_gradient_of_a_pyramid():
    levels = (make(1, 2, 8, 8), make(1, 2, 4, 4, seed=1))
    origins = origins_in(1, 3, 2, size=7)
    assert gradcheck(lambda *levels: ats.extract_patches(levels, origins, 3, padding="edge"), levels)


def test_gradient_of_the_patches_has_the_dtype_of_the_image():
    image, origins = make(1, 2, 6, 6, dtype=torch.float32), origins_in(1, 3, 2, size=5)
    patches = ats.extract_patches(image, origins, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad(patches.sum(), image)
    assert (patches.dtype, grad.dtype) == (torch.float64, torch.float32)
    explicit = ats.extract_patches_backward(torch.ones_like(patches), origins, image.shape, 3, dtype=torch.float32)
    assert torch.equal(grad, explicit)


@pytest.mark.parametrize("estimator, weights", [*((name, False) for name in ESTIMATORS), ("des_raj", True)])
def test_gradient_of_the_expectation_at_the_features(estimator, weights):
    attention = torch.softmax(make(2, 6, grad=False), 1)[:, :4]
    given = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) if weights else None
    assert gradcheck(
        lambda features: ats.expectation(
            features, attention, estimator=estimator, threshold=make(2, grad=False), weights=given
        ),
        make(2, 4, 3, 2),
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_the_expectation_at_the_attention(estimator):
    """The estimators' own: sum_j M_ij <f_j, g>, the unbiased one, which is not the derivative of the forward pass."""
    attention = torch.softmax(make(2, 6, grad=False), 1)[:, :4].requires_grad_()
    features, threshold, cotangent = make(2, 4, 3), make(2, grad=False), make(2, 3, grad=False, seed=3)
    expected = ats.expectation(features, attention, estimator=estimator, threshold=threshold)
    grads = torch.autograd.grad(expected, (features, attention), cotangent)
    c, m = ats.estimator_arrays(attention, estimator, threshold=threshold)
    torch.testing.assert_close(expected, torch.einsum("bn,bnf->bf", c, features))
    torch.testing.assert_close(grads[0], c[..., None] * cotangent[:, None])
    torch.testing.assert_close(grads[1], torch.einsum("bij,bjf,bf->bi", m, features, cotangent))
    explicit = ats.expectation_backward(cotangent, features, attention, estimator=estimator, threshold=threshold)
    assert all(torch.equal(a, b) for a, b in zip(grads, explicit, strict=True))


# ---- what has no gradient ----


def test_only_what_depends_smoothly_requires_a_gradient():
    draws = ats.sample(make(2, 5), 3, rng=1)
    assert [x.requires_grad for x in draws] == [False, True, False]
    with torch.no_grad():
        assert not ats.sample(make(2, 5), 3, rng=1).attention.requires_grad
    with torch.inference_mode():
        assert not ats.sample(make(2, 5), 3, rng=1).attention.requires_grad
    image = torch.ones(1, 1, 4, dtype=torch.uint8)
    assert not ats.extract_patches(image, origins_in(1, 1, 1, size=3), 2, mean=1.0).requires_grad
    assert not any(x.requires_grad for x in ats.estimator_arrays(make(2, 3), "normalized"))
    features = make(2, 3, 4)
    ats.expectation(features, make(2, 3, grad=False) / 9).sum().backward()
    assert features.grad is not None


def functions():
    origins, features = origins_in(2, 3, 1, size=5), make(2, 3, 2, grad=False)
    yield "sample", lambda x: ats.sample(x, 3, rng=1).attention, make(2, 6)
    yield "topk", lambda x: ats.topk(x, 3).attention, make(2, 6)
    yield "extract_patches", lambda x: ats.extract_patches(x, origins, 3), make(2, 1, 6)
    yield "expectation", lambda x: ats.expectation(features, x, estimator="normalized"), make(2, 3)


FUNCTIONS = [pytest.param(*rest, id=name) for name, *rest in functions()]


@pytest.mark.parametrize("f, x", FUNCTIONS)
def test_double_backward_is_a_clear_error(f, x):
    (grad,) = torch.autograd.grad((f(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"its gradient cannot be differentiated again \(no double backward\)"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.func.jacrev(torch.func.grad(lambda x: (f(x) ** 2).sum()))(x.detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from within PyTorch
@pytest.mark.parametrize("f, x", FUNCTIONS)
def test_forward_mode_is_an_error_and_not_a_zero(f, x):
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        torch.func.jvp(f, (x.detach(),), (torch.ones_like(x),))


# ---- torch.func ----


@pytest.mark.parametrize("f, x", FUNCTIONS)
def test_func_transforms_equal_autograd(f, x):
    plain, many = x.detach(), torch.stack([x.detach() * s for s in (1.0, 1.5, 0.5)])
    loss = lambda x: (f(x) ** 2).sum()
    expected = torch.autograd.grad(loss(x), x)[0]
    torch.testing.assert_close(torch.func.grad(loss)(plain), expected)
    output, pull = torch.func.vjp(f, plain)
    torch.testing.assert_close(pull(2 * output)[0], expected)
    jacobian = torch.autograd.functional.jacobian(f, plain)
    torch.testing.assert_close(torch.func.jacrev(f)(plain), jacobian)
    torch.testing.assert_close(torch.func.jacrev(f, chunk_size=2)(plain), jacobian)
    one_by_one = torch.stack([torch.func.grad(loss)(y) for y in many])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(many), one_by_one)
    torch.testing.assert_close(torch.func.grad(lambda y: torch.func.vmap(loss)(y).sum())(many), one_by_one)
    torch.testing.assert_close(
        torch.func.vmap(f, in_dims=-1, out_dims=1)(many.movedim(0, -1)), torch.stack([*map(f, many)], 1)
    )


@pytest.mark.parametrize("f, x", FUNCTIONS)
def test_nested_levels_see_each_other(f, x):
    """An inner transform must not hide the operation from an outer one."""
    y = torch.rand_like(x) + 0.5

    def outer(x):
        return torch.func.grad_and_value(lambda y: (f(x * y) ** 2).sum())(y)[1]

    expected = torch.func.grad(lambda x: (f(x * y) ** 2).sum())(x.detach())
    torch.testing.assert_close(torch.func.grad(outer)(x.detach()), expected)
    assert expected.abs().max() > 0


def mapped(op, args, which):
    """op under vmap, with the arguments at `which` mapped, and one call after the other."""
    args = list(args)
    for i in which:
        args[i] = torch.stack([args[i], args[i].flip(-1) if args[i].is_floating_point() else args[i]], 1)
    in_dims = tuple(1 if i in which else None for i in range(len(args)))

    def call(*tensors):
        return op(*(tensors[tensor_at[i]] if i in tensor_at else x for i, x in enumerate(args)))

    tensor_at = {i: k for k, i in enumerate(i for i, x in enumerate(args) if isinstance(x, torch.Tensor))}
    dims = tuple(in_dims[i] for i in tensor_at)
    together = torch.func.vmap(call, in_dims=dims)(*(args[i] for i in tensor_at))
    singles = [op(*(x.select(1, k) if i in which else x for i, x in enumerate(args))) for k in range(2)]
    if isinstance(together, torch.Tensor):
        return [(together, torch.stack(singles))]
    return [(a, torch.stack(b)) for a, b in zip(together, zip(*singles, strict=True), strict=True)]


def test_vmap_of_every_operation_is_one_call_after_the_other():
    attention, rng = make(2, 8, grad=False), torch.tensor([1, 2])
    probabilities, indices, _, log_mass = ops.sample(attention, rng, 3, False, False)
    image, origins = make(2, 3, 6, 6, grad=False), origins_in(2, 3, 2, size=5)
    options = ((3, 3), (1, 2), "edge", 0.0, None, None, None, True)
    patches = ops.extract_patches(image, origins, *options)
    features, weights = make(2, 3, 4, grad=False), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    estimate = (features, probabilities, None, weights, "des_raj")
    calls = [
        (ops.sample, (attention, rng, 3, False, False), [(0,), (0, 1)]),
        (ops.topk, (attention, 3, False), [(0,)]),
        (
            ops.sample_backward,
            (make(2, 3, grad=False), attention, indices, probabilities, log_mass, False),
            [(0,), (0, 1)],
        ),
        (ops.locate, (indices, (8,), (8,), (80,), (5,), (0,)), [(0,)]),
        (ops.extract_patches, (image, origins, *options), [(0,), (1,), (0, 1)]),
        (ops.extract_patches_backward, (patches, origins, image.shape, *options), [(0,), (1,), (0, 1)]),
        (ops.expectation, estimate, [(0,), (1,), (0, 1), (3,)]),
        (ops.expectation_backward, (make(2, 4, grad=False), *estimate), [(0,), (1, 2), (4,)]),
        (ops.estimator_arrays, estimate[1:], [(0,), (2,)]),
    ]
    for op, args, choices in calls:
        for which in choices:
            for together, singles in mapped(op, args, which):
                assert torch.equal(together, singles), (op, which)
