"""Numbers about attention, against definitions and enumeration; pictures and files, read back by other programs."""

import io
import itertools
import json
import math
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ats_core
from ats_core import diagnostics, plot
from ats_core._attention_log import DiagnosticsFolder

GRIDS = [(1,), (2,), (5,), (1, 7), (2, 9), (3, 3), (6, 5), (4, 1, 5), (3, 4, 5), (2, 2, 2)]


def loop_statistics(row):
    """One map by the definitions, cell by cell."""
    total = math.fsum(row.ravel())
    shares = {cell: row[cell] / total for cell in np.ndindex(row.shape)}
    border = [
        any(size > 2 and index in (0, size - 1) for index, size in zip(cell, row.shape, strict=True)) for cell in shares
    ]
    entropy = -math.fsum(a * math.log(a) for a in shares.values() if a > 0)
    k, largest = len(shares), max(shares.values())
    on_border = math.fsum(a for a, b in zip(shares.values(), border, strict=True) if b)
    uniform = sum(border) / k
    return {
        "entropy": entropy,
        "relative_entropy": entropy / math.log(k) if k > 1 else 1.0,
        "perplexity": math.exp(entropy),
        "effective_cells": 1 / math.fsum(a * a for a in shares.values()),
        "largest_share": largest,
        "border_share": on_border,
        "uniform_border_share": uniform,
        "cell_excess": (largest - 1 / k) / (1 - 1 / k) if k > 1 else 0.0,
        "edge_excess": (on_border - uniform) / (1 - uniform),
    }


def one_hot(grid, cell, batch=1):
    maps = np.zeros((batch, *grid))
    maps[(slice(None), *cell)] = 1.0
    return maps


# ---- attention ----


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_statistics_are_their_definitions(grid, scale):
    maps = np.random.default_rng(0).gamma(0.2, size=(4, *grid))
    maps[1, 0] *= 0.0 if grid[0] > 1 else 1.0
    found = diagnostics.attention_statistics(maps * scale)
    for b, row in enumerate(maps):
        for name, expected in loop_statistics(row).items():
            # sums of at most 60 float64 numbers; a scale of 1e-300 leaves subnormal weights out
            assert getattr(found, name)[b] == pytest.approx(expected, rel=1e-12, abs=1e-12), name
    means = found.means()
    assert means["entropy"] == pytest.approx(np.mean([loop_statistics(row)["entropy"] for row in maps]))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_uniform_attention_is_no_collapse(grid):
    k = math.prod(grid)
    found = diagnostics.attention_statistics(np.full((2, *grid), 3.0, np.float32))
    assert found.entropy == pytest.approx([math.log(k)] * 2, abs=1e-12)
    assert found.relative_entropy == pytest.approx([1.0] * 2)
    assert found.perplexity == pytest.approx([k] * 2)
    assert found.effective_cells == pytest.approx([k] * 2)
    assert found.cell_excess == pytest.approx([0.0] * 2, abs=1e-12)
    assert found.edge_excess == pytest.approx([0.0] * 2, abs=1e-12)
    on_cell, on_edge = diagnostics.collapsed(found)
    assert not on_cell.any() and not on_edge.any()


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if math.prod(grid) > 1], ids=str)
def test_one_cell(grid):
    found = diagnostics.attention_statistics(one_hot(grid, (0,) * len(grid)))
    assert (found.entropy, found.relative_entropy) == (0.0, 0.0)
    assert (found.perplexity, found.effective_cells, found.largest_share, found.cell_excess) == (1.0, 1.0, 1.0, 1.0)
    on_cell, on_edge = diagnostics.collapsed(found)
    assert on_cell.all()
    assert on_edge.all() == (max(grid) > 2)  # a corner is at the edge where there is an inside


def test_attention_on_the_edge_is_told_from_attention_inside():
    edge = np.ones((12, 9))
    edge[1:-1, 1:-1] = 0.0
    inside = 1.0 - edge
    one_side = np.zeros((12, 9))
    one_side[:, 0] = 1.0
    found = diagnostics.attention_statistics([edge, inside, one_side])
    on_cell, on_edge = diagnostics.collapsed(found)
    assert on_edge.tolist() == [True, False, True]
    assert not on_cell.any()
    assert found.edge_excess[1] < 0.0
    mostly = 0.75 * edge / edge.sum() + 0.25 * inside / inside.sum()  # an excess of about 0.6
    found = diagnostics.attention_statistics(mostly[None])
    assert not diagnostics.collapsed(found)[1].any()
    assert diagnostics.collapsed(found, edge=0.5)[1].all()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_statistics_stay_within_their_bounds(height, width, seed):
    maps = np.random.default_rng(seed).gamma(0.05, size=(1, height, width)) + 1e-9
    found = diagnostics.attention_statistics(maps)
    cells = height * width
    assert -1e-12 <= found.relative_entropy[0] <= 1 + 1e-12
    # Renyi's entropies fall with their order: log K, Shannon, collision, min-entropy
    assert 1 - 1e-9 <= 1 / found.largest_share[0] <= found.effective_cells[0] * (1 + 1e-9)
    assert found.effective_cells[0] <= found.perplexity[0] * (1 + 1e-9) <= cells * (1 + 1e-8)
    assert -1e-12 <= found.cell_excess[0] <= 1 + 1e-12
    assert found.edge_excess[0] <= 1 + 1e-12


