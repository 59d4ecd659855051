"""The PyTorch monitor: what it writes is true, training does not notice it, and it warns when it should."""

import copy
import io
import itertools
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("PIL.Image", "matplotlib", "tensorboard"):
    pytest.importorskip(package)

from torch import nn

import ats_core.torch as ats
from ats_core.diagnostics import AttentionCollapseWarning
from ats_core.sources import SourceBatch
from ats_core.torch.monitor import AttentionMonitor


def lines(folder):
    return [json.loads(line) for line in (folder / "statistics.jsonl").read_text().splitlines()]


def watch(model, folder, **options):
    """A monitor that draws one image only: quicker."""
    return AttentionMonitor(model, folder, **{"images": 1, **options})


class Noisy(nn.Module):
    """Everything that a look could disturb: random numbers, buffers that change in any mode, moving means."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, patches):
        self.calls += 1
        features = self.layers(patches)
        return features + 0.1 * torch.randn_like(features)


def network(seed=0, feature=None, attention=None, **options):
    torch.manual_seed(seed)
    attention = attention or nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), ats.SampleSoftmax())
    options = {"patch_size": 12, "n_patches": 4, "attention_regularizer": ats.MultinomialEntropy(0.1), **options}
    return ats.AttentionSampling(attention, feature or Noisy(), **options)


class Classifier(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.sampling = network(seed)
        self.head = nn.Linear(6, 2)

    def forward(self, x_low, x_high):
        return self.head(self.sampling(x_low, x_high).features)


def images(batch=3, seed=0):
    x_high = torch.rand(batch, 1, 60, 80, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(x_high, 10), x_high


class Fixed(nn.Module):
    """Attention that is the same for every image."""

    def __init__(self, attention):
        super().__init__()
        self.register_buffer("map", torch.as_tensor(attention, dtype=torch.float32))

    def forward(self, x_low):
        return self.map.expand(len(x_low), *self.map.shape)


# ---- training does not notice ----


def train(monitor, autocast, steps=5):
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    context = monitor(model)
    states = []
    for step in range(steps):
        x_low, x_high = images(seed=step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x_low, x_high).float(), torch.tensor([0, 1, 0]))
            # a second pass after the look, under the same autocast, whose cache must not hold weights without gradient
            loss = loss + model(x_low, x_high).float().square().mean() + model.sampling.regularization
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert model.training and all(module.training for module in model.modules())
        states.append((loss.detach(), torch.random.get_rng_state()))
    if context is not None:
        context.remove()
    return model.state_dict(), states


@pytest.mark.parametrize("autocast", [False, True])
def test_training_is_the_same_bit_by_bit(tmp_path, autocast):
    alone, alone_states = train(lambda model: None, autocast)
    watched, watched_states = train(lambda model: watch(model, tmp_path, every=1), autocast)
    assert len(lines(tmp_path)) == 10
    for (loss, rng), (watched_loss, watched_rng) in zip(alone_states, watched_states, strict=True):
        assert torch.equal(loss, watched_loss)
        assert torch.equal(rng, watched_rng)
    assert alone.keys() == watched.keys()
    for name, value in alone.items():
        assert torch.equal(value, watched[name]), name


def test_modes_and_regularization_stay(tmp_path):
    model = network()
    model.feature.layers[1].eval()  # a frozen layer stays frozen, the others in training
    modes = [module.training for module in model.modules()]
    with watch(model, tmp_path, every=1):
        output = model(*images())
    assert [module.training for module in model.modules()] == modes
    assert model.regularization.requires_grad
    (output.features.sum() + model.regularization).backward()
    assert all(parameter.grad is not None for parameter in model.attention.parameters())


class Two(nn.Module):
    """Another layer in eval mode."""

    def __init__(self):
        super().__init__()
        self.training_layer, self.eval_layer = nn.Linear(144, 2, bias=False), nn.Linear(144, 2, bias=False)
        self.with_gradient = []

    def forward(self, patches):
        self.with_gradient.append(torch.is_grad_enabled())
        return (self.training_layer if self.training else self.eval_layer)(patches.flatten(1))


def test_weights_first_seen_by_the_monitor_keep_their_gradient(tmp_path):
    """Autocast keeps casts of weights until it ends: those made without a gradient would be used in training."""
    model = network(feature=Two())
    with watch(model, tmp_path), torch.autocast("cpu", torch.bfloat16):
        model(*images())
        model.feature.eval_layer(torch.ones(1, 144)).sum().backward()
    assert model.feature.eval_layer.weight.grad is not None
    assert model.feature.with_gradient == [True] + [False] * 8


def test_a_look_draws_the_same_whatever_the_seed(tmp_path):
    model = network(feature=Two())
    for seed in (1, 2):
        with watch(model, tmp_path / str(seed)):
            torch.manual_seed(seed)
            model(*images())
    assert lines(tmp_path / "1") == lines(tmp_path / "2")


def test_a_look_has_random_numbers_of_its_own(tmp_path):
    """No stream (seed, offset + row) twice, and none with a seed that a caller, or PyTorch's generator, would give."""
    model, rngs = network(), []
    with watch(model, tmp_path, every=1, images=2):
        model.sampler.register_forward_pre_hook(
            lambda module, args, kwargs: rngs.append(kwargs.get("rng")), with_kwargs=True
        )
        for step in range(3):
            model(*images(), rng=step)
    looks = [rng for rng in rngs if rng not in (0, 1, 2)]
    assert len(looks) == 3 * 8  # looks, draws
    assert all(seed < 0 for seed, _ in looks)
    assert len({(seed, offset + row) for seed, offset in looks for row in range(2)}) == 2 * len(looks)


