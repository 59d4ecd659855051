"""The PyTorch operations on CUDA: the same bits as on the CPU, and what only CUDA has: streams, graphs, several devices,
no waiting, and values that nobody checks. (Against the references, tests/test_<op>.py run on CUDA, too.)"""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck
from torch.utils.data import DataLoader, Dataset

import ats_core.torch as ats
from reference import weights_of
from test_torch_autograd import FUNCTIONS
from test_torch_compile import gradients, inputs, pipeline
from test_torch_ops import as_tuple, cases
from test_torch_ops import make as make_on_cpu

ops = torch.ops.ats
ESTIMATORS = ("iid", "des_raj", "murthy", "horvitz_thompson", "normalized")
LONG = 1_000_000_000  # clock cycles: about half a second


@pytest.fixture(autouse=True)
def cuda(cuda_backend):
    return cuda_backend


@pytest.fixture
def second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    return torch.device("cuda", 1)


def place(value, device="cuda"):
    """A tensor, or those in a tuple, on the device, as a leaf; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(place(x, device) for x in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


def make(*shape, grad=False, **options):
    return place(make_on_cpu(*shape, grad=grad, **options))


def assert_same_bits(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    bits = [x.detach().cpu().reshape(-1).view(torch.uint8) for x in (found, expected)]
    assert torch.equal(*bits)


def words_of(function, *args, **options):
    """What a call that must fail says, without the line of the kernel that PyTorch adds."""
    with pytest.raises(RuntimeError) as raised:
        function(*args, **options)
    return str(raised.value).splitlines()[0]


# ---- the same as on the CPU ----

CASES = [pytest.param(name, op, args, id=name) for name, op, args in cases(grad=True)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch, n", [(2, 3), (0, 3), (1, 1)])
def test_every_operation_gives_the_bits_of_the_cpu(dtype, batch, n):
    for name, op, args in cases(dtype, batch=batch, n=n):
        found, expected = as_tuple(op(*place(args))), as_tuple(op(*args))
        for a, b in zip(found, expected, strict=True):
            assert a.is_cuda, name
            if "horvitz" in name:  # the exponential is the machine's
                torch.testing.assert_close(a.cpu(), b, msg=lambda text, name=name: f"{name}: {text}")
            else:
                assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("shape, n", [((9, 7), 3), ((5, 33, 31), 40), ((4, 40_000), 100), ((1, 3_000_001), 500)])
def test_picks_of_every_size(shape, n, dtype, logits):
    weights = torch.from_numpy(weights_of(shape, dtype))
    for replace in (False, True):
        options = {"replace": replace, "logits": logits, "rng": (7, 3)}
        for a, b in zip(ats.sample(weights.cuda(), n, **options), ats.sample(weights, n, **options), strict=True):
            assert_same_bits(a, b)
    for a, b in zip(ats.topk(weights.cuda(), n, logits=logits), ats.topk(weights, n, logits=logits), strict=True):
        assert_same_bits(a, b)


def test_picks_of_a_row_whose_tree_is_larger_than_shared_memory():
    """Level 2 of the tree is in memory too, which begins at 1.6e8 cells."""
    weights = torch.rand((1, 170_000_000), generator=torch.Generator().manual_seed(2))
    for a, b in zip(ats.sample(weights.cuda(), 20, rng=(7, 3)), ats.sample(weights, 20, rng=(7, 3)), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scales", [None, (1, 2, 4)])
@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
def test_patches_of_bytes(data_format, dtype, scales, padding):
    generator = torch.Generator().manual_seed(1)
    shape = (3, 3, 301, 257) if data_format == "channels_first" else (3, 301, 257, 3)
    image = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    origins = torch.randint(-60, 320, (3, 17, 2), generator=generator)
    options = {"scales": scales, "padding": padding, "dtype": dtype, "data_format": data_format}
    if dtype is not None:
        options |= {"mean": (120.0, 127.5, 3.0), "std": 64.0}
    expected = ats.extract_patches(image, origins, (50, 33), **options)
    assert_same_bits(ats.extract_patches(image.cuda(), origins.cuda(), (50, 33), **options), expected)
    strided = torch.stack([image.cuda()] * 2, -1)[..., 1]
    assert_same_bits(ats.extract_patches(strided, origins.cuda(), (50, 33), **options), expected)


def test_where_the_rng_is_does_not_matter():
    attention = make(6, 500)
    expected = ats.sample(attention.cpu(), 20, rng=(3, 4)).indices
    on_device = torch.tensor([3, 4], device="cuda")
    for rng in ((3, 4), torch.tensor([3, 4]), on_device, on_device.int(), np.array([3, 4])):
        assert torch.equal(ats.sample(attention, 20, rng=rng).indices.cpu(), expected)
    assert torch.equal(ats.sample(attention.cpu(), 20, rng=on_device).indices, expected)
    single = torch.tensor(3, device="cuda")
    assert torch.equal(ats.sample(attention, 20, rng=single).indices, ats.sample(attention, 20, rng=3).indices)


def test_no_rng_follows_manual_seed():
    attention = make(4, 1000)
    torch.manual_seed(11)
    first, second = (ats.sample(attention, 20).indices for _ in range(2))
    torch.manual_seed(11)
    assert torch.equal(ats.sample(attention, 20).indices, first) and not torch.equal(first, second)


# ---- PyTorch's own machinery ----


@pytest.mark.parametrize("name, op, args", CASES)
def test_opcheck(name, op, args):
    torch.library.opcheck(op.default, place(args))


@pytest.mark.parametrize("f, x", FUNCTIONS)
def test_functions_of_the_autograd_tests_give_the_cpus_gradients(f, x):
    """They hold origins and features on the CPU: taken along to the device."""
    cells = [cell for cell in f.__closure__ or () if isinstance(cell.cell_contents, torch.Tensor)]
    kept = [cell.cell_contents for cell in cells]
    expected = (f(x).detach(), *torch.autograd.grad((f(x) ** 2).sum(), x))
    try:
        for cell, tensor in zip(cells, kept, strict=True):
            cell.cell_contents = tensor.cuda()
        leaf = place(x)
        found = (f(leaf).detach(), *torch.autograd.grad((f(leaf) ** 2).sum(), leaf))
        loss = lambda x: (f(x) ** 2).sum()
        assert torch.equal(torch.func.grad(loss)(leaf.detach()), found[1])
        many = torch.stack([leaf.detach() * s for s in (1.0, 1.5)])
        mapped = torch.func.vmap(torch.func.grad(loss))(many)
        torch.testing.assert_close(mapped, torch.stack([torch.func.grad(loss)(y) for y in many]))
    finally:
        for cell, tensor in zip(cells, kept, strict=True):
            cell.cell_contents = tensor
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("how", ["sample", "replace", "topk"])
def test_gradcheck_of_the_probabilities(how, logits):
    def probabilities(attention):
        if how == "topk":
            return ats.topk(attention, 5, logits=logits).attention
        return ats.sample(attention, 5, replace=how == "replace", logits=logits, rng=(1, 2)).attention

    assert gradcheck(probabilities, make(2, 3, 4, grad=True))


@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("scales", [None, (1, 2, 3)])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_gradcheck_of_the_patches(padding, scales, axes):
    origins = torch.randint(-4, 6, (1, 2, axes), generator=torch.Generator().manual_seed(0)).cuda()
    options = {"scales": scales, "padding": padding, "fill": 0.3, "std": (0.5, 2.0)}
    image = make(1, 2, *(7, 5, 4)[:axes], grad=True)
    assert gradcheck(lambda image: ats.extract_patches(image, origins, (3, 2, 2)[:axes], **options), image)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck_of_the_expectation_at_the_features(estimator):
    attention, threshold = torch.softmax(make(2, 6), 1)[:, :4], make(2)
    assert gradcheck(
        lambda features: ats.expectation(features, attention, estimator=estimator, threshold=threshold),
        make(2, 4, 3, 2, grad=True),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from within PyTorch
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rng", [(1, 2), "tensor"])
def test_compile_equals_eager(backend, rng):
    rng = torch.tensor([1, 2], device="cuda") if rng == "tensor" else rng
    f = lambda *tensors: pipeline(*tensors, rng=rng)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend=backend)
    for a, b in zip(gradients(compiled, place(inputs())), gradients(f, place(inputs())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # other orders of addition than cuBLAS's


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from within PyTorch
def test_compile_with_graphs_draws_anew():
    """mode="reduce-overhead" records a CUDA graph; rng=None draws from a generator that the graph knows."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ats.sample(x, 20).indices, fullgraph=True, mode="reduce-overhead")
    attention = make(4, 1000)
    found = []
    for _ in range(6):
        torch.compiler.cudagraph_mark_step_begin()
        found.append(compiled(attention).clone())
    for a, b in itertools.combinations(found, 2):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_float32(dtype):
    attention, features = make(2, 30, dtype=dtype), make(2, 4, 5, dtype=dtype)
    with torch.autocast("cuda", dtype):
        draws = ats.sample(attention, 4, rng=1)
        assert draws.attention.dtype == torch.float32
        assert ats.expectation(features, draws.attention).dtype == torch.float32