def test_an_empty_batch_has_no_mean():
    found = diagnostics.attention_statistics(np.zeros((0, 3, 3)))
    assert found.entropy.shape == (0,)
    assert all(math.isnan(value) for value in found.means().values())


@pytest.mark.parametrize(
    "attention",
    [
        np.ones(3),
        np.ones((1, 2, 2, 2, 2)),
        np.ones((2, 0)),
        [[1.0, -1.0]],
        [[1.0, np.nan]],
        [[np.inf, 1.0]],
        [[0.0, 0.0]],
    ],
    ids=repr,
)
def test_bad_attention_is_refused(attention):
    with pytest.raises(ValueError, match=r"^attention: "):
        diagnostics.attention_statistics(attention)


# ---- the detector ----


def test_the_detector_waits_for_its_window():
    detector = diagnostics.CollapseDetector(window=5)
    statistics = diagnostics.attention_statistics(one_hot((9, 9), (4, 4), batch=2))
    assert detector.update(statistics) == ()
    assert detector.update(statistics) == ()
    assert detector.update(statistics) == ("cell",)
    uniform = diagnostics.attention_statistics(np.ones((1, 9, 9)))
    assert detector.update(uniform) == ()  # one uniform image in five is enough to fall below 0.9


def test_the_detector_finds_an_edge_and_a_cell_at_once():
    detector = diagnostics.CollapseDetector(window=2)
    assert detector.update(diagnostics.attention_statistics(one_hot((9, 9), (0, 4), batch=2))) == ("cell", "edge")


@pytest.mark.parametrize("grid", [(6, 6), (8, 8, 8), (40, 60)], ids=str)
def test_the_detector_seldom_takes_small_objects_for_an_edge(grid):
    """The rate that its docstring states, of attention on one cell an image, anywhere: a binomial tail."""

    def is_found(at_edge):
        cells = [(0,) * len(grid)] * at_edge + [(2,) * len(grid)] * (16 - at_edge)
        maps = np.concatenate([one_hot(grid, cell) for cell in cells])
        return "edge" in diagnostics.CollapseDetector().update(diagnostics.attention_statistics(maps))

    share = diagnostics.attention_statistics(np.ones((1, *grid))).uniform_border_share[0]
    needed = next(count for count in range(17) if is_found(count))
    rate = sum(math.comb(16, k) * share**k * (1 - share) ** (16 - k) for k in range(needed, 17))
    assert rate < 1 / 500


