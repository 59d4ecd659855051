"""The PyTorch modules over sources: the same as over arrays in memory, and over each source alone."""

import itertools
import multiprocessing
import pickle
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.utils.data import DataLoader

import ats_core.torch as ats
from ats_core.sources import SourceBatch, SourceError, handles, open_source
from sources_files import pixels
from test_sources_batch import Tiled
from test_sources_read import open_files
from test_torch_modules import CONV, Features


def network(axes=2, channels=3, stacked=1, n_patches=5, patch_size=8, seed=0, smooth=0.0, **options):
    torch.manual_seed(seed)
    attention = nn.Sequential(CONV[axes](channels, 1, 4, stride=4), ats.SampleSoftmax(smooth))
    return ats.AttentionSampling(attention, Features(channels * stacked), patch_size, n_patches, **options)


def level(image, factor):
    """Every factor-th pixel."""
    return image[tuple(slice(None, None, factor) for _ in image.shape[:-1])]


def thumbnails(images, factor):
    """Padded with noise: it must not matter."""
    parts = [level(image, factor).astype(np.float32) / 255 for image in images]
    shapes = np.array([part.shape[:-1] for part in parts])
    low = np.random.default_rng(1).random((len(parts), *shapes.max(0), images[0].shape[-1]), np.float32)
    for out, part in zip(low, parts, strict=True):
        out[tuple(slice(size) for size in part.shape[:-1])] = part
    return torch.from_numpy(np.moveaxis(low, -1, 1).copy()), torch.from_numpy(shapes)


def to_tensor(images):
    return torch.from_numpy(np.stack([np.moveaxis(image, -1, 0) for image in images]))


def run(model, *args, **options):
    """Features, attention, patches and the gradients of both networks."""
    model.zero_grad()
    out = model(*args, **options)
    (out.features.double() * torch.arange(1, out.features.shape[1] + 1)).square().sum().backward()
    return [*out, *(parameter.grad for parameter in model.parameters())]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# ---- the same as in memory ----


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("normalised", [False, True])
def test_equal_sizes_are_the_arrays_in_memory(axes, padding, normalised):
    shape = (128, 96, 32)[:axes]
    options = {"padding": padding, "fill": 7.3, "receptive_field": 3}
    options |= {"mean": (100.0, 3.0), "std": (50.0, 0.7)} if normalised else {"dtype": torch.float32}
    images = [pixels((*shape, 2), seed=seed) for seed in range(3)]
    low, shapes = thumbnails(images, 4)
    model = network(axes, 2, patch_size=24, **options)
    expected = run(model, low, to_tensor(images), rng=3)
    with SourceBatch([Tiled([image], (16,) * axes).source() for image in images]) as sources:
        assert_equal(run(model, low, sources, rng=3), expected)
        assert_equal(run(model, low, sources, rng=3, low_shapes=shapes), expected)
        model.eval()
        for model.inference in ("sample", "topk", "full"):
            assert_equal(model(low, sources, rng=3), model(low, to_tensor(images), rng=3))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float32", "float64"])
def test_every_dtype_is_converted_as_in_memory(dtype):
    images = [pixels((40, 50, 2), dtype, seed=seed) for seed in range(2)]
    origins = torch.tensor([[[-5, 3], [30, 45], [7, -9]], [[0, 0], [90, 90], [-20, 20]]])
    for to, data_format in itertools.product(
        (None, torch.float32, torch.float16, torch.bfloat16), ("channels_first", "channels_last")
    ):
        for fill in (0.0, 0.1, -3.0, 1e6):
            options = {"dtype": to, "fill": fill, "mean": (1.0, 2.0), "std": 3.0, "data_format": data_format}
            whole = to_tensor(images)
            whole = whole if data_format == "channels_first" else whole.movedim(1, -1)
            expected = ats.extract_patches(whole, origins, (12, 9), **options)
            with SourceBatch(images) as sources:
                found = ats.extract_patches(sources, origins, (12, 9), **options)
            assert found.is_contiguous()
            assert_equal([found], [expected])