@pytest.mark.parametrize("inference", ["sample", "topk", "full"])
def test_the_module(inference):
    torch.manual_seed(0)
    look = torch.nn.Sequential(torch.nn.Conv2d(2, 1, 3, padding=1), ats.SampleSoftmax())
    feature = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 64, 4))
    regularizer = ats.MultinomialEntropy(0.1)
    model = ats.AttentionSampling(
        look, feature, 8, 5, inference=inference, attention_regularizer=regularizer, validate=True
    ).cuda()
    low, high = make(3, 2, 6, 5, dtype=torch.float32), make(3, 2, 60, 50, dtype=torch.float32)
    features, _, patches = model(low, high, rng=(5, 6))
    (features.square().sum() + model.regularization).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    features, attention, patches = model.eval()(low, high, rng=(5, 6))
    assert features.is_cuda and features.shape == (3, 4) and patches.shape == (3, 5, 2, 8, 8)
    if inference == "sample":
        seen = model.sampler(attention.cpu(), high.cpu(), low_shape=(6, 5), rng=(5, 6))
        assert_same_bits(patches, seen.patches)
    with pytest.raises(RuntimeError, match="attention"):
        model(low * float("nan"), high)


def test_sampling_on_two_levels():
    """The CPU's draws, wherever the rng is; a row that cannot be drawn from has patches that lie nowhere."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = torch.rand(3, 12, generator=generator), torch.rand(3, 12, 5, 2, generator=generator)

    def draw(device, rng, coarse=coarse):
        maps = fine.to(device)
        rows = torch.arange(3, device=device)[:, None]
        return ats.nested_sample(coarse.to(device), lambda drawn: maps[rows, drawn.indices], 4, 3, rng=rng)

    expected = draw("cpu", (7, -2))
    for rng in ((7, -2), torch.tensor([7, -2]), torch.tensor([7, -2]).cuda()):
        found = draw("cuda", rng)
        for a, b in zip((*found.coarse, *found.fine), (*expected.coarse, *expected.fine), strict=True):
            assert_same_bits(a, b)
    bad = coarse.clone()
    bad[1] = float("nan")
    fine[1] = float("nan")
    found = draw("cuda", 7, bad)
    regions = ats.patch_origins(found.coarse.indices, (3, 4), (96, 128), 32)
    origins = ats.nested_origins(found.fine.indices, (5, 2), regions, 32, 8)
    assert (origins[1].abs() >= 2**61).all() and (origins[[0, 2]].abs() < 200).all()


# ---- streams, graphs, devices ----


def everything(attention, image, weight, rng):
    """The pipeline, forward and backward, and what was drawn: tensors that stay on the device."""
    draws = ats.sample(attention, 4, logits=True, rng=rng)
    return (draws.indices, *gradients(lambda *tensors: pipeline(*tensors, rng=rng), (attention, image, weight)))


def test_work_goes_to_the_current_stream():
    """What the stream has yet to do before the call is seen by the call, and other streams wait for nothing."""
    values = place(inputs())
    expected = everything(*values, (1, 2))
    late = [torch.zeros_like(x).requires_grad_() for x in values]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        with torch.no_grad():
            for x, value in zip(late, values, strict=True):
                x.copy_(value)
        found = everything(*late, (1, 2))
    torch.cuda.default_stream().synchronize()
    assert not stream.query()
    stream.synchronize()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(found[0], expected[0])


def test_nothing_waits():
    """PyTorch raises where it would wait itself; and the calls return while the device is still busy with other work."""
    values = place(inputs())
    on_device = torch.tensor([1, 2], device="cuda")
    calls = [lambda rng=rng: everything(*values, rng) for rng in ((1, 2), None, on_device, torch.tensor([1, 2]))]
    calls.append(lambda: ats.topk(values[0].detach(), 3))
    calls.append(lambda: ats.estimator_arrays(torch.full((3, 4), 0.1, device="cuda")))
    calls.append(lambda: ats.extract_patches([values[1], values[1][..., ::2, ::2]], on_device.expand(2, 1, 2), 3))
    for call in calls:
        call()  # the first of its kind loads code
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG)
        for call in calls:
            call()
        assert not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(function):
    """A CUDA graph of function(), and the tensors that a replay writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs


def test_a_graph_replays_what_was_recorded_on_new_values():
    values, rng = place(inputs()), torch.tensor([1, 2], device="cuda")
    graph, found = capture(lambda: everything(*values, rng))
    for seed in (1, 2, 3):
        with torch.no_grad():
            for x in values:
                x.copy_(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)))
            rng.copy_(torch.tensor([seed, 7]))
        graph.replay()
        torch.cuda.synchronize()
        expected = everything(*values, (seed, 7))
        assert torch.equal(found[0], expected[0])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_graph_without_rng_draws_anew_and_follows_the_seed():
    attention = make(4, 1000)
    graph, draws = capture(lambda: ats.sample(attention, 20))

    def replays():
        torch.manual_seed(5)
        found = []
        for _ in range(3):
            graph.replay()
            found.append(draws.indices.clone())
        return found

    first, again = replays(), replays()
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    for a, b in itertools.combinations(first, 2):
        assert not torch.equal(a, b)


def test_a_graph_with_numbers_as_rng_repeats_itself():
    attention = make(4, 1000)
    graph, draws = capture(lambda: ats.sample(attention, 20, rng=(8, 9)))
    graph.replay()
    assert torch.equal(draws.indices, ats.sample(attention, 20, rng=(8, 9)).indices)


def test_a_device_that_is_not_the_current_one(second_device):
    values = inputs()
    expected = everything(*values, (1, 2))
    found = everything(*place(values, second_device), (1, 2))
    assert torch.cuda.current_device() == 0 and all(x.device == second_device for x in found)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0].cpu(), expected[0])