# ---- what is written ----


def test_steps_files_and_resuming(tmp_path):
    model = network()
    with watch(model, tmp_path, every=3):
        for _ in range(5):
            model(*images())
        model.eval()
        model(*images())  # not counted
        model.train()
        for _ in range(2):
            model(*images())
    model(*images())  # not watched any more
    assert [line["step"] for line in lines(tmp_path)] == [0, 3, 6]
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {f"{kind}_{step:07d}.png" for kind in ("overlay", "patches") for step in (0, 3, 6)}
    with watch(model, tmp_path, every=3):
        for _ in range(3):
            model(*images())
    assert [line["step"] for line in lines(tmp_path)] == [0, 3, 6, 9]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_tensorboard_reads_it(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = network()
    with watch(model, tmp_path, images=2):
        model(*images())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (line,) = lines(tmp_path)
    tags = events.Tags()
    assert set(tags["scalars"]) == {f"attention/{name}" for name in line if name != "step"}
    for tag in tags["scalars"]:
        assert events.Scalars(tag)[0].value == pytest.approx(line[tag.removeprefix("attention/")], rel=1e-6)
    assert set(tags["images"]) == {"attention/overlay", "attention/patches"}
    with Image.open(tmp_path / "overlay_0000000.png") as image:
        shown = np.asarray(image)
    with Image.open(io.BytesIO(events.Images("attention/overlay")[0].encoded_image_string)) as image:
        assert np.array_equal(np.asarray(image), shown)
    assert shown.shape[1] == 2 * 512 + 8  # two images


def test_the_numbers_are_those_of_the_batch(tmp_path):
    attention = torch.rand(6, 8)
    model = network(attention=Fixed(attention))
    with watch(model, tmp_path):
        model(*images())
    (line,) = lines(tmp_path)
    a = (attention / attention.sum()).double()
    entropy = float(-(a * a.log()).sum())
    assert line["entropy"] == pytest.approx(entropy, rel=1e-6)
    assert line["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-6)
    assert line["border_share"] == pytest.approx(1 - float(a[1:-1, 1:-1].sum()), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"estimator": "des_raj"}, {"estimator": "horvitz_thompson"},
                                     {"estimator": "iid", "replace": True}], ids=str)  # fmt: skip
