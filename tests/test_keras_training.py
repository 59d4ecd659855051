"""Batcher, DataTransform, LambdaTransform, compose_sequences: every element once an epoch, and what fit makes of them."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

from ats_core.keras import Batcher, DataTransform, LambdaTransform, compose_sequences

# Keras and PyTorch do not know NumPy 2's copy argument yet.
pytestmark = pytest.mark.keras


def pairs(n=23):
    return [(np.array([i, -i], "float32"), np.array(10 * i)) for i in range(n)]


def order(batcher):
    batches = [batcher[i] for i in range(len(batcher))]
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert np.array_equal(10 * x[:, 0], y) and np.array_equal(x[:, 0], -x[:, 1])  # what belongs together stays so
    return x[:, 0].astype(int).tolist()


def test_every_element_once_an_epoch_in_a_new_order():
    batcher = Batcher(pairs(), 5, seed=1)
    assert isinstance(batcher, keras.utils.PyDataset) and len(batcher) == 5
    assert [len(batcher[i][1]) for i in range(5)] == [5, 5, 5, 5, 3]
    orders = [order(batcher)]
    for _ in range(3):
        batcher.on_epoch_end()
        orders.append(order(batcher))
    assert orders[0] == list(range(23))
    assert all(sorted(each) == list(range(23)) for each in orders)
    assert len({tuple(each) for each in orders}) == 4
    with pytest.raises(IndexError):
        batcher[5]
    with pytest.raises(IndexError):
        batcher[-1]
    assert len(list(batcher)) == 5


def test_no_shuffle_keeps_the_order():
    batcher = Batcher(pairs(), 5, shuffle=False)
    for _ in range(3):
        assert order(batcher) == list(range(23))
        batcher.on_epoch_end()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(1.0)])
    for shuffle in (True, False):  # Keras ends an epoch in predict too
        batcher = Batcher(pairs(), 5, seed=0, shuffle=shuffle)
        first, second = (model.predict(batcher, verbose=0)[:, 0].tolist() for _ in range(2))
        assert first == list(range(23)) and (first == second) is not shuffle and sorted(second) == first


def test_the_seed_decides_the_order():
    def second(seed):
        batcher = Batcher(pairs(), seed=seed)
        batcher.on_epoch_end()
        return order(batcher)

    assert second(1) == second(1) != second(2)
    keras.utils.set_random_seed(4)
    one = second(None)
    keras.utils.set_random_seed(4)
    assert one == second(None) != second(None)


def test_structures_of_inputs():
    x = [([np.full((2, 2), i), np.float32(i)], {"a": i, "b": (i, None)}, 0.5 * i) for i in range(5)]
    inputs, targets, weights = Batcher(x, 3)[1]
    assert type(inputs) is tuple
    first, second = inputs
    assert first.shape == (2, 2, 2) and second.tolist() == [3, 4] and weights.tolist() == [1.5, 2]
    assert targets["a"].tolist() == [3, 4] and targets["b"][0].tolist() == [3, 4] and targets["b"][1] is None
    inputs, targets = Batcher([(np.ones(3), None)] * 4, 2)[0]
    assert inputs.shape == (2, 3) and targets is None


class Counted(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.epochs = 0

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return np.array([i, -i], "float32"), np.array(10 * i)

    def on_epoch_end(self):
        self.epochs += 1


def test_the_end_of_an_epoch_reaches_the_innermost():
    inner = Counted()
    whole = compose_sequences(inner, [(LambdaTransform, lambda x: x), (Batcher, 2), (LambdaTransform, lambda x: x)])
    whole.on_epoch_end()
    assert inner.epochs == 1
    compose_sequences([1], [(Batcher, 2)]).on_epoch_end()  # a list need not hear of it


def test_transforms():
    doubled = LambdaTransform(pairs(), lambda x: 2 * x)
    assert len(doubled) == 23 and doubled[3][0].tolist() == [6, -6] and doubled[3][1] == 30

    class Negative(DataTransform):
        def _transform(self, x):
            return -x

    chain = compose_sequences(pairs(), [(Negative,), (Batcher, 4), (LambdaTransform, lambda x: x + 1)])
    x, y = chain[0]
    assert x.tolist() == [[1, 1], [0, 2], [-1, 3], [-2, 4]] and y.tolist() == [0, 10, 20, 30] and len(chain) == 6
    x, y, w = LambdaTransform([(1, 2, 3)], lambda x: x + 1)[0]
    assert (x, y, w) == (2, 2, 3)
    with pytest.raises(NotImplementedError):
        DataTransform(pairs())[0]


def test_options_of_py_dataset_are_passed_on():
    for dataset in (Batcher(pairs(), 4, workers=2, max_queue_size=3), DataTransform(pairs(), workers=2, max_queue_size=3),
                    LambdaTransform(pairs(), abs, workers=2, max_queue_size=3)):  # fmt: skip
        assert dataset.workers == 2 and dataset.max_queue_size == 3 and dataset.use_multiprocessing is False


@pytest.mark.parametrize("workers", [1, 2])
def test_fit_evaluate_and_predict(workers):
    seen = []

    def note(x):
        seen.extend(x[0][:, 0].astype(int).tolist())
        return x

    data = [((x, x[:1]), y.astype("float32")) for x, y in pairs(11)]
    sequence = compose_sequences(data, [(Batcher, 4)])
    sequence = LambdaTransform(sequence, note, workers=workers)
    inputs = [keras.Input((2,)), keras.Input((1,))]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)))
    model.compile("sgd", "mse")
    model.fit(sequence, epochs=1, verbose=0)
    assert set(seen) == set(range(11))
    x = np.stack([x for x, _ in pairs(11)])
    assert model.predict(sequence, verbose=0).shape == (11, 1)
    loss = model.evaluate(Batcher(data, 4), verbose=0)
    wanted = model.evaluate([x, x[:, :1]], 10 * x[:, 0], batch_size=4, verbose=0)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


class Listed(keras.utils.PyDataset):
    """Elements, or batches, as the reference library's examples make them: with lists of inputs."""

    def __init__(self, batch=None):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 6

    def __getitem__(self, i):
        x = np.full((2,) if self.batch is None else (self.batch, 2), i, "float32")
        return [x, x[..., :1]], [10 * x[..., 0], x[..., 0]]


