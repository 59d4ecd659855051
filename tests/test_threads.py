"""The thread pool: the same numbers with any number of threads, from several Python threads, and after fork()."""

import concurrent.futures
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

GENERATOR = np.random.default_rng(0)
ATTENTION = GENERATOR.exponential(size=(6, 200, 200)).astype(np.float32)
IMAGE = GENERATOR.normal(size=(4, 150, 160, 3)).astype(np.float32)
ORIGINS = GENERATOR.integers(-20, 150, size=(4, 40, 2))
FEATURES = GENERATOR.normal(size=(64, 30, 200)).astype(np.float32)
SAMPLED = GENERATOR.dirichlet(np.ones(40), size=64)[:, :30].astype(np.float32).copy()
SLOPE = GENERATOR.normal(size=(64, 200)).astype(np.float32)
PATCHES = GENERATOR.normal(size=(4, 40, 24, 24, 3)).astype(np.float32)


def everything(backend):
    """One call of each operation, large enough to be spread over threads; the bytes of every result."""
    options = {"padding": "reflect", "scales": (1, 2)}
    results = [
        *backend.sample(ATTENTION, 100, rng=(1, 2)),
        *backend.sample(ATTENTION, 100, rng=(1, 2), logits=True, replace=True),
        *backend.topk(ATTENTION, 100),
        backend.patch_origins(np.arange(40_000).reshape(4, -1), (200, 200), (1000, 1000), 32),
        backend.extract_patches(IMAGE, ORIGINS, (24, 24), **options),
        backend.extract_patches_backward(PATCHES, ORIGINS, IMAGE, (24, 24), padding="edge"),
    ]
    for estimator in ("des_raj", "murthy", "normalized", "iid"):
        results.append(backend.expectation(FEATURES, SAMPLED, estimator))
        results.extend(backend.expectation_backward(SLOPE, FEATURES, SAMPLED, estimator))
        results.extend(backend.estimator_arrays(SAMPLED, estimator))
    return [np.ascontiguousarray(x).tobytes() for x in results]


def test_results_do_not_depend_on_the_number_of_threads(backend, threads):
    threads(1)
    expected = everything(backend)
    for count in (2, 3, 8):
        threads(count)
        for at, (a, b) in enumerate(zip(everything(backend), expected, strict=True)):
            assert a == b, f"result {at} with {count} threads"


def test_the_number_of_threads(numpy_backend):
    before = numpy_backend.get_num_threads()
    try:
        for count in (1, 5, 2):
            numpy_backend.set_num_threads(count)
            assert numpy_backend.get_num_threads() == count
        numpy_backend.set_num_threads(0)  # one a core
        assert numpy_backend.get_num_threads() >= 1
        for bad in (-1, -(2**31), 2**40, 1.5, "2", None):
            with pytest.raises((ValueError, TypeError), match="threads"):
                numpy_backend.set_num_threads(bad)
    finally:
        numpy_backend.set_num_threads(before)


def test_calls_from_several_python_threads(backend, threads):
    threads(2)
    expected = everything(backend)

    def work():
        return [
            at for _ in range(3) for at, (a, b) in enumerate(zip(everything(backend), expected, strict=True)) if a != b
        ]

    pool = concurrent.futures.ThreadPoolExecutor(5)
    calls = [pool.submit(work) for _ in range(5)]
    pool.shutdown(wait=False)
    assert not concurrent.futures.wait(calls, timeout=120).not_done, "hangs"
    assert [call.result() for call in calls] == [[]] * 5


def test_errors_belong_to_their_thread(numpy_backend):
    """The message is the calling thread's own."""
    wrong = []

    def work(row):
        attention = np.ones((20, 50))
        attention[row] = 0
        for _ in range(200):
            try:
                numpy_backend.sample(attention, 3, rng=0)
                wrong.append("no error")
            except ValueError as error:
                if f" {row}" not in str(error):
                    wrong.append(str(error))

    workers = [threading.Thread(target=work, args=(row,), daemon=True) for row in (3, 7, 19)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive(), "hangs"
    assert not wrong


def test_the_number_of_threads_may_change_while_others_work(numpy_backend):
    before, stop, wrong = numpy_backend.get_num_threads(), threading.Event(), []
    expected = numpy_backend.sample(ATTENTION, 50, rng=0)[0]

    def work():
        while not stop.is_set():
            if (numpy_backend.sample(ATTENTION, 50, rng=0)[0] != expected).any():
                wrong.append(1)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for count in [1, 4, 2, 7, 1, 3] * 5:
        numpy_backend.set_num_threads(count)
        assert (numpy_backend.sample(ATTENTION, 50, rng=0)[0] == expected).all()
    stop.set()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive(), "hangs"
    numpy_backend.set_num_threads(before)
    assert not wrong


def run_python(script, timeout=90):
    """In a fresh interpreter, where the pool is in a known state; a hang becomes a failure."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"hangs: {error.stdout}{error.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SETUP = """
import os, signal, sys, threading
import numpy as np
import ats_core
ats_core.set_num_threads(4)
attention = np.random.default_rng(0).exponential(size=(8, 100_000)).astype(np.float32)

def draw(_=None):
    return ats_core.sample(attention, 200, rng=(1, 2)).indices.tolist()

def in_child(work):
    # True when work() says so in a forked child; the alarm ends a child that hangs
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if work() else 1)
    return os.waitpid(child, 0)[1] == 0
"""


def test_fork_before_and_after_the_pool_has_started(numpy_backend):
    run_python(
        SETUP
        + """
assert in_child(lambda: len(draw()) == 8)            # before the pool runs
expected = draw()
for _ in range(5):
    assert in_child(lambda: draw() == expected)      # after
assert in_child(lambda: in_child(lambda: draw() == expected) and draw() == expected)  # a child's child
assert in_child(lambda: ats_core.set_num_threads(2) or draw() == expected)
assert draw() == expected                            # and the parent goes on
"""
    )


def test_fork_while_the_pool_is_busy(numpy_backend):
    run_python(
        SETUP
        + """
expected = draw()
stop = threading.Event()
def work():
    while not stop.is_set():
        ats_core.sample(attention, 200, rng=(1, 2))
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers: worker.start()
good = [in_child(lambda: draw() == expected) for _ in range(20)]
stop.set()
for worker in workers: worker.join()
assert all(good), good
assert draw() == expected
"""
    )


def test_multiprocessing_by_fork(numpy_backend):
    run_python(
        SETUP
        + """
import multiprocessing
expected = draw()
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map_async(draw, range(6)).get(timeout=60) == [expected] * 6
"""
    )


def test_the_interpreter_ends_with_the_pool_alive(numpy_backend):
    run_python(
        SETUP
        + """
def work():
    for _ in range(20):
        ats_core.sample(attention, 200, rng=(1, 2))
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
draw()  # the interpreter waits for the threads; those of the pool must not keep it
"""
    )