@pytest.mark.parametrize("arguments", [{"cell": 0.0}, {"edge": 1.1}, {"cell": math.nan}, {"window": 0}], ids=str)
def test_bad_thresholds_are_refused(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: "):
        diagnostics.CollapseDetector(**arguments)


# ---- effective sample size and variance ----


def test_effective_sample_size():
    c = [[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]]
    found = diagnostics.effective_sample_size(c)
    assert found == pytest.approx([4.0, 1.0, 1.0 / 0.375, 0.0])
    assert diagnostics.effective_sample_size(np.array(c) * 1e-200) == pytest.approx(found)


def ordered_draws(attention, n):
    """Every ordered draw without replacement, with its probability."""
    for cells in itertools.permutations(range(len(attention)), n):
        probability, left = 1.0, 1.0
        for cell in cells:
            probability *= attention[cell] / left
            left -= attention[cell]
        yield cells, probability


@pytest.fixture(scope="module")
def tiny():
    """Attention over 4 cells, their features, and every murthy estimate from 2 draws with its probability."""
    attention = np.array([0.5, 0.25, 0.15, 0.1])
    features = np.random.default_rng(3).normal(0.5, 1.0, (4, 2))
    cells, probabilities = zip(*ordered_draws(attention, 2), strict=True)
    cells, probabilities = np.array(cells), np.array(probabilities)
    estimates = ats_core.expectation(features[cells], attention[cells])
    mean = attention @ features
    variance = probabilities @ ((estimates - mean) ** 2).sum(1)
    return attention, features, estimates, probabilities, mean, variance


def test_the_estimated_variance_is_unbiased_by_enumeration(tiny):
    """Over all pairs of draws, the estimates of variance and squared mean average to the exact ones."""
    _, _, estimates, probabilities, mean, variance = tiny
    assert probabilities.sum() == pytest.approx(1.0)
    pairs = list(itertools.product(range(len(estimates)), repeat=2))
    found = diagnostics.estimator_variance(np.array([estimates[list(pair)] for pair in pairs]))
    weights = np.array([probabilities[r] * probabilities[s] for r, s in pairs])
    # 1e-9: murthy's quadrature is good to 1e-10
    assert weights @ found.variance == pytest.approx(variance, rel=1e-9)
    assert weights @ found.squared_mean == pytest.approx(mean @ mean, rel=1e-9)


def test_the_variance_of_samples_is_the_exact_one(tiny):
    """4000 repetitions: within 5 standard errors, a false alarm in 1.7e6 (and the seed is fixed)."""
    attention, features, estimates, probabilities, mean, variance = tiny
    repetitions = 4000
    draws = ats_core.sample(np.tile(attention, (repetitions, 1)), 2, rng=11)
    repeated = ats_core.expectation(features[draws.indices], draws.attention)
    found = diagnostics.estimator_variance(repeated[None])
    squares = ((estimates - mean) ** 2).sum(1)
    error = math.sqrt(probabilities @ (squares - variance) ** 2 / repetitions)
    assert abs(found.variance[0] - variance) < 5 * error
    spread = np.sqrt(probabilities @ (estimates - mean) ** 2 / repetitions)
    assert (abs(repeated.mean(0) - mean) < 5 * spread).all()


def test_variance_without_noise_and_without_signal():
    still = diagnostics.estimator_variance(np.ones((1, 3, 2, 2)))
    assert (still.variance[0], still.squared_mean[0], still.relative_variance[0]) == (0.0, 4.0, 0.0)
    noise = diagnostics.estimator_variance([[[1.0], [-1.0]]])
    assert (noise.variance[0], noise.squared_mean[0], noise.relative_variance[0]) == (2.0, -1.0, math.inf)
    nothing = diagnostics.estimator_variance(np.zeros((2, 2, 0)))
    assert nothing.relative_variance.tolist() == [0.0, 0.0]
    # one image whose mean is near 0 does not decide the mean of the ratio
    both = diagnostics.estimator_variance([[[1.0], [-1.0]], [[3.0], [5.0]]])
    assert both.means() == pytest.approx({"variance": 2.0, "relative_variance": 2.0 / ((15.0 - 1.0) / 2)})


def test_estimates_that_are_not_finite():
    found = diagnostics.estimator_variance([[[1.0], [np.inf]], [[1.0], [3.0]], [[np.nan], [0.0]]])
    assert np.isnan(found.variance).tolist() == np.isnan(found.relative_variance).tolist() == [True, False, True]
    assert found.variance[1] == 2.0


@pytest.mark.parametrize("estimates", [np.ones(3), np.ones((2, 1, 3))], ids=repr)
def test_bad_estimates_are_refused(estimates):
    with pytest.raises(ValueError, match=r"^estimates: "):
        diagnostics.estimator_variance(estimates)


# ---- pictures ----


@pytest.fixture
def pictures():
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")


def test_an_image_is_drawn_as_it_is(pictures):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    assert np.array_equal(plot.draw_image(image, size=60), image)
    assert np.array_equal(plot.draw_image(image, size=120), image.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(plot.draw_image(np.concatenate([image, image], -1), size=60), image)  # first three channels
    grey = plot.draw_image(image[..., :2], size=60)
    assert np.array_equal(grey[..., 0], np.round(image[..., :2].astype(np.float32).mean(-1)))
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_a_large_image_is_averaged(pictures):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 1)).astype(np.uint8)
    means = image.reshape(30, 3, 40, 3).astype(float).mean((1, 3))
    assert np.abs(plot.draw_image(image, size=40)[..., 0] - means).max() <= 0.5 + 1e-3  # one rounding