@pytest.mark.parametrize("make, rows", [
    (lambda: Batcher(Listed(), 4), 6),
    (lambda: Batcher(Listed(), 4, workers=2), 6),
    (lambda: LambdaTransform(Listed(batch=4), list), 24),
    (lambda: compose_sequences(Listed(), [(Batcher, 4), (LambdaTransform, list)]), 6),
    (lambda: compose_sequences(Listed(), [(LambdaTransform, list), (Batcher, 4)]), 6),
], ids=["batcher", "workers", "transform", "batcher in transform", "transform in batcher"])  # fmt: skip
def test_lists_of_inputs_and_targets(make, rows):
    inputs = [keras.Input((2,)), keras.Input((1,))]
    joined = keras.layers.Concatenate()(inputs)
    model = keras.Model(inputs, [keras.layers.Dense(1)(joined), keras.layers.Dense(1)(joined)])
    model.compile("sgd", ["mse", "mse"])
    x = np.repeat(np.arange(6, dtype="float32"), rows // 6)
    columns = np.stack([x, x], 1)
    wanted = model.evaluate([columns, columns[:, :1]], [10 * x, x], verbose=0)
    np.testing.assert_allclose(model.evaluate(make(), verbose=0)[0], wanted[0], rtol=1e-5)  # the sum of the losses
    first, second = model.predict(make(), verbose=0)
    np.testing.assert_allclose(first, model.predict([columns, columns[:, :1]], verbose=0)[0], rtol=1e-5)
    assert first.shape == second.shape == (rows, 1)
    before = model.get_weights()
    assert np.isfinite(model.fit(make(), epochs=2, verbose=0).history["loss"]).all()
    assert not np.array_equal(before[0], model.get_weights()[0])


def test_bad_options():
    with pytest.raises(TypeError, match=r"^shuffle: must be True or False, got 'no'"):
        Batcher(pairs(), shuffle="no")
    with pytest.raises(TypeError, match=r"^seed: must be an integer, got True"):
        Batcher(pairs(), seed=True)


def test_bad_batch_sizes():
    with pytest.raises(ValueError, match=r"^batch_size: must be at least 1, got 0"):
        Batcher(pairs(), 0)
    with pytest.raises(TypeError, match=r"^batch_size: must be an integer, got 1.5"):
        Batcher(pairs(), 1.5)
