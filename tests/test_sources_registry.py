"""Handles of sources: one a source, as long as someone holds it, and within one process."""

import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from ats_core.sources import SourceBatch, SourceError, from_handles, open_source, to_handles
from sources_files import pixels


def sources(count=3):
    return SourceBatch([pixels((20, 10 + number, 3), seed=number) for number in range(count)])


def test_there_and_back():
    batch = sources()
    handles = to_handles(batch)
    assert handles.dtype == np.int64 and handles.shape == (3,) and len(set(handles)) == 3 and handles.min() >= 0
    assert np.array_equal(to_handles(batch[1:]), handles[1:])
    assert np.array_equal(to_handles(reversed(batch)), handles[::-1])
    found = from_handles(handles[[2, 0, 2]])
    assert [source is batch[row] for source, row in zip(found, (2, 0, 2), strict=True)] == [True] * 3
    other = pickle.loads(pickle.dumps(batch[0]))
    assert to_handles([other])[0] not in handles and to_handles([copy.copy(batch[0])])[0] not in handles


def test_nothing_is_held():
    handles = to_handles(sources())  # the batch is gone already
    gc.collect()
    with pytest.raises(ValueError, match=rf"^handles: {handles[0]} stands for no source that is there: nothing holds"):
        from_handles(handles)
    again = sources()
    assert not set(to_handles(again)) & set(handles)


def test_a_closed_source_is_closed(tmp_path):
    np.save(tmp_path / "a.npy", pixels((9, 9, 1)))
    with open_source(tmp_path / "a.npy") as source:
        handles = to_handles([source])
    with pytest.raises(SourceError, match=r"a\.npy: .*is closed"):
        from_handles(handles).read_patches([[[0, 0]]], 3)


def test_threads_agree():
    batch, found = sources(16), []
    start = threading.Barrier(8)

    def work():
        start.wait()
        found.append(to_handles(batch).tolist())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(handles == found[0] for handles in found) and len(set(found[0])) == 16


def test_other_processes():
    """A forked child knows what its parent had, and gives out no number that its parent gives out for another source."""
    batch = sources(2)
    handles = to_handles(batch)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            known = all(a is b for a, b in zip(from_handles(handles), batch, strict=True))
            mine = sources(2)
            os.write(writer, pickle.dumps((known, to_handles(mine))))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        known, theirs = pickle.loads(stream.read())
    os.waitpid(child, 0)
    more = sources(2)
    assert known and not set(theirs) & {*handles, *to_handles(more)}
    with pytest.raises(ValueError, match="or it comes from another process"):
        from_handles(theirs)


def test_a_fresh_process_knows_none():
    batch = sources(1)
    code = "import sys; from ats_core.sources import from_handles; from_handles([int(sys.argv[1])])"
    command = [sys.executable, "-c", code, str(to_handles(batch)[0])]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 1 and "or it comes from another process" in process.stderr
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # sources themselves are sent
        assert pool.apply(_read, (batch[0],)) == batch[0].read(0, (0, 0), 5).tolist()


def _read(source):
    return from_handles(to_handles([source]))[0].read(0, (0, 0), 5).tolist()


def test_bad_input():
    batch = sources(1)
    with pytest.raises(TypeError, match=r"sources: must be open sources.*got 'a\.npy'"):
        to_handles([batch[0], "a.npy"])
    with pytest.raises(TypeError, match="handles: must hold int64 integers, got dtype float32"):
        from_handles(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"handles: must have the shape \(B,\), got \(1, 1\)"):
        from_handles(to_handles(batch)[None])
    with pytest.raises(ValueError, match="sources: must not be empty"):
        from_handles([])
    gray = open_source(pixels((9, 9, 1)))
    with pytest.raises(ValueError, match="sources: must have the same channels"):
        from_handles(to_handles([batch[0], gray]))