def test_a_huge_image_is_never_copied(pictures):
    image = np.broadcast_to(np.array([7, 8, 9], np.uint8), (40_000, 50_000, 3))  # 6 GB, if it were stored
    tracemalloc.start()
    try:
        picture = plot.draw_image(image, size=500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert picture.shape == (400, 500, 3)
    assert (picture == [7, 8, 9]).all()
    assert peak < 100e6  # 16 slices of 1.5 MB (uint8) and their float32 sum


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.0, 3.0), (0.0, 65535.0), (1e-20, 1e-19), (-1e30, 1e30)])
def test_values_of_any_range_are_scaled(pictures, low, high):
    ramp = np.linspace(low, high, 1000).reshape(20, 50, 1)
    drawn = plot.draw_image(ramp, size=50)[..., 0].ravel()
    assert (drawn[0], drawn[-1]) == (0, 255)
    assert (np.diff(drawn.astype(int)) >= 0).all()
    # linear between the percentiles 0.5 and 99.5, within the rounding
    expected = np.clip((np.arange(1000) - 4.995) / (994.005 - 4.995), 0, 1) * 255
    assert np.abs(drawn - expected).max() <= 0.51


def test_strange_values_are_drawn(pictures):
    assert (plot.draw_image(np.full((4, 4, 1), 3.0), size=4) == 0).all()
    image = np.array([[0.0, 1.0], [np.nan, np.inf]])[..., None]
    assert plot.draw_image(image, size=2)[..., 0].tolist() == [[0, 255], [0, 255]]
    sparse = np.zeros((100, 100, 1))
    sparse[50, 50] = 1.0  # beyond both percentiles
    assert plot.draw_image(sparse, size=100)[50, 50].tolist() == [255] * 3


def test_the_overlay_shows_attention_where_it_is(pictures):
    image = np.full((80, 120, 3), 100, np.uint8)
    attention = np.zeros((4, 6))
    attention[1, 4] = 1.0
    picture = plot.overlay(image, attention, size=120)
    touched = np.argwhere((picture != 100).any(-1))
    centre = touched.mean(0)
    assert np.abs(centre - [30, 90]).max() < 1.0  # the cell's centre, 20 pixels a cell
    assert touched.min(0)[0] >= 10 and touched.max(0)[0] <= 50  # bilinear: no further than the neighbours' centres
    with_margin = plot.overlay(image, np.ones((1, 1)), margin=(10, 20), size=120)
    touched = np.argwhere((with_margin != 100).any(-1))
    assert (touched.min(0).tolist(), touched.max(0).tolist()) == ([10, 20], [69, 99])


def test_the_overlay_draws_boxes_where_patches_are(pictures):
    from matplotlib import colormaps

    def colour(value):
        return [round(255 * channel) for channel in colormaps["cool"](value)[:3]]

    image = np.full((100, 100, 3), 100, np.uint8)
    attention = np.eye(10) + 1e-30
    origins = [[20, 30], [60, 50], [-8, 90]]
    plain, boxed = (
        plot.overlay(image, attention, boxes, (16, 16), p, size=100)
        for boxes, p in ((None, None), (origins, [0.001, 0.1, 0.01]))
    )
    changed = (plain != boxed).any(-1)
    for top, left in origins[:2]:
        assert changed[top, left : left + 16].all() and changed[top + 15, left : left + 16].all()
        assert changed[top : top + 16, left].all() and changed[top : top + 16, left + 15].all()
        assert not changed[top + 3 : top + 13, left + 3 : left + 13].any()
    assert boxed[20, 30].tolist() == colour(0.0)  # the least probable
    assert boxed[60, 50].tolist() == colour(1.0)
    assert boxed[7, 95].tolist() == colour(0.5)  # halfway by logarithm


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_signals_of_every_rank_are_drawn(pictures, axes):
    rng = np.random.default_rng(0)
    shape, grid, patch = (600, 50, 40)[:axes], (6, 5, 4)[:axes], (20, 20, 20)[:axes]
    image = rng.random((*shape, 2))
    attention = rng.random(grid)
    samples = ats_core.sample(attention[None], 3, rng=1)
    origins = ats_core.patch_origins(samples.indices, grid, shape, patch)
    picture = plot.overlay(image, attention, origins[0], patch, samples.attention[0], size=200)
    assert picture.dtype == np.uint8 and picture.shape[1:] == ((200 if axes == 1 else 160 if axes == 3 else 25), 3)
    for scales in (None, (1, 2)):
        patches = ats_core.extract_patches(image[None], origins, patch, scales=scales)
        sheet = plot.contact_sheet(patches, samples.attention, axes=axes, tile=40)
        assert sheet.dtype == np.uint8 and sheet.shape[1] == 3 * 40 + 2 * 4


def test_the_overlay_of_a_volume_shows_the_attended_slice(pictures):
    volume = np.zeros((10, 20, 20, 1), np.uint8)
    volume[6:8] = 200
    attention = np.full((5, 4, 4), 1e-9)
    attention[3, 0, 0] = 1.0  # slices 6 and 7
    assert plot.overlay(volume, attention, size=20)[-1, -1, 0] == 200


