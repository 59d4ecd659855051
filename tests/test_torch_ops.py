"""The PyTorch adapter: schemas, fake kernels, layouts, random numbers, errors. (Numbers are compared with the reference
in tests/test_<op>.py, gradients in test_torch_autograd.py.)"""

import concurrent.futures
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode

import ats_core
import ats_core.torch as ats
from ats_core.torch import _ops, _validate

ops = torch.ops.ats
ESTIMATORS = ("iid", "des_raj", "murthy", "horvitz_thompson", "normalized")
PATCH = ((4, 3), (), "constant", 0.5, None, None, None, True)  # options of extract_patches


def make(*shape, dtype=torch.float64, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1).to(dtype).requires_grad_(grad)


def origins_in(*shape, size=8, seed=0):
    return torch.randint(-5, size, shape, generator=torch.Generator().manual_seed(seed))


def cases(dtype=torch.float64, grad=False, batch=2, n=3):
    """(id, operation, arguments): every operation, with and without its options."""
    attention, rng = make(batch, 4, 5, dtype=dtype, grad=grad), torch.tensor([3, 4])
    real = torch.float64 if dtype == torch.float64 else torch.float32
    for replace, logits in itertools.product((False, True), repeat=2):
        yield f"sample-{replace}-{logits}", ops.sample, (attention, rng, n, replace, logits)
    yield "topk", ops.topk, (attention, n, False)
    probabilities, indices, _, log_mass = ops.sample(attention.detach(), rng, n, False, False)
    yield "sample_backward", ops.sample_backward, (
        make(batch, n, dtype=real), attention.detach(), indices, probabilities, log_mass, False
    )  # fmt: skip
    yield "locate", ops.locate, (indices, (4, 5), (8, 10), (80, 90), (7, 6), (1, 0))
    for axes, channels_first, scales in itertools.product((1, 2, 3), (True, False), ((), (2,), (1, 2))):
        if len(scales) == 1 and axes != 2:
            continue
        spatial, patch = (9, 8, 7)[:axes], (3, 2, 4)[:axes]
        shape = (batch, 2, *spatial) if channels_first else (batch, *spatial, 2)
        image, origins = make(*shape, dtype=dtype, grad=grad), origins_in(batch, n, axes)
        options = (patch, scales, "edge", 0.0, None, (0.1, 0.2), (0.5, 2.0), channels_first)
        name = f"{axes}d-{'first' if channels_first else 'last'}-{len(scales)}"
        yield f"extract_patches-{name}", ops.extract_patches, (image, origins, *options)
        grad_shape = ops.extract_patches(image.detach(), origins, *options).shape
        yield f"extract_patches_backward-{name}", ops.extract_patches_backward, (
            make(*grad_shape, dtype=dtype), origins, shape, *options
        )  # fmt: skip
    probability = torch.softmax(make(batch, n + 1, dtype=real), 1)[:, :n].contiguous().requires_grad_(grad)
    for name in ESTIMATORS:
        tail = (make(batch, dtype=real), None if name != "des_raj" else torch.ones(n, dtype=real) / n, name)
        features = make(batch, n, 2, 3, dtype=dtype, grad=grad)
        yield f"expectation-{name}", ops.expectation, (features, probability, *tail)
        yield f"expectation_backward-{name}", ops.expectation_backward, (
            make(batch, 2, 3, dtype=dtype), features.detach(), probability.detach(), *tail
        )  # fmt: skip
        yield f"estimator_arrays-{name}", ops.estimator_arrays, (probability, *tail)


def as_tuple(outputs):
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


CASES = [pytest.param(op, args, id=name) for name, op, args in cases(grad=True)]


@pytest.mark.parametrize("op, args", CASES)
def test_opcheck(op, args):
    torch.library.opcheck(op.default, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch, n", [(2, 3), (0, 3), (1, 1)])
def test_fake_kernels_give_the_real_shapes(dtype, batch, n):
    for name, op, args in cases(dtype, batch=batch, n=n):
        with FakeTensorMode() as mode:
            fakes = as_tuple(op(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in args)))
        reals = as_tuple(op(*args))
        assert len(fakes) == len(reals), name
        for fake, real in zip(fakes, reals, strict=True):
            assert (fake.shape, fake.dtype) == (real.shape, real.dtype), name
            assert fake.stride() == real.stride() or real.numel() == 0, name
            assert real.is_contiguous(), name