def test_scales_are_levels():
    pyramids = [
        [level(image, factor) for factor in (1, 4, 16)] for image in (pixels((320, 192, 3), seed=s) for s in (0, 1))
    ]
    low, _ = thumbnails([pyramid[0] for pyramid in pyramids], 8)
    options = {"padding": "reflect", "dtype": torch.float32, "patch_size": 16}
    expected = run(
        network(stacked=3, **options), low, [to_tensor(levels) for levels in zip(*pyramids, strict=True)], rng=1
    )
    # One of them has a level more, which is not read.
    more = [pyramids[1][0], level(pyramids[1][0], 2), *pyramids[1][1:]]
    with SourceBatch([Tiled(levels, (32, 32)).source() for levels in (pyramids[0], more)]) as sources:
        assert sources.levels_of((1, 4, 16)).tolist() == [[0, 1, 2], [0, 2, 3]]
        assert_equal(run(network(stacked=3, scales=(1, 4, 16), **options), low, sources, rng=1), expected)
        fill = ats.extract_patches(
            sources, torch.full((2, 1, 2), -9), 16, scales=(4, 16), fill=0.5, dtype=torch.float32
        )
        whole = [to_tensor(levels) for levels in zip(*pyramids, strict=True)]
        origins = torch.full((2, 1, 2), -9)
        assert torch.equal(fill, ats.extract_patches(whole, origins, 16, fill=0.5, dtype=torch.float32)[:, :, 1:])
        with pytest.raises(
            ValueError, match=r"scales: tiled has no level with downsample 2, but levels with 1 x 1, 4 x 4, 16 x 16$"
        ):
            sources.read_patches(np.zeros((2, 1, 2), int), 4, scales=(1, 2))
        with pytest.raises(ValueError, match="levels: must be left out"):
            sources.read_patches(np.zeros((2, 1, 2), int), 4, levels=1, scales=(1,))
        for bad in ((), (0,), (1, -4)):
            with pytest.raises(ValueError, match="scales: must be positive"):
                sources.levels_of(bad)


# ---- different sizes ----

SHAPES = [(128, 160), (96, 64), (80, 208)]  # thumbnails of 32 x 40, 24 x 16, 20 x 52, of which a cell sees 4 x 4


def test_different_sizes_are_each_source_alone():
    """Attention, the exact features, and the patches of the cells that are drawn, at the same origins."""
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images, 4)
    model = network(dtype=torch.float32, n_patches=24, inference="full").eval()
    with SourceBatch(images) as sources:
        together = model(low, sources, low_shapes=shapes)
        seen = model.sampler(together.attention, sources, low_shape=low.shape[2:], low_shapes=shapes, rng=5)
    for row, image in enumerate(images):
        height, width = shapes[row].tolist()
        own = height // 4, width // 4
        part = low[row : row + 1, :, :height, :width]
        alone = model(part, to_tensor([image]))
        assert together.attention[row].count_nonzero() == own[0] * own[1]
        torch.testing.assert_close(together.attention[row, : own[0], : own[1]], alone.attention[0])
        torch.testing.assert_close(together.features[row], alone.features[0])
        places = np.unravel_index(seen.indices[row].numpy(), together.attention.shape[1:])
        cells = torch.from_numpy(np.ravel_multi_index(places, own))[None]
        patches, origins = model.sampler.cut(cells, own, to_tensor([image]), part.shape[2:])
        assert torch.equal(origins[0], seen.origins[row]) and torch.equal(patches[0], seen.patches[row])


def test_gradients_are_those_without_padding():
    """All cells are drawn, so that both estimates are exact."""
    image = pixels((96, 32, 3), seed=9)
    part, shapes = thumbnails([image], 4)
    part = part.double()
    low = nn.functional.pad(part, (0, 24, 0, 8), value=0.7)
    model = network(dtype=torch.float64, n_patches=12).double()
    with SourceBatch([image]) as sources:
        found = run(model, low, sources, rng=1, low_shapes=shapes)
        one = model.sampler(found[1], sources, low_shape=32, low_shapes=shapes, rng=1)  # one size for every axis
        same = model.sampler(found[1], sources, low_shape=(32, 32), low_shapes=shapes, rng=1)
        assert torch.equal(one.origins, same.origins)
    expected = run(model, part, to_tensor([image]), rng=2)
    assert found[1].shape == (1, 8, 8) and found[1].count_nonzero() == 12
    torch.testing.assert_close(found[0], expected[0])
    for a, b in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(a, b)


def test_full_does_not_look_at_padding():
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images, 4)
    model = network(dtype=torch.float32, inference="full").eval()
    with SourceBatch(images) as sources:
        expected = model(low, sources, low_shapes=shapes).features
        model.feature.register_forward_hook(
            lambda module, inputs, output: output / inputs[0].std((1, 2, 3))[:, None] * 0 + output
        )
        assert torch.equal(model(low, sources, low_shapes=shapes).features, expected)