def test_the_variance_is_that_of_all_draws(tmp_path, options):
    """400 estimates of one image with 4 cells, against every ordered draw: within 5 standard errors, a false alarm in
    1.7e6; the monitor's random numbers are fixed."""
    draws = 400
    weights = np.array([0.5, 0.25, 0.15, 0.1])
    feature = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model = network(feature=feature, attention=Fixed(weights.reshape(2, 2)), patch_size=8, n_patches=2, **options)
    x_high = images(batch=1)[1][:, :, :16, :16]
    model.feature[1].weight.data *= 20.0
    with watch(model, tmp_path, draws=draws):
        model(x_high[:, :, ::8, ::8], x_high)
    (line,) = lines(tmp_path)
    with torch.no_grad():
        cells = torch.stack([feature(x_high[:, :, y : y + 8, x : x + 8])[0] for y in (0, 8) for x in (0, 8)]).double()
    mean = weights @ cells.numpy()
    if options.get("estimator") == "horvitz_thompson":  # depends on the threshold too: not a finite sum
        samples = ats.sample(torch.tensor(weights).expand(200_000, 4), 2, rng=5)
        estimates = ats.expectation(cells[samples.indices], samples.attention, threshold=samples.threshold, **options)
        squares = ((estimates.numpy() - mean) ** 2).sum(1)
        probabilities = np.full(len(squares), 1 / len(squares))
    else:
        replace = options.get("replace", False)
        pick = itertools.product(range(4), repeat=2) if replace else itertools.permutations(range(4), 2)
        pick = torch.tensor(list(pick))
        probabilities = np.array([weights[i] * weights[j] / (1 if replace else 1 - weights[i]) for i, j in pick])
        estimates = ats.expectation(
            cells[pick], torch.tensor(weights)[pick], estimator=options.get("estimator", "murthy")
        )
        squares = ((estimates.numpy() - mean) ** 2).sum(1)
    variance = probabilities @ squares
    error = math.sqrt(probabilities @ (squares - variance) ** 2 / draws)
    assert abs(line["variance"] - variance) < 5 * error
    assert line["relative_variance"] > 0.0


def test_noise_of_the_network_is_not_the_estimators(tmp_path):
    feature = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 2))
    model = network(feature=feature, attention=Fixed(torch.ones(6, 8)), padding="edge")
    x_high = torch.ones(2, 1, 60, 80)
    with watch(model, tmp_path):
        model(x_high[:, :, ::10, ::10], x_high)
    assert lines(tmp_path)[0]["relative_variance"] < 1e-10  # float32's rounding: all patches are alike


def test_features_that_overflow_do_not_end_a_training(tmp_path):
    model = network(feature=nn.Sequential(nn.Flatten(), nn.Linear(144, 2)))
    model.feature[1].weight.data.fill_(1e38)
    with watch(model, tmp_path):
        model(*images())
    (line,) = lines(tmp_path)
    assert line["variance"] is None and line["entropy"] > 0.0


def test_effective_sample_size_of_equal_cells(tmp_path):
    model = network(attention=Fixed(torch.ones(6, 8)))
    with watch(model, tmp_path):
        model(*images())
    assert lines(tmp_path)[0]["effective_sample_size"] == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_rank_scale_and_dtype(tmp_path, axes):
    shape = (64, 48, 32)[:axes]
    conv, pool = ((nn.Conv1d, nn.AdaptiveAvgPool1d), (nn.Conv2d, nn.AdaptiveAvgPool2d), (nn.Conv3d, nn.AdaptiveAvgPool3d))[axes - 1]  # fmt: skip
    attention = nn.Sequential(conv(2, 1, 3), ats.SampleSoftmax())
    feature = nn.Sequential(conv(4, 3, 3), pool(1), nn.Flatten())
    model = network(feature=feature, attention=attention, patch_size=8, n_patches=2, scales=(1, 2), receptive_field=2,
                    mean=127.0, std=64.0)  # fmt: skip
    x_high = torch.randint(0, 255, (2, 2, *shape), dtype=torch.uint8)
    x_low = x_high[(..., *[slice(None, None, 8)] * axes)].float()
    with watch(model, tmp_path, draws=2):
        model(x_low=x_low, x_high=x_high)
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_a_pyramid(tmp_path):
    feature = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x_low, x_high = images()
    model = network(feature=feature)
    with watch(model, tmp_path):
        model(x_low, [x_high, nn.functional.avg_pool2d(x_high, 2)])
    assert len(lines(tmp_path)) == 1


# ---- sources ----