@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.int16, torch.uint16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.float64])
def test_fake_patches_have_the_dtype_asked_for(image_dtype, dtype):
    args = (torch.ones(1, 2, 8, 8).to(image_dtype), torch.zeros(1, 3, 2, dtype=torch.int64), (4, 4), (), "edge")
    rest = (0.0, dtype, None, None, True)
    with FakeTensorMode() as mode:
        fake = ops.extract_patches(*map(mode.from_tensor, args[:2]), *args[2:], *rest)
    real = ops.extract_patches(*args, *rest)
    assert fake.dtype == real.dtype == (dtype or image_dtype)


# ---- the same picks ----


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_same_picks_as_numpy(dtype, replace, logits):
    attention = np.random.default_rng(1).gamma(0.3, size=(5, 12, 11)).astype(dtype) + np.asarray(1e-3, dtype)
    for rng in (0, -7, (2**62, 5), (1, -1), np.array([3, 2**63 - 2])):
        ours = ats.sample(
            torch.from_numpy(attention), 9, replace=replace, logits=logits,
            rng=torch.from_numpy(rng) if isinstance(rng, np.ndarray) else rng,
        )  # fmt: skip
        theirs = ats_core.sample(attention, 9, replace=replace, logits=logits, rng=rng)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.numpy(), b)


def test_topk_and_origins_as_numpy():
    attention = np.random.default_rng(1).integers(0, 4, (5, 12, 11)).astype(np.float32)  # many ties
    ours, theirs = ats.topk(torch.from_numpy(attention), 20), ats_core.topk(attention, 20)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)
    grid, image, patch, low = (12, 11), (500, 333), (31, 32), {"low_shape": (60, 50), "receptive_field": 4}
    np.testing.assert_array_equal(
        ats.patch_origins(ours.indices, grid, image, patch, **low).numpy(),
        ats_core.patch_origins(theirs.indices, grid, image, patch, **low),
    )


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_do_not_depend_on_threads(threads):
    attention, rng = torch.rand(9, 300, 200), (5, 6)
    image, features = torch.rand(9, 3, 400, 300), torch.rand(9, 40, 500)
    grad = torch.rand(9, 40, 3, 32, 32)

    def run():
        draws = ats.sample(attention, 40, rng=rng)
        origins = ats.patch_origins(draws.indices, (300, 200), (400, 300), 32)
        yield from draws
        yield from ats.topk(attention, 40)
        yield ats.extract_patches(image, origins, 32, scales=(1, 2))
        yield ats.extract_patches_backward(grad, origins, image.shape, 32)
        yield ats.expectation(features, draws.attention)
        yield from ats.expectation_backward(features[:, 0], features, draws.attention)

    threads(1)
    one = list(run())
    threads(4)
    for a, b in zip(one, run(), strict=True):
        assert torch.equal(a, b)


def test_rows_are_numbered_by_the_offset():
    attention = torch.rand(6, 50)
    whole = ats.sample(attention, 7, rng=(3, 10))
    for b in range(6):
        row = ats.sample(attention[b : b + 1], 7, rng=(3, 10 + b))
        assert torch.equal(row.indices[0], whole.indices[b])
        assert torch.equal(row.threshold[0], whole.threshold[b])


def test_no_rng_follows_manual_seed():
    attention = torch.ones(4, 1000)
    torch.manual_seed(11)
    first, second = ats.sample(attention, 20).indices, ats.sample(attention, 20).indices
    torch.manual_seed(11)
    assert torch.equal(ats.sample(attention, 20).indices, first)
    assert not torch.equal(first, second)
    assert ats.sample(attention, 20, rng=3).indices.tolist() == ats.sample(attention, 20, rng=(3, 0)).indices.tolist()