@pytest.mark.parametrize("estimator", ["murthy", "des_raj", "horvitz_thompson"])
def test_no_padded_cell_is_drawn(estimator):
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images, 4)
    model = network(dtype=torch.float32, n_patches=24, estimator=estimator, smooth=0.9)
    entropy = ats.MultinomialEntropy()
    model.attention_regularizer = entropy
    with SourceBatch(images) as sources:
        mask = sources.low_mask((8, 13), low_shape=low.shape[2:], low_shapes=shapes)
        for seed in range(20):
            output = model(low, sources, rng=seed, low_shapes=shapes)
            assert (output.attention[torch.from_numpy(~mask)] == 0).all()
            torch.testing.assert_close(output.attention.flatten(1).sum(1), torch.ones(3))
            torch.testing.assert_close(model.regularization, entropy(output.attention))
            weights = torch.rand(3, 8, 13)
            for deterministic in (False, True):
                seen = model.sampler(
                    weights, sources, low_shape=low.shape[2:], low_shapes=shapes, rng=seed, deterministic=deterministic
                )
                assert torch.from_numpy(mask.reshape(3, -1)).gather(1, seen.indices).all()
                assert not deterministic or len(set(seen.indices[1].tolist())) == 24  # all there are


def test_the_estimate_is_unbiased_by_enumeration():
    """A tiny map of 2 x 3 cells, 2 of them padding: the mean over all ordered pairs, weighted by their probability."""
    image, other = pixels((16, 16, 1), seed=0), pixels((16, 24, 1), seed=1)
    low, shapes = thumbnails([image, other], 2)
    low = low.double()
    model = network(2, 1, n_patches=2, patch_size=8, dtype=torch.float64).double()
    with SourceBatch([image, other]) as sources:
        raw = model.attention(low)
        assert raw.shape == (2, 2, 3)
        attention = model.sampler.mask(raw, sources, low.shape[2:], shapes)
        weights = attention[0].flatten() / attention[0].sum()
        there = weights.nonzero()[:, 0].tolist()
        assert there == [0, 1, 3, 4]
        patches, _ = model.sampler.cut(torch.arange(6).expand(2, -1), (2, 3), sources, low.shape[2:], shapes)
        features = model.feature(patches[0])
        mean = torch.zeros(4, dtype=torch.float64)
        surrogate = torch.zeros(4, dtype=torch.float64)
        total = 0.0
        for i, j in itertools.permutations(there, 2):
            pair = weights[[i, j]]
            probability = pair[0] * pair[1] / (1 - pair[0])
            estimate = model.expectation(features[[i, j]][None], pair[None])[0]
            mean = mean + probability.detach() * estimate.detach()
            surrogate = surrogate + probability.detach() * estimate
            total += probability.item()
        assert total == pytest.approx(1)
        exact = (weights[:, None] * features).sum(0)
        torch.testing.assert_close(mean, exact.detach())
        # And the gradient at both networks: the expectation of the estimate's, which is a score-function one.
        parameters = list(model.parameters())
        for k in range(4):
            found = torch.autograd.grad(surrogate[k], parameters, retain_graph=True)
            wanted = torch.autograd.grad(exact[k], parameters, retain_graph=True)
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b)