def picture(path):
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def saved(folder, shapes, factor=4):
    """Images of blocks, which are their thumbnails enlarged, in files; and the thumbnails."""
    paths, lows = [], []
    for seed, shape in enumerate(shapes):
        low = np.random.default_rng(seed).integers(0, 256, (*(size // factor for size in shape), 3), np.uint8)
        paths.append(folder / f"{seed}.npy")
        np.save(paths[-1], low.repeat(factor, 0).repeat(factor, 1))
        lows.append(low)
    return paths, lows


def seeing(field=0, seed=0, **options):
    """Attention that is smooth, and features of three channels."""
    torch.manual_seed(seed)
    kernel = 5 if field else 3
    attention = nn.Sequential(
        ats.Normalize(127.0, 60.0), nn.Conv2d(3, 1, kernel, padding=0 if field else 1), ats.SampleSoftmax()
    )
    feature = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    options = {"patch_size": 12, "n_patches": 4, "mean": 127.0, "std": 60.0, "receptive_field": field, **options}
    return ats.AttentionSampling(attention, feature, **options)


@pytest.mark.parametrize("field", [0, 4])
def test_sources_look_as_in_memory(tmp_path, field):
    """Enlarged, a thumbnail is the image, so that every picture and number is the same."""
    paths, lows = saved(tmp_path, [(64, 96)] * 3)
    x_low = torch.from_numpy(np.stack(lows)).movedim(-1, 1)
    x_high = torch.from_numpy(np.stack([np.load(path) for path in paths])).movedim(-1, 1)
    with SourceBatch(paths) as sources:
        for name, images in (("memory", x_high), ("files", sources)):
            model = seeing(field)
            with watch(model, tmp_path / name, images=2):
                model(x_low, images, rng=1)
    assert lines(tmp_path / "memory") == lines(tmp_path / "files")
    for kind in ("overlay", "patches"):
        pictures = [picture(tmp_path / name / f"{kind}_0000000.png") for name in ("memory", "files")]
        np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("field", [0, 4])
def test_padding_of_thumbnails_is_not_shown(tmp_path, field):
    """All cells of the first source are drawn: a batch with a larger one shows what it shows alone."""
    paths, lows = saved(tmp_path, [(64, 40), (96, 80)])
    cells = (16 - field) * (10 - field)
    expected = []
    for name, chosen in (("alone", paths[:1]), ("other", paths[1:]), ("both", paths)):
        torch.manual_seed(0)
        model = seeing(field, n_patches=cells)
        with SourceBatch(chosen) as sources, watch(model, tmp_path / name, draws=2):
            low, shapes, _ = sources.thumbnails(downsample=4, fill=99)
            assert [list(shape) for shape in shapes] == [list(lows[paths.index(path)].shape[:2]) for path in chosen]
            model(torch.from_numpy(low).movedim(-1, 1), sources, low_shapes=torch.from_numpy(shapes))
        expected.append(lines(tmp_path / name)[0])
    for key in ("border_share", "uniform_border_share", "largest_share"):
        # The network sees the padding from the border cells; what depends on the number of cells does not.
        rel = 1e-9 if key == "uniform_border_share" or field else 0.1
        assert expected[2][key] == pytest.approx((expected[0][key] + expected[1][key]) / 2, rel=rel or None, abs=1e-6)
    alone, both = (picture(tmp_path / name / "overlay_0000000.png") for name in ("alone", "both"))
    assert alone.shape == both.shape
    if field:  # then the attention of the cells that are left is the same
        assert np.abs(alone - both).max() <= 2


def train_on_sources(paths, folder=None):
    model = seeing()
    head = nn.Linear(6, 2)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.01)
    monitor = None if folder is None else watch(model, folder, every=1, images=2)
    with SourceBatch(paths) as sources:
        low, shapes, _ = sources.thumbnails(16)
        for _ in range(3):
            output = model(torch.from_numpy(low).movedim(-1, 1), sources, low_shapes=torch.from_numpy(shapes))
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(output.features), torch.tensor([0, 1, 0])).backward()
            optimizer.step()
    if monitor is not None:
        monitor.remove()
    return [*parameters, *model.buffers(), torch.random.get_rng_state()]


def test_training_on_sources_is_the_same_bit_by_bit(tmp_path):
    paths, _ = saved(tmp_path, [(64, 40), (96, 80), (40, 96)])
    alone, watched = train_on_sources(paths), train_on_sources(paths, tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 3
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))


# ---- warnings ----


def warned(model, folder, **options):
    with warnings.catch_warnings(record=True) as caught, watch(model, folder, every=1, **options):
        warnings.simplefilter("always")
        for step in range(4):
            model(*images(batch=8, seed=step))
    assert all(one.category is AttentionCollapseWarning for one in caught)
    return [str(one.message) for one in caught]


def test_a_collapse_onto_a_cell_is_told_once(tmp_path):
    attention = torch.full((12, 12), 1e-4)
    attention[5, 7] = 1.0
    (message,) = warned(network(attention=Fixed(attention)), tmp_path)
    assert "single cells" in message and "step 1" in message  # 16 images are two batches
    assert "entropy" in message and "learning rate" in message and "smooth" in message