def test_no_rng_draws_what_randint_draws():
    """In every mode and thread, whichever comes first; compiled programs draw the pair by torch.randint."""
    attention = torch.ones(2, 1000)

    def picks():
        return ats.sample(attention, 20).indices.clone()

    def expected():
        return ats.sample(attention, 20, rng=torch.randint(2**63 - 1, (2,))).indices

    def mapped():
        each = torch.vmap(lambda row: ats.sample(row[None], 20).indices, randomness="same")
        return each(attention[:1])[0]

    def in_mode(mode, function):
        with mode:
            return function()

    def follows(function, rows=2):
        torch.manual_seed(5)
        found = [function(), function()]
        torch.manual_seed(5)
        return all(torch.equal(one, expected()[:rows]) for one in found)

    with concurrent.futures.ThreadPoolExecutor(1) as fresh:  # whose first draw is in inference mode
        assert fresh.submit(follows, lambda: in_mode(torch.inference_mode(), picks)).result()
        assert fresh.submit(follows, picks).result()
    assert follows(picks)
    assert follows(lambda: in_mode(torch.inference_mode(), picks))
    assert follows(lambda: in_mode(torch.device("meta"), picks))
    assert follows(torch.compile(picks, backend="eager"))
    assert follows(mapped, rows=1)
    with FakeTensorMode() as fake:
        assert ats.sample(fake.from_tensor(attention), 20).indices.shape == (2, 20)


@pytest.mark.parametrize(
    "rng",
    [
        7,
        np.int64(7),
        np.uint8(7),
        np.array(7),
        True,
        (7, 2**62),
        np.array([7, 3]),
        [-1, -7],
        torch.tensor(7),
        torch.tensor([7, 3], dtype=torch.int32),
    ],
)
def test_integers_of_any_type_are_seeds(rng):
    pair = (rng, 0) if np.ndim(rng) == 0 else rng
    expected = ats.sample(torch.ones(3, 40), 9, rng=torch.tensor([int(x) for x in pair])).indices
    assert torch.equal(ats.sample(torch.ones(3, 40), 9, rng=rng).indices, expected)


def test_offsets_wrap_around():
    attention = torch.ones(3, 40)
    across = ats.sample(attention, 9, rng=(5, -1)).indices  # offsets 2**64 - 1, 0, 1
    assert torch.equal(across[1:], ats.sample(attention[1:], 9, rng=(5, 0)).indices)


# ---- layouts ----


def layouts(x):
    """The same values in other memory: transposed, with gaps, reversed in order of axes."""
    yield x.transpose(0, -1).contiguous().transpose(0, -1)
    gaps = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
    gaps[..., ::2] = x
    yield gaps[..., ::2]
    yield x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def test_any_layout_gives_the_same():
    for name, op, args in cases(torch.float32, batch=3):
        expected = as_tuple(op(*args))
        for position, x in enumerate(args):
            if not isinstance(x, torch.Tensor) or x.dim() < 2:
                continue
            for other in layouts(x):
                assert torch.equal(other, x)
                given = (*args[:position], other, *args[position + 1 :])
                for a, b in zip(as_tuple(op(*given)), expected, strict=True):
                    assert torch.equal(a, b), (name, position)


def test_channels_last_memory_and_channels_last_format():
    image, origins = torch.rand(2, 3, 30, 20), origins_in(2, 5, 2, size=20)
    expected = ats.extract_patches(image, origins, (8, 6), scales=(1, 3))
    assert expected.shape == (2, 5, 2, 3, 8, 6)
    assert torch.equal(
        ats.extract_patches(image.to(memory_format=torch.channels_last), origins, (8, 6), scales=(1, 3)), expected
    )
    last = ats.extract_patches(image.movedim(1, -1), origins, (8, 6), scales=(1, 3), data_format="channels_last")
    assert torch.equal(last.movedim(-1, 3), expected)
    assert torch.equal(
        torch.from_numpy(
            ats_core.extract_patches(image.movedim(1, -1).numpy(), origins.numpy(), (8, 6), scales=(1, 3))
        ),
        last,
    )