def test_the_mask_is_that_of_the_thumbnail_alone():
    """As many cells as convolutions give, with and without padding, for every stride and size."""
    for stride, kernel, padded in itertools.product((1, 2, 3), (1, 3, 5), (True, False)):
        field = 0 if padded else kernel - 1
        convolution = nn.Conv1d(1, 1, kernel, padding=kernel // 2 if padded else 0, stride=stride)
        whole = 24 if padded else 24 + field  # a multiple of the stride, of cells
        grid = convolution(torch.zeros(1, 1, whole)).shape[2]
        sizes = range(field + 1, whole + 1)
        source = open_source(np.zeros((100, 1), np.uint8), axes="xc")
        with SourceBatch([source] * len(sizes)) as sources:
            mask = sources.low_mask(
                (grid,), low_shape=(whole,), low_shapes=[[size] for size in sizes], receptive_field=field
            )
        for size, row in zip(sizes, mask, strict=True):
            cells = convolution(torch.zeros(1, 1, size)).shape[2]
            assert row.tolist() == [True] * cells + [False] * (grid - cells), (stride, kernel, padded, size)


# ---- loading ----


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader(tmp_path, workers):
    paths = []
    for seed, shape in enumerate(SHAPES):
        np.save(tmp_path / f"{seed}.npy", pixels((*shape, 3), seed=seed))
        paths.append(tmp_path / f"{seed}.npy")
    dataset = ats.SourceDataset(paths, 40, targets=[3, 1, 2])
    context = None if workers == 0 else multiprocessing.get_context("spawn")
    loader = DataLoader(
        dataset, 2, num_workers=workers, collate_fn=ats.collate_sources, multiprocessing_context=context
    )
    model = network(n_patches=3, dtype=torch.float32)
    for _ in range(2 if workers == 0 else 1):
        batches = list(loader)
        assert [batch.targets.tolist() for batch in batches] == [[3, 1], [2]]
        for batch, names in zip(batches, (paths[:2], paths[2:]), strict=True):
            with SourceBatch(names) as sources:
                low, shapes, _ = sources.thumbnails(40)
                x_low = torch.from_numpy(low).movedim(-1, 1).contiguous()  # a convolution's last bits depend on strides
                assert torch.equal(batch.x_low, x_low)
                assert np.array_equal(batch.low_shapes, shapes)
                expected = run(model, x_low / 255, sources, rng=1, low_shapes=batch.low_shapes)
            assert_equal(run(model, batch.x_low / 255, batch.sources, rng=1, low_shapes=batch.low_shapes), expected)
    with pytest.raises(ValueError, match="targets: must be one for each of 3 sources, got 1"):
        ats.SourceDataset(paths, 40, targets=[0])
    alone = ats.collate_sources([ats.SourceDataset([pixels((9, 9, 1))], 5)[0]], fill=1)
    assert alone.targets is None and alone.x_low.shape == (1, 1, 5, 5)
    assert len(pickle.loads(pickle.dumps(dataset))) == 3


@pytest.mark.parametrize("persistent", [True, False])
def test_files_of_workers_are_opened_once_here(tmp_path, persistent):
    """In three epochs, though each time they come from some other worker."""
    wholes = [pixels((64, 48, 3), seed=seed) for seed in range(4)]
    paths = [tmp_path / f"{seed}.npy" for seed in range(4)]
    for path, whole in zip(paths, wholes, strict=True):
        np.save(path, whole)
    loader = DataLoader(
        ats.SourceDataset(paths, 8, targets=range(4)), 2, num_workers=2, shuffle=True, collate_fn=ats.collate_sources,
        persistent_workers=persistent, multiprocessing_context="fork",
    )  # fmt: skip
    for _ in range(3):
        for batch in loader:
            found = batch.sources.read_patches(np.zeros((2, 1, 2), np.int64), (64, 48))
            for pixels_of_one, target in zip(found[:, 0], batch.targets.tolist(), strict=True):
                np.testing.assert_array_equal(pixels_of_one, wholes[target])
            batch.sources.close()  # what comes later is read all the same
        opened = open_files()
        assert [opened.count(str(path)) for path in paths] == [1] * 4
    handles.LENDERS.table.clear()
    assert not set(open_files()) & set(map(str, paths))
    dataset = ats.SourceDataset(paths, 8)
    for _ in range(2):
        _, source, _ = dataset[0]
        source.close()


def test_thumbnails_at_a_downsample():
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    batch = ats.collate_sources([*ats.SourceDataset(images, targets=[0, 1, 2], downsample=4)])
    with batch.sources:
        low, shapes, _ = batch.sources.thumbnails(downsample=4)
        assert torch.equal(batch.x_low, torch.from_numpy(low).movedim(-1, 1))
        assert batch.low_shapes.tolist() == shapes.tolist() == [[h // 4, w // 4] for h, w in SHAPES]
    for both in ({}, {"size": 8, "downsample": 4}):
        with pytest.raises(TypeError, match="size: exactly one of size and downsample must be given"):
            ats.SourceDataset(images, **both)


def test_each_tile_is_decoded_once_a_step():
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images, 4)
    readers = [Tiled([image], (16, 16)) for image in images]
    model = network(n_patches=20, patch_size=24, dtype=torch.float32)
    with SourceBatch([reader.source() for reader in readers]) as sources:
        run(model, low, sources, rng=1, low_shapes=shapes)
        for reader, source in zip(readers, sources, strict=True):
            assert 0 < source.statistics.tiles_decoded == len(reader.asked) == len(set(reader.asked))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's, at any graph break
def test_a_compiled_module():
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)]
    low, shapes = thumbnails(images, 4)
    model = network(dtype=torch.float32)
    with SourceBatch(images) as sources:
        expected = run(model, low, sources, rng=1, low_shapes=shapes)
        compiled = torch.compile(model, backend="aot_eager")
        found = compiled(low, sources, rng=1, low_shapes=shapes)
        assert torch.equal(found.patches, expected[2])
        torch.testing.assert_close(found.features, expected[0])