def test_two_devices_at_once_are_refused(second_device):
    features, attention = make(2, 4, 3), torch.full((2, 4), 0.1, dtype=torch.float64, device=second_device)
    said = words_of(ats.expectation, features, attention)
    assert "attention is on GPU 1" in said or "features is on GPU 0" in said


# ---- what is refused, and what is not looked at ----


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: ats.expectation(make(2, 4, 3), torch.full((2, 4), 0.1, dtype=torch.float64)), "attention|features"),
        (lambda: ats.expectation(make(2, 4, 3).cpu(), make(2, 4) / 9), "attention|features"),
        (lambda: ats.extract_patches(make(1, 2, 9, 9), torch.zeros(1, 1, 2).long(), 3), "origins|image"),
        (lambda: ats.extract_patches(make(1, 2, 9, 9).cpu(), torch.zeros(1, 1, 2).long().cuda(), 3), "origins|image"),
        (lambda: ops.sample(make(2, 9).cpu(), torch.tensor([1, 2]).cuda(), 2, False, False), "rng|attention"),
    ],
)
def test_a_mix_of_devices_is_named(call, names):
    said = words_of(call)
    assert "is on the CPU" in said and "is on GPU 0" in said
    assert all(name in said for name in names.split("|"))


BAD_ROWS = {"NaN": float("nan"), "negative": -1.0, "infinite": float("inf")}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("cells", [9, 5000])
def test_a_row_that_cannot_be_drawn_from(bad, cells):
    attention = make_on_cpu(4, cells, dtype=torch.float32)
    good = attention.clone()
    attention[2, 5] = bad
    on_device = attention.cuda().requires_grad_()
    for draw in (lambda x, **more: ats.sample(x, 3, rng=(1, 2), **more), lambda x, **more: ats.topk(x, 3, **more)):
        found, expected = draw(on_device), draw(good)
        assert (found.indices[2] == -1).all() and (found.attention[2] == 0).all() and found.threshold[2].isnan()
        for a, b in zip(found, expected, strict=True):
            for row in (0, 1, 3):
                assert_same_bits(a[row], b[row])
        assert words_of(draw, on_device, validate=True) == words_of(draw, attention)
        draw(good.cuda(), validate=True)
    found.attention.sum().backward()  # touches nothing that it should not
    assert on_device.grad[[0, 1, 3]].isfinite().all()