def test_a_collapse_onto_the_edge_is_told_once(tmp_path):
    attention = torch.full((12, 12), 1e-4)
    attention[0] = 1.0
    (message,) = warned(network(attention=Fixed(attention)), tmp_path)
    assert "edge" in message


def test_a_warning_can_be_an_error(tmp_path):
    attention = torch.full((12, 12), 1e-4)
    attention[0] = 1.0
    model = network(attention=Fixed(attention))
    with watch(model, tmp_path), pytest.raises(AttentionCollapseWarning):
        model(*images(batch=16))


def test_healthy_attention_is_no_collapse(tmp_path):
    assert warned(network(), tmp_path) == []
    few = torch.full((12, 12), 1e-4)
    few[3:6, 4:6] = 1.0
    assert warned(network(attention=Fixed(few)), tmp_path / "few") == []
    assert warned(network(attention=Fixed(torch.eye(2) + 0.5)), tmp_path / "tiny") == []


# ---- attaching ----


def test_several_modules_have_folders_of_their_own(tmp_path):
    model = nn.ModuleDict({"coarse": network(), "fine": nn.ModuleList([network(1)])})
    with watch(model, tmp_path):
        for module in (model["coarse"], model["fine"][0]):
            module(*images())
    assert len(lines(tmp_path / "coarse")) == len(lines(tmp_path / "fine.0")) == 1


def test_copies_and_pickles_are_not_watched(tmp_path):
    model = network()
    with watch(model, tmp_path):
        other = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        other(*images())
        buffer.seek(0)
        torch.load(buffer, weights_only=False)(*images())
    assert not (tmp_path / "statistics.jsonl").exists()


def test_a_replica_is_watched(tmp_path):
    model = network()
    with watch(model, tmp_path):
        replica = model._replicate_for_data_parallel()  # what DataParallel calls in threads; on the model's device
        replica.attention, replica.feature, replica.sampler = model.attention, model.feature, model.sampler
        replica(*images())
    assert len(lines(tmp_path)) == 1


def compiled(model, **options):
    torch._dynamo.reset()
    return torch.compile(model, backend="eager", **options)


@pytest.mark.parametrize("attach", ["inside", "outside", "late"])
def test_a_compiled_module_is_watched(tmp_path, attach):
    model = network()
    wrapped = compiled(model, fullgraph=True)
    if attach == "late":
        wrapped(*images())
    with watch(wrapped if attach == "outside" else model, tmp_path, every=1):
        wrapped(*images())
        wrapped(*images())
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's, after any graph break
def test_in_a_larger_compiled_model_it_breaks_the_graph(tmp_path):
    model = Classifier()
    with watch(model, tmp_path, every=1):
        compiled(model)(*images())
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(model, fullgraph=True)(*images())
    assert [line["step"] for line in lines(tmp_path)] == [0]


RANK = """
import sys
import torch
from torch import nn
import torch.distributed as dist
import ats_core.torch as ats
from ats_core.torch.monitor import AttentionMonitor

rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
attention = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), ats.SampleSoftmax())
feature = nn.Sequential(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
model = nn.parallel.DistributedDataParallel(ats.AttentionSampling(attention, feature, 12, 4))
with AttentionMonitor(model, folder, every=2):
    for step in range(4):
        x = torch.rand(2, 1, 60, 60)
        model(nn.functional.avg_pool2d(x, 10), x)[0].sum().backward()
dist.barrier()
dist.destroy_process_group()
"""


def test_of_two_processes_the_first_writes(tmp_path):
    command = [sys.executable, "-c", RANK]
    folder = tmp_path / "run"
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(folder)]) for rank in (0, 1)]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    assert [line["step"] for line in lines(folder)] == [0, 2]
    assert len(list(folder.glob("*.png"))) == 4
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    "module, options, error, name",
    [
        (nn.Linear(1, 1), {}, ValueError, "module"),
        (lambda x: x, {}, TypeError, "module"),
        (None, {"every": 0}, ValueError, "every"),
        (None, {"images": 0}, ValueError, "images"),
        (None, {"draws": 1}, ValueError, "draws"),
        (None, {"draws": 2.5}, TypeError, "draws"),
        (None, {"edge": 2.0}, ValueError, "edge"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, module, options, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        watch(network() if module is None else module, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
