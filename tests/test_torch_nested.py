"""Sampling on two levels: its law by enumeration of all ordered draws on both, its streams, where its cells lie."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ats_core.torch as ats
import reference
from ats_core.sources import FunctionSource, Level, SourceBatch
from ats_core.torch import NestedSamples, Samples

SEED_STEP = 0xD1342543DE82EF95
TOLERANCE = 1e-12  # relative, in float64: 1.5e-14 was measured (murthy's quadrature is at its best where n is small)


def signed(number):
    """Modulo 2**64, as int64."""
    return (number + 2**63) % 2**64 - 2**63


# ---- the law ----


class Enumerated:
    """Every ordered draw of n coarse cells with every ordered draw of m fine cells in each, as one batch."""

    def __init__(self, cells, n, fine_cells, m, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.p = torch.randn(cells, generator=generator, dtype=torch.float64).requires_grad_()  # logits
        self.q = torch.randn(cells, fine_cells, generator=generator, dtype=torch.float64).requires_grad_()
        self.features = torch.randn(cells, fine_cells, 3, generator=generator, dtype=torch.float64).add(1)
        self.features.requires_grad_()
        self.grad = torch.randn(3, generator=generator, dtype=torch.float64)
        outer, inner = reference.ordered_draws(cells, n), reference.ordered_draws(fine_cells, m)
        chance = reference.draw_probability(outer, logits=self.p.detach().numpy())
        inner_chance = [reference.draw_probability(inner, logits=row) for row in self.q.detach().numpy()]
        coarse, fine, chances = [], [], []
        for drawn, probability in zip(outer, chance, strict=True):
            for picks in itertools.product(range(len(inner)), repeat=n):
                coarse.append(drawn)
                fine.append(inner[list(picks)])
                chances.append(probability * np.prod([inner_chance[c][k] for c, k in zip(drawn, picks, strict=True)]))
        self.coarse, self.fine = torch.from_numpy(np.array(coarse)), torch.from_numpy(np.array(fine))
        self.chances = torch.tensor(chances, dtype=torch.float64)

    @property
    def inputs(self):
        return self.features, self.p, self.q

    def exact(self):
        joint = torch.softmax(self.p, 0)[:, None] * torch.softmax(self.q, 1)
        value = (joint[..., None] * self.features).sum((0, 1))
        return value, *torch.autograd.grad(value @ self.grad, self.inputs)

    def samples(self):
        """What `nested_sample` would return for each draw, attached to the logits in the same way."""
        nothing = torch.zeros(len(self.coarse), dtype=torch.float64)  # des_raj and murthy read no threshold
        p, q = torch.softmax(self.p, 0)[self.coarse], torch.softmax(self.q, 1)[self.coarse[..., None], self.fine]
        return NestedSamples(
            Samples(self.coarse, p, nothing), Samples(self.fine, q, nothing[:, None].expand_as(self.coarse))
        )

    def average(self, estimator):
        """Averages over all draws: of the value, and of the gradients of <value, grad>."""
        found = ats.nested_expectation(
            self.features[self.coarse[..., None], self.fine], self.samples(), estimator=estimator
        )
        value = self.chances @ found
        return value, *torch.autograd.grad(value @ self.grad, self.inputs)


@pytest.mark.parametrize("estimator", ["des_raj", "murthy"])
@pytest.mark.parametrize("sizes", [(3, 2, 3, 2), (4, 2, 4, 1), (4, 1, 5, 3), (2, 2, 4, 2), (3, 3, 3, 1), (3, 2, 2, 2)])
def test_value_and_all_gradients_are_unbiased(sizes, estimator):
    problem = Enumerated(*sizes)
    assert abs(problem.chances.sum() - 1) < 1e-12
    for found, expected in zip(problem.average(estimator), problem.exact(), strict=True):
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_the_law_is_a_test_that_can_fail():
    """A fine draw that is taken for exact (attention over its sum) is off by far more than the tolerance."""
    problem = Enumerated(3, 2, 3, 2)
    samples = problem.samples()
    biased = samples.fine.attention / samples.fine.attention.sum(2, keepdim=True)
    features = (biased[..., None] * problem.features[problem.coarse[..., None], problem.fine]).sum(2)
    value = problem.chances @ ats.expectation(features, samples.coarse.attention)
    assert (value - problem.exact()[0]).abs().max() > 1e-3


@pytest.mark.parametrize("estimator", ["murthy", "des_raj", "horvitz_thompson"])
def test_unbiased_through_the_draws_themselves(estimator):
    """By Monte Carlo: streams of the two levels that depended on each other would show here, and so would a threshold
    of the wrong level. 24 averages (value, and gradients at p and q) within 5 standard errors, the seed is fixed."""
    rows = 40_000
    problem = Enumerated(4, 2, 3, 2, seed=3)
    p = problem.p.detach().expand(rows, 4).clone().requires_grad_()
    q = problem.q.detach().expand(rows, 4, 3).clone().requires_grad_()
    rows_of = torch.arange(rows)[:, None]
    samples = ats.nested_sample(p, lambda coarse: q[rows_of, coarse.indices], 2, 2, logits=True, rng=(5, 7))
    features = problem.features.detach()[samples.coarse.indices[..., None], samples.fine.indices]
    found = ats.nested_expectation(features, samples, estimator=estimator)
    (found @ problem.grad).sum().backward()
    value, _, d_p, d_q = problem.exact()
    for each, expected in ((found, value), (p.grad, d_p), (q.grad, d_q)):
        error = each.detach().std(0) / rows**0.5
        assert ((each.detach().mean(0) - expected).abs() <= 5 * error).all()


def test_most_attended_cells_compose_too():
    """topk on both levels with "normalized": the mean of the features over the cells taken, exactly when all are."""
    problem = Enumerated(4, 2, 3, 2)
    p, q = torch.softmax(problem.p, 0).unsqueeze(0), torch.softmax(problem.q, 1)
    for n, m in ((4, 3), (2, 2)):
        coarse = ats.topk(p, n)
        fine = ats.Samples(*(part.unsqueeze(0) for part in ats.topk(q[coarse.indices[0]], m)))
        features = problem.features[coarse.indices[..., None], fine.indices]
        found = ats.nested_expectation(features, NestedSamples(coarse, fine), estimator="normalized")
        weights = coarse.attention / coarse.attention.sum()
        within = fine.attention / fine.attention.sum(2, keepdim=True)
        expected = torch.einsum("bn,bnm,bnmf->bf", weights, within, features)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert (found - problem.exact()[0]).abs().max() > 1e-3


# ---- the streams ----


def maps(batch=5, cells=(3, 4), fine_cells=(5, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, *cells, generator=generator)
    return coarse, torch.rand(batch, coarse[0].numel(), *fine_cells, generator=generator)


def look(fine, first=0):
    """The callback: weights within the cells that were drawn."""
    return lambda coarse: fine[first + torch.arange(len(coarse.indices))[:, None], coarse.indices]


def same(found, expected):
    for a, b in zip((*found.coarse, *found.fine), (*expected.coarse, *expected.fine), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rng", [7, (7, 2), (-(2**63), -3), (2**63 - 1, 2**62), (0, 2**63 - 2)])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_every_row_draws_from_its_own_stream(rng, n):
    coarse, fine = maps()
    found = ats.nested_sample(coarse, look(fine), n, 3, rng=rng)
    assert found.fine.indices.shape == found.fine.attention.shape == (5, n, 3)
    assert found.coarse.indices.shape == found.fine.threshold.shape == (5, n)
    seed, offset = (rng, 0) if isinstance(rng, int) else rng
    streams = set()
    for b in range(5):
        outer = (seed, signed(offset + b))
        drawn = ats.sample(coarse[b : b + 1], n, rng=outer)
        assert all(torch.equal(part[b : b + 1], row) for part, row in zip(found.coarse, drawn, strict=True))
        streams.add(outer)
        for i in range(n):
            inner = signed(seed + n * SEED_STEP), signed(n * (offset + b) + i)
            weights = fine[b, drawn.indices[0, i]].unsqueeze(0)
            within = ats.sample(weights, 3, rng=inner)
            assert all(torch.equal(part[b, i : i + 1], row) for part, row in zip(found.fine, within, strict=True))
            streams.add(inner)
    assert len(streams) == 5 + 5 * n


@pytest.mark.parametrize("rng", [(3, 0), (3, -2), (3, 2**63 - 2)])
def test_a_batch_may_be_split(rng):
    coarse, fine = maps()
    whole = ats.nested_sample(coarse, look(fine), 3, 4, rng=rng)
    parts = [
        ats.nested_sample(coarse[a:b], look(fine, a), 3, 4, rng=(rng[0], signed(rng[1] + a)))
        for a, b in ((0, 2), (2, 5))
    ]
    same(
        NestedSamples(*(Samples(*map(torch.cat, zip(*pair, strict=True))) for pair in zip(*parts, strict=True))), whole
    )


def test_a_tensor_is_an_rng_too():
    coarse, fine = maps()
    found = ats.nested_sample(coarse, look(fine), 3, 4, rng=torch.tensor([7, 2]))
    same(found, ats.nested_sample(coarse, look(fine), 3, 4, rng=(7, 2)))
    same(
        ats.nested_sample(coarse, look(fine), 3, 4, rng=torch.tensor(7)),
        ats.nested_sample(coarse, look(fine), 3, 4, rng=7),
    )


def test_without_rng_manual_seed_holds_whatever_the_callback_draws():
    coarse, fine = maps()

    def drawing(samples):
        ats.sample(coarse, 2)  # into the memory that the pair of the outer draw came in
        return look(fine)(samples)

    torch.manual_seed(1)
    found = ats.nested_sample(coarse, drawing, 3, 4)
    torch.manual_seed(1)
    same(found, ats.nested_sample(coarse, look(fine), 3, 4))
    assert not torch.equal(found.fine.indices, ats.nested_sample(coarse, look(fine), 3, 4).fine.indices)


def test_logits_are_weights():
    coarse, fine = maps()
    found = ats.nested_sample(coarse.log(), look(fine.log()), 3, 4, logits=True, rng=1)
    expected = ats.nested_sample(coarse, look(fine), 3, 4, rng=1)
    assert torch.equal(found.fine.indices, expected.fine.indices)
    torch.testing.assert_close(found.fine.attention, expected.fine.attention)


def test_it_compiles():
    coarse, fine = maps()

    def estimate(coarse, fine):
        samples = ats.nested_sample(coarse, look(fine), 3, 2, rng=4)
        return ats.nested_expectation(samples.fine.indices.float().unsqueeze(3), samples), samples.fine.indices

    compiled = torch.compile(estimate, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(coarse, fine), estimate(coarse, fine), strict=True):
        assert torch.equal(found, expected)


# ---- where the cells lie ----


def test_regions_that_tile_the_image_make_one_grid():
    """Coarse cells of 8 x 12 pixels with 4 x 3 fine cells each, against the fine grid over the whole image."""
    coarse, fine, image = (5, 3), (4, 3), (40, 36)
    cells = torch.arange(15).unsqueeze(0)
    regions = ats.patch_origins(cells, coarse, image, (8, 12))
    indices = torch.arange(12).expand(1, 15, 12)
    found = ats.nested_origins(indices, fine, regions, (8, 12), (2, 4))
    row = (cells // 3)[..., None] * 4 + indices // 3
    column = (cells % 3)[..., None] * 3 + indices % 3
    whole = ats.patch_origins((row * 9 + column).flatten(1), (20, 9), image, (2, 4))
    assert torch.equal(found.flatten(1, 2), whole)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_options_are_those_of_patch_origins(axes):
    generator = torch.Generator().manual_seed(axes)
    indices = torch.randint(3**axes, (2, 4, 5), generator=generator)
    regions = torch.randint(-50, 500, (2, 4, axes), generator=generator)
    options = {"low_shape": (7,) * axes, "receptive_field": 3}
    found = ats.nested_origins(indices, (3,) * axes, regions, 56, 9, **options)
    for b, i in itertools.product(range(2), range(4)):
        within = ats.patch_origins(indices[b, i : i + 1], (3,) * axes, (56,) * axes, 9, **options)
        assert torch.equal(found[b, i], regions[b, i] + within[0])


# ---- a step from sources ----


def test_a_step_reads_sampled_regions_and_patches_alone():
    """Two sources that cannot be read whole: thumbnails of 1 / 16, regions from 1 / 4, patches from level 0."""
    high = [np.random.default_rng(seed).integers(0, 255, (512, 768, 3), np.uint8) for seed in (0, 1)]
    asked = []

    def source(pixels):
        def read(level, start, stop):
            asked.append((level, start, stop))
            return pixels[:: 4**level, :: 4**level][tuple(slice(*ends) for ends in zip(start, stop, strict=True))]

        levels = [Level((512 >> 2 * level, 768 >> 2 * level), (), None) for level in range(3)]
        return FunctionSource(read, levels, np.uint8, 3, name="slide")

    batch = SourceBatch([source(pixels) for pixels in high])

    def pixels(origins, size, level):
        read = batch.read_patches(origins.numpy(), size, levels=level)
        return torch.from_numpy(read).movedim(-1, 2).float() / 255

    torch.manual_seed(0)
    coarse_network = torch.nn.Conv2d(3, 1, 8, 8)  # 32 x 48 -> 4 x 6
    fine_network = torch.nn.Conv2d(3, 1, 4, 4)  # 32 x 32 -> 8 x 8
    feature = torch.nn.Linear(3, 5)
    shape, region, n, m = (512, 768), 128, 3, 4
    thumbnails = torch.from_numpy(batch.thumbnails(48)[0]).movedim(-1, 1).float() / 255
    asked.clear()

    def look_closer(coarse):
        regions = pixels(ats.patch_origins(coarse.indices, (4, 6), shape, 32), 32, 1)
        return fine_network(regions.flatten(0, 1)).unflatten(0, (2, n)).squeeze(2)

    samples = ats.nested_sample(coarse_network(thumbnails).squeeze(1), look_closer, n, m, logits=True, rng=0)
    regions = ats.patch_origins(samples.coarse.indices, (4, 6), shape, region)
    origins = ats.nested_origins(samples.fine.indices, (8, 8), regions, region, 16)
    patches = pixels(origins.flatten(1, 2), 16, 0)
    expected = ats.nested_expectation(feature(patches.mean((3, 4))).unflatten(1, (n, m)), samples)
    expected.square().sum().backward()

    for network in (coarse_network, fine_network, feature):
        assert network.weight.grad.abs().max() > 0
    assert sum(level == 1 for level, *_ in asked) == 2 * n and sum(level == 0 for level, *_ in asked) == 2 * n * m
    assert {level for level, *_ in asked} == {0, 1}
    for b, i, j in itertools.product(range(2), range(n), range(m)):
        y, x = origins[b, i, j].tolist()
        assert regions[b, i, 0] <= y <= regions[b, i, 0] + region - 16 and y % 16 == x % 16 == 0
        crop = torch.from_numpy(high[b][y : y + 16, x : x + 16]).movedim(-1, 0).float() / 255
        assert torch.equal(patches[b, i * m + j], crop)


# ---- what is refused ----


def test_errors_name_the_argument():
    coarse, fine = maps()
    with pytest.raises(ValueError, match=r"fine: must return .* beginning with \(5, 3\), got \(3, 5, 5, 2\)"):
        ats.nested_sample(coarse, lambda s: look(fine)(s).transpose(0, 1), 3, 4)
    with pytest.raises(TypeError, match="fine: its result: must be a"):
        ats.nested_sample(coarse, lambda s: None, 3, 4)
    with pytest.raises(RuntimeError, match="13"):
        ats.nested_sample(coarse, look(fine), 13, 4)
    with pytest.raises(RuntimeError, match="11"):
        ats.nested_sample(coarse, look(fine), 3, 11)
    samples = ats.nested_sample(coarse, look(fine), 3, 4)
    with pytest.raises(ValueError, match=r"features: must be .* \(5, 3, 4\), got \(5, 12, 2\)"):
        ats.nested_expectation(torch.zeros(5, 12, 2), samples)
    regions = torch.zeros(5, 3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"indices: must be \(B, n, m\)"):
        ats.nested_origins(samples.fine.indices[:4], (5, 2), regions, 8, 2)
    with pytest.raises(ValueError, match="regions: must have as many axes as the grid, 2, got 1"):
        ats.nested_origins(samples.fine.indices, (5, 2), regions[..., :1], 8, 2)