def test_images_are_not_copied():
    image = torch.ones(1, 1, 1, 1).expand(4, 3, 200_000, 200_000)  # 1.9 TB, if anyone made it contiguous
    patches = ats.extract_patches(image, torch.full((4, 2, 2), 100_000), 16)
    assert patches.shape == (4, 2, 3, 16, 16) and bool((patches == 1).all())


def test_expanded_inputs():
    attention, image = torch.rand(1, 30).expand(4, 30), torch.rand(1, 3, 20, 20).expand(4, 3, 20, 20)
    draws = ats.sample(attention, 5, rng=1)
    same = ats.sample(attention.contiguous(), 5, rng=1)
    assert torch.equal(draws.indices, same.indices)
    origins = torch.tensor([3, 4]).expand(4, 5, 2)
    assert torch.equal(
        ats.extract_patches(image, origins, 8), ats.extract_patches(image.contiguous(), origins.contiguous(), 8)
    )


@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
def test_pyramid_is_one_scale_a_level(padding):
    image = torch.rand(2, 3, 64, 48)
    pyramid = [image, torch.nn.functional.avg_pool2d(image, 2), torch.nn.functional.avg_pool2d(image, 4)]
    # (origin + patch / 2) / ratio - patch / 2 whole: no rounding, and the scales see the same pixels
    origins = torch.tensor([[[4, 12], [20, 8]], [[12, 4], [28, 12]]])
    ours = ats.extract_patches(pyramid, origins, (8, 8), padding=padding)
    assert ours.shape == (2, 2, 3, 3, 8, 8)
    if padding == "constant":  # with the others a level sees its own border
        torch.testing.assert_close(ours, ats.extract_patches(image, origins, 8, scales=(1, 2, 4)))
    origins = origins_in(2, 4, 2, size=60)  # now with rounding
    theirs = ats_core.extract_patches(
        [x.numpy() for x in pyramid], origins.numpy(), (7, 8), padding=padding, data_format="channels_first"
    )
    np.testing.assert_array_equal(ats.extract_patches(pyramid, origins, (7, 8), padding=padding).numpy(), theirs)


def test_narrower_integers_and_numpy_sizes():
    image, origins = torch.rand(2, 3, 16, 16), torch.tensor([[[2, 3]], [[3, 8]]])
    expected = ats.extract_patches(image, origins, (4, 4), scales=(1, 2))
    given = ats.extract_patches(image, origins.int(), np.int64(4), scales=np.array([1, 2]))
    assert torch.equal(given, expected)
    indices = torch.tensor([[1, 3]])
    assert torch.equal(
        ats.patch_origins(indices.to(torch.uint8), np.array([2, 2]), (20, np.int32(20)), torch.tensor(3)),
        ats.patch_origins(indices, (2, 2), (20, 20), 3),
    )
    assert ats.patch_origins(indices, np.int64(4), 20, 3).shape == (1, 2, 1)


def test_default_dtype_and_normalisation():
    image = torch.arange(2 * 3 * 16 * 16, dtype=torch.uint8).view(2, 3, 16, 16)
    origins = torch.tensor([[[2, 3]], [[-3, 8]]])
    assert ats.extract_patches(image, origins, 4).dtype == torch.uint8
    for mean, std in ((3.0, 2.0), ((3.0,) * 3, [2.0] * 3), (torch.full((3,), 3.0), torch.tensor(2.0)), (3, None),
                      (torch.full((3, 1, 1), 3.0), np.float32(2)), (np.full(3, 3), [2.0]), (torch.tensor([3]), 2)):  # fmt: skip
        patches = ats.extract_patches(image, origins, 4, mean=mean, std=std)
        plain = ats.extract_patches(image, origins, 4).float()
        assert patches.dtype == torch.float32
        torch.testing.assert_close(patches, (plain - 3.0) / (1.0 if std is None else 2.0))


# ---- errors ----

