"""Sources that are sent to a process again and again: opened once, closed each by itself, never those of another file."""

import copy
import gc
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ats_core.sources import SourceError, handles, open_source
from sources_files import MAKERS, made, pixels  # noqa: F401
from test_sources_read import check, child, open_files


def saved(path, image):
    np.save(path, image)
    with open_source(path) as source:
        return pickle.dumps(source)


def open_in(path):
    """What is open of a file or its folder; other tests may leave what is closed at some time."""
    if not isinstance(path, str | os.PathLike):
        return []
    folder = os.path.dirname(os.fspath(path).removeprefix("file://").partition("::")[0])
    return [name for name in open_files() if name.startswith(folder)]


def test_a_file_is_opened_once(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source:
        state = pickle.dumps(source)
    gc.collect()
    before, opened = open_in(path), []
    for number in range(4):
        sent = pickle.loads(state)
        region = (slice(length // 2, length // 2 + 5) for length in sent.shape)
        expected = levels[0][tuple(region)]
        found = sent.read(0, [length // 2 for length in sent.shape], expected.shape[:-1])
        np.testing.assert_array_equal(found, expected)
        opened.append(open_in(path))
        if number % 2:
            sent.close()
        del sent
    assert opened[1:] == opened[:1] * 3
    handles.LENDERS.table.clear()
    assert open_in(path) == before == []


def test_each_is_closed_by_itself(tmp_path):
    image = pixels((40, 50, 3))
    state = saved(tmp_path / "a.npy", image)
    first, second = pickle.loads(state), pickle.loads(state)
    assert first is not second
    first.read(0, (0, 0), 9)
    first.close()
    with pytest.raises(SourceError, match="is closed"):
        first.read(0, (0, 0), 9)
    np.testing.assert_array_equal(second.read(0, (0, 0), image.shape[:2]), image)
    assert pickle.loads(pickle.dumps(first)).closed and not pickle.loads(state).closed


def test_a_closed_one_does_not_read_tiles_that_others_left(tmp_path):
    [maker] = [maker for maker in MAKERS if maker.__name__ == "tiff_pyramid"]
    path, options, levels = maker(tmp_path)
    with open_source(path, **options) as source:
        state = pickle.dumps(source)
    first, second = pickle.loads(state), pickle.loads(state)
    for _ in range(2):
        np.testing.assert_array_equal(first.read(0, (0, 0), 8), levels[0][:8, :8])
        np.testing.assert_array_equal(second.read(0, (0, 0), 8), levels[0][:8, :8])
    assert second.statistics.tiles_decoded == 0  # they were the first one's
    first.close()
    with pytest.raises(SourceError, match="is closed"):
        first.read(0, (0, 0), 8)
    np.testing.assert_array_equal(second.read(0, (0, 0), 8), levels[0][:8, :8])
    second.close()  # an error's traceback keeps it alive otherwise, and its file open


def test_copies_are_closed_by_themselves(tmp_path):
    image = pixels((9, 9, 3))
    np.save(tmp_path / "a.npy", image)
    with open_source(tmp_path / "a.npy") as source:
        for duplicate in (copy.copy, copy.deepcopy):
            with duplicate(source) as other:
                np.testing.assert_array_equal(other.read(0, (0, 0), 9), image)
            np.testing.assert_array_equal(source.read(0, (0, 0), 9), image)
        last = copy.copy(source)
    np.testing.assert_array_equal(last.read(0, (0, 0), 9), image)


def test_a_file_that_has_changed(tmp_path):
    """Whoever was sent the old description is told, though the old file is still open; the new one is read anew."""
    state = saved(tmp_path / "a.npy", np.zeros((40, 40, 1), np.uint8))
    early = pickle.loads(state)
    assert not early.read(0, (0, 0), 40).any()
    os.rename(tmp_path / "a.npy", tmp_path / "b.npy")
    new = saved(tmp_path / "a.npy", np.ones((50, 50, 1), np.uint8))
    assert not early.read(0, (0, 0), 40).any()  # still has the one that it opened
    with pytest.raises(SourceError, match=r"a\.npy: .*has changed since it was first opened"):
        pickle.loads(state).read(0, (0, 0), 40)
    assert pickle.loads(new).read(0, (0, 0), 50).all()
    os.unlink(tmp_path / "a.npy")
    with pytest.raises(SourceError, match=r"a\.npy: .*no such file"):
        pickle.loads(new).read(0, (0, 0), 40)


def test_not_more_than_a_number_stay_open(tmp_path):
    count = 2 * handles.LIMIT
    states = []
    for number in range(count):
        states.append(saved(tmp_path / f"{number}.npy", np.full((4, 4, 1), number, np.int16)))
    sent = []
    for _ in range(2):
        for number, state in enumerate(states):
            sent.append(pickle.loads(state))
            assert (sent[-1].read(0, (0, 0), 4) == number).all()
        assert 0 < len(open_in(tmp_path / "0.npy")) <= handles.LIMIT
    assert all((source.read(0, (0, 0), 4) == number % count).all() for number, source in enumerate(sent))
    sent.clear()
    assert len(open_in(tmp_path / "0.npy")) <= handles.LIMIT and len(handles.LENDERS.table) == handles.LIMIT
    handles.LENDERS.table.clear()
    assert not open_in(tmp_path / "0.npy")


def test_arrays_in_memory_are_not_kept():
    with open_source(pixels((9, 9, 3))) as source:
        pickle.loads(pickle.dumps(source)).read(0, (0, 0), 3)
    assert not handles.LENDERS.table


def test_threads(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source:
        state = pickle.dumps(source)

    def use(_):
        with pickle.loads(state) as sent:
            check(sent, levels[:1])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))


def test_forks_do_not_share_positions(made):  # noqa: F811
    path, options, levels = made
    context = multiprocessing.get_context("fork")
    with open_source(path, **options) as source:
        state = pickle.dumps(source)
    sent = pickle.loads(state)
    check(sent, levels[:1])
    errors = context.Queue()
    children = [context.Process(target=child, args=(one, levels[:1], errors)) for one in (sent, pickle.loads(state))]
    for process in children:
        process.start()
    check(sent, levels[:1])
    for process in children:
        process.join(60)
    assert [process.exitcode for process in children] == [0] * 2, errors.get(timeout=1)