def test_the_contact_sheet_is_sorted_by_probability(pictures):
    patches = np.array([10, 20, 30], np.uint8)[None, :, None, None, None].repeat(8, 2).repeat(8, 3)
    sheet = plot.contact_sheet(patches, [[0.1, 0.7, 0.2]], tile=40)
    assert [sheet[-1, 44 * i, 0] for i in range(3)] == [20, 30, 10]


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: plot.draw_image(np.ones((3, 3))[0]), "image"),
        (lambda: plot.draw_image(np.ones((3, 0, 1))), "image"),
        (lambda: plot.draw_image(np.ones((3, 3, 1)), size=0), "size"),
        (lambda: plot.overlay(np.ones((3, 3, 1)), np.ones(3)), "attention"),
        (lambda: plot.overlay(np.ones((3, 3, 1)), np.ones((3, 3)), np.ones((2, 1)), (1, 1)), "origins"),
        (lambda: plot.overlay(np.ones((3, 3, 1)), np.ones((3, 3)), np.ones((2, 2)), (1, 1), [1.0]), "probabilities"),
        (lambda: plot.contact_sheet(np.ones((3, 3, 1))), "patches"),
        (lambda: plot.contact_sheet(np.ones((1, 2, 3, 3, 1)), np.ones((1, 3))), "probabilities"),
    ],
)
def test_bad_pictures_are_refused(pictures, call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()


def test_a_missing_package_is_told_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"PIL.*pip install 'ats-core\[diagnostics\]'"):
        DiagnosticsFolder(tmp_path)


# ---- files ----

PICTURE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


@pytest.fixture
def accumulator():
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator


def lines(folder):
    return [json.loads(line) for line in (folder / "statistics.jsonl").read_text().splitlines()]


def test_other_programs_read_what_is_written(accumulator, tmp_path, pictures):
    from PIL import Image

    folder = DiagnosticsFolder(tmp_path / "made" / "here")
    assert folder.last_step is None
    folder.write(0, {"entropy": 1.5, "variance": math.inf}, {"overlay": PICTURE})
    folder.write(40, {"entropy": 0.25, "variance": 2.0}, {"overlay": 255 - PICTURE})
    assert lines(folder.folder) == [
        {"step": 0, "entropy": 1.5, "variance": None},
        {"step": 40, "entropy": 0.25, "variance": 2.0},
    ]
    with Image.open(folder.folder / "overlay_0000040.png") as image:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), 255 - PICTURE)
    events = accumulator(str(folder.folder), size_guidance={"images": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("attention/entropy")] == [(0, 1.5), (40, 0.25)]
    assert [e.value for e in events.Scalars("attention/variance")] == [math.inf, 2.0]
    first, second = events.Images("attention/overlay")
    assert (second.step, second.width, second.height) == (40, 7, 5)
    with Image.open(io.BytesIO(first.encoded_image_string)) as image:
        assert np.array_equal(np.asarray(image), PICTURE)


def test_a_folder_is_gone_on_with(accumulator, tmp_path, pictures):
    DiagnosticsFolder(tmp_path).write(3, {"entropy": 1.0}, {"overlay": PICTURE})
    with open(tmp_path / "statistics.jsonl", "ab") as file:
        file.write(b'{"step": 9, "entr')  # stopped in the middle of a line
    again = DiagnosticsFolder(tmp_path)
    assert again.last_step == 3
    again.write(3, {"entropy": 2.0}, {"overlay": 255 - PICTURE})
    again.write(4, {"entropy": 3.0}, {"overlay": PICTURE})
    text = (tmp_path / "statistics.jsonl").read_text().splitlines()
    assert [json.loads(text[i])["entropy"] for i in (0, 2, 3)] == [1.0, 2.0, 3.0]
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["overlay_0000003.png", "overlay_0000003_2.png", "overlay_0000004.png"]
    assert (tmp_path / "overlay_0000003.png").read_bytes() == plot.to_png(PICTURE)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    events = accumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("attention/entropy")][-1] == 3.0


def test_a_file_of_something_else_is_left_alone(tmp_path, pictures):
    pytest.importorskip("tensorboard")
    (tmp_path / "statistics.jsonl").write_text("my results\n")
    with pytest.raises(ValueError, match=r"^folder: .*statistics\.jsonl"):
        DiagnosticsFolder(tmp_path)
    assert (tmp_path / "statistics.jsonl").read_text() == "my results\n"