IMAGE, ORIGINS = np.ones((2, 8, 8, 3), np.float32), np.zeros((2, 3, 2), np.int64)
FEATURES, PROBABILITIES = np.ones((2, 3, 4), np.float32), np.full((2, 3), 0.2, np.float32)
BAD = [  # function, positional arguments, options; NumPy and PyTorch say the same
    ("sample", (np.ones((2, 4), np.int64), 1), {}),
    ("sample", (np.float32(1.0), 1), {}),
    ("sample", (np.ones(4, np.float32), 1), {}),
    ("sample", (np.ones((2, 4), np.float32), 5), {}),
    ("sample", (np.ones((2, 4), np.float32), -1), {}),
    ("sample", (np.array([[1, 2], [3, -1]], np.float32), 1), {}),
    ("sample", (np.array([[1, 2], [np.nan, 1]], np.float32), 1), {}),
    ("sample", (np.array([[0, 1]], np.float64), 2), {}),
    ("sample", (np.array([[np.inf, 1]], np.float64), 2), {"logits": True}),
    ("sample", (np.ones((1, 4), np.float32), 1), {"rng": np.array([1], np.int64)}),
    ("topk", (np.ones((2, 4), np.float32), 5), {}),
    ("patch_origins", (np.array([[20]]), (4, 5), (40, 50), 3), {}),
    ("patch_origins", (np.array([[-1]]), (4, 5), (40, 50), 3), {}),
    ("patch_origins", (np.array([[1]]), (4, 5), (40, 50), 0), {}),
    ("patch_origins", (np.array([[1]]), (4, 5), (40, 50), 3), {"receptive_field": 4}),
    ("patch_origins", (np.array([[1]]), (4, 5), (40, 50), 3), {"low_shape": (4,)}),
    ("extract_patches", (IMAGE, ORIGINS[:1], 4), {}),
    ("extract_patches", (IMAGE, ORIGINS.astype(np.float32), 4), {}),
    ("extract_patches", (IMAGE, ORIGINS, 0), {}),
    ("extract_patches", (IMAGE[0], ORIGINS, 4), {}),
    ("extract_patches", (IMAGE, ORIGINS, 4), {"scales": (0,)}),
    ("extract_patches", (IMAGE, ORIGINS, 4), {"scales": ()}),
    ("extract_patches", (IMAGE, ORIGINS, 4), {"padding": "zeros"}),
    ("extract_patches", (IMAGE, ORIGINS, 4), {"mean": [1.0, 2.0]}),
    ("extract_patches", (IMAGE, ORIGINS, 4), {"std": [1.0, 0.0, 1.0]}),
    ("expectation", (FEATURES, PROBABILITIES[:1]), {}),
    ("expectation", (FEATURES, PROBABILITIES.astype(np.float16)), {}),
    ("expectation", (FEATURES, PROBABILITIES), {"estimator": "best"}),
    ("expectation", (FEATURES, PROBABILITIES), {"estimator": "horvitz_thompson"}),
    ("expectation", (FEATURES, PROBABILITIES), {"weights": np.ones(2, np.float32)}),
    ("estimator_arrays", (PROBABILITIES[0], "murthy"), {}),
]


@pytest.mark.parametrize("name, args, options", BAD)
def test_errors_have_numpy_words(name, args, options):
    def tensor(x):
        return torch.from_numpy(np.asarray(x)) if isinstance(x, (np.ndarray, np.generic)) else x

    with pytest.raises((ValueError, TypeError)) as theirs:
        getattr(ats_core, name)(*args, **options)
    if name == "extract_patches":
        options = {**options, "data_format": "channels_last"}
    with pytest.raises((RuntimeError, ValueError)) as ours:
        getattr(ats, name)(*map(tensor, args), **{key: tensor(value) for key, value in options.items()})
    core, python = (str(error.value) for error in (ours, theirs))
    if re.match(rf"{name}|locate: ", python):
        assert core == python
    else:  # what NumPy's edge finds before the core does, the core has to find as well
        assert python.split(":")[0] in core