# ---- reading ahead ----


def test_prefetch_gives_what_a_loop_gives():
    images = [pixels((*shape, 3), seed=seed) for seed, shape in enumerate(SHAPES)] * 3
    dataset = ats.SourceDataset(images, downsample=4)
    loader = DataLoader(dataset, 2, collate_fn=ats.collate_sources)
    model = network(dtype=torch.float32).eval()

    @torch.inference_mode()
    def predict(numbered):
        number, batch = numbered
        return model(batch.x_low / 255, batch.sources, low_shapes=batch.low_shapes, rng=(7, 2 * number))

    expected = [predict(numbered) for numbered in enumerate(loader)]
    for ahead in (1, 3, 99):
        found = list(ats.prefetch(predict, enumerate(loader), ahead=ahead))
        assert [number for (number, _), _ in found] == list(range(5))
        for (_, output), wanted in zip(found, expected, strict=True):
            assert_equal(output, wanted)


def test_prefetch_runs_ahead_so_far_and_not_farther():
    taken, called = [], [threading.Event() for _ in range(6)]

    def batches():
        for number in range(6):
            taken.append(number)
            yield number

    def function(number):
        called[number].set()
        assert called[min(number + 1, 5)].wait(60)  # the next one is under way
        return 10 * number

    for number, result in ats.prefetch(function, batches()):
        assert result == 10 * number and len(taken) <= number + 2
    assert list(ats.prefetch(len, [])) == []


def test_prefetch_raises_in_turn():
    def function(number):
        if number == 2:
            raise SourceError("broken")
        return number

    results = ats.prefetch(function, range(9))
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(SourceError, match="broken"):
        next(results)
    half = ats.prefetch(function, range(9))
    next(half)
    half.close()
    with pytest.raises(ValueError, match="ahead: must be at least 1, got 0"):
        ats.prefetch(function, [], ahead=0)
    with pytest.raises(TypeError, match="ahead: must be an integer"):
        ats.prefetch(function, [], ahead=1.5)


# ---- errors ----


def test_a_file_that_vanishes_is_named(tmp_path):
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path in paths:
        np.save(path, pixels((64, 64, 3)))
    first = SourceBatch(paths)
    sources = pickle.loads(pickle.dumps(first))
    first.close()
    paths[1].unlink()
    with sources, pytest.raises(SourceError, match=r"b\.npy: level 0, region .*no such file"):
        network(dtype=torch.float32)(torch.rand(2, 3, 16, 16), sources)


def test_bad_input():
    images = [pixels((64, 64, 3)), pixels((64, 32, 3))]
    low, shapes = thumbnails(images, 4)
    model = network(dtype=torch.float32)
    with SourceBatch(images) as sources:
        with pytest.raises(ValueError, match=r"x_high: must be 1 sources with 2 axes.*got 2 with 2"):
            model(low[:1], sources)
        with pytest.raises(ValueError, match=r"low_shapes: must have the shape \(2, 2\)"):
            model(low, sources, low_shapes=shapes[:1])
        with pytest.raises(ValueError, match=r"low_shapes: must be 1 to \(16, 16\), got \(16, 17\) for array"):
            model(low, sources, low_shapes=shapes + torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="n_patches: 9 cells cannot be drawn from the 8 of array"):
            network(dtype=torch.float32, n_patches=9)(low, sources, low_shapes=shapes)
        with pytest.raises(ValueError, match=r"low_shapes: a thumbnail of \(16, 8\) has no cell"):
            network(dtype=torch.float32, receptive_field=8)(low, sources, low_shapes=shapes)
        with pytest.raises(ValueError, match="low_shapes: is for a SourceBatch"):
            model(low, torch.zeros(2, 3, 64, 64), low_shapes=shapes)
        with pytest.raises(ValueError, match="indices: must have a row for each of 2 sources"):
            sources.patch_origins([[0]], (2, 2), 4)
        with pytest.raises(ValueError, match="image: must be 1 sources"):
            ats.extract_patches(sources, torch.zeros(1, 1, 2).long(), 4)