def test_too_few_cells():
    attention = torch.ones(3, 40)
    attention[1, 7:] = 0
    found = ats.sample(attention.cuda(), 8, rng=1)
    assert (found.indices.cpu() == -1).all(1).tolist() == [False, True, False]
    said = words_of(ats.sample, attention.cuda(), 8, rng=1, validate=True)
    assert said == words_of(ats.sample, attention, 8, rng=1)


def test_what_is_no_cell_lies_nowhere():
    indices = torch.tensor([[3, -1, 24, 2**40]])
    arguments = (4, 6), (100, 90), (9, 9)
    origins = ats.patch_origins(indices.cuda(), *arguments)
    assert torch.equal(origins[0, 0].cpu(), ats.patch_origins(indices[:, :1], *arguments)[0, 0])
    assert (origins[0, 1:] == -(2**63)).all()
    for padding in ("constant", "edge", "reflect"):
        patches = ats.extract_patches(make(1, 2, 100, 90), origins, (9, 9), padding=padding, fill=0.25)
        assert patches.isfinite().all()
        if padding == "constant":
            assert (patches[0, 1:] == 0.25).all()
    said = words_of(ats.patch_origins, indices.cuda(), *arguments, validate=True)
    assert said == words_of(ats.patch_origins, indices, *arguments)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_attention_that_no_estimator_takes(estimator):
    attention = torch.softmax(make_on_cpu(4, 6, dtype=torch.float32), 1)[:, :4].contiguous()
    features, threshold = make_on_cpu(4, 4, 3, dtype=torch.float32), torch.full((4,), 0.5)
    expected = ats.expectation(features, attention, estimator=estimator, threshold=threshold)
    attention[1, 2] = float("nan")
    rows = [0, 2, 3]
    if estimator == "horvitz_thompson":
        threshold[3] = -1.0
        rows = [0, 2]
    tensors = place((features, attention, threshold))

    def estimate(features, attention, threshold, **more):
        return ats.expectation(features, attention, estimator=estimator, threshold=threshold, **more)

    found = estimate(*tensors).cpu()
    torch.testing.assert_close(found[rows], expected[rows])
    assert found[[row for row in range(4) if row not in rows]].isnan().all()
    assert words_of(estimate, *tensors, validate=True) == words_of(estimate, features, attention, threshold)
    said = words_of(ats.estimator_arrays, tensors[1], estimator, threshold=tensors[2], validate=True)
    assert said == words_of(ats.estimator_arrays, attention, estimator, threshold=threshold)


def test_weights_are_checked_with_validate():
    attention, weights = torch.full((2, 4), 0.1), torch.ones(4)
    arguments = {"estimator": "des_raj", "weights": weights.cuda()}
    ats.expectation(make(2, 4, 3), attention.cuda(), **arguments)
    with pytest.raises(RuntimeError, match="weights must sum to 1"):
        ats.expectation(make(2, 4, 3), attention.cuda(), **arguments, validate=True)


# ---- loading data in other processes ----


class Patches(Dataset):
    """Cut on the CPU, in a worker."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        image = torch.arange(3 * 40 * 40, dtype=torch.float32).reshape(1, 3, 40, 40) + i
        indices = ats.sample(image[:, 0], 5, rng=(1, i)).indices
        return ats.extract_patches(image, ats.patch_origins(indices, (40, 40), (40, 40), 8), 8)[0]


def test_a_loader_with_workers():
    """By spawn: a CUDA context does not survive fork()."""
    loader = DataLoader(Patches(), batch_size=2, num_workers=2, multiprocessing_context="spawn", pin_memory=True)
    batches = [batch.cuda(non_blocking=True) for batch in loader]
    expected = torch.stack([Patches()[i] for i in range(4)])
    assert torch.equal(torch.cat(batches).cpu(), expected)