def test_validate_changes_nothing_on_the_cpu():
    attention, features = make(2, 20), make(2, 4, 3)
    indices = torch.tensor([[3, 19], [0, 1]])
    calls = [
        (ats.sample, (attention, 4), {"rng": 1}, attention),
        (ats.topk, (attention, 4), {}, attention),
        (ats.patch_origins, (indices, (4, 5), (80, 90), 7), {}, indices),
        (ats.expectation, (features, make(2, 4) / 9), {}, None),
        (ats.estimator_arrays, (make(2, 4) / 9,), {}, None),
    ]
    for function, args, options, spoilt in calls:
        for a, b in zip(
            as_tuple(function(*args, **options)), as_tuple(function(*args, **options, validate=True)), strict=True
        ):
            assert torch.equal(a, b)
        if spoilt is not None:
            spoilt[1, 0] = -1
        else:
            args[-1][1, 0] = float("nan")
        said = set()
        for validate in (False, True):
            with pytest.raises(RuntimeError) as raised:
                function(*args, **options, validate=validate)
            said.add(str(raised.value).splitlines()[0])
        assert len(said) == 1
        if spoilt is attention:
            attention[1, 0] = 1.0


def test_what_validate_asks_the_cpu():
    """It finds on copies what the device could not say, also where there are no features."""
    attention = torch.full((2, 4), 0.1)
    _validate.expectation(attention, None, None, "murthy")
    attention[1, 2] = float("nan")
    with pytest.raises(RuntimeError, match=r"^expectation: attention must hold probabilities .* row 1"):
        _validate.expectation(attention, None, None, "murthy")
    with pytest.raises(RuntimeError, match=r"^sample: attention .*row 1"):
        _validate.draws(
            torch.tensor([0.0, float("nan")]), _ops.sample, attention, torch.tensor([1, 2]), 2, False, False
        )
    indices = torch.tensor([[0, 20]])
    sizes = (4, 5), (4, 5), (4, 5), (1, 1), (0, 0)
    with pytest.raises(RuntimeError, match=r"^locate: indices must lie in"):
        _validate.origins(torch.tensor([[[0, 0], [-(2**63)] * 2]]), indices, *sizes)
    _validate.origins(torch.zeros(1, 2, 2, dtype=torch.int64), indices, *sizes)  # nothing wrong was seen


def test_cuda_tensors_decide_who_computes():
    """Of a mix of devices CUDA's library hears, and names them: the CPU's must not touch memory of a device."""
    keys = [torch._C.DispatchKeySet(torch._C.DispatchKey.__members__[name]) for name in ("CPU", "CUDA")]
    assert (keys[0] | keys[1]).highestPriorityTypeId() == torch._C.DispatchKey.CUDA


def test_raw_operations_check_the_lengths_of_lists():
    indices, image = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, 4, 4)
    with pytest.raises(RuntimeError, match=r"^low_shape: must have 2 values, got 1"):
        ops.locate(indices, (4, 5), (4,), (4, 5), (1, 1), (0, 0))
    with pytest.raises(RuntimeError, match=r"^grid: at most 3 values are taken"):
        ops.locate(indices, (1,) * 4, (1,) * 4, (1,) * 4, (1,) * 4, (0,) * 4)
    with pytest.raises(RuntimeError, match=r"^scales: at most 16 values are taken"):
        ops.extract_patches(image, indices[..., None].expand(1, 1, 2), (2, 2), (1,) * 17, *PATCH[2:])
    with pytest.raises(RuntimeError, match=r"^attention: has 9 axes, at most 8 are taken"):
        ops.topk(torch.ones((1,) * 9), 1, False)
    with pytest.raises(RuntimeError, match=r"^image_shape: must not be negative"):
        ops.extract_patches_backward(image[None], indices[..., None].expand(1, 1, 2), (1, 1, -4, 4), (4, 4), *PATCH[1:])


@pytest.mark.parametrize(
    "before",
    ["sys.modules['torch'] = None", "import torch; torch.__version__ = torch.torch_version.TorchVersion('2.9.1')"],
)
def test_missing_or_old_pytorch_says_what_to_install(before):
    script = f"import sys; {before}\ntry: import ats_core.torch\nexcept ImportError as error: print(error)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ats_core.torch needs PyTorch 2.10 or newer: python -m pip install")
