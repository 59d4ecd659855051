"""Files in worker processes: on this machine, or on those of a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ats_core.attend.models import ModelError
from ats_core.attend.outputs import read_summary
from ats_core.attend.work import Job, Outcome, Settings, Worker

ATTEMPTS = 3  # at a file whose worker ends without a word each time
OBJECT_STORE_BYTES = 128 * 2**20  # nothing but names and summaries passes through it
SECONDS_TO_CONNECT = 10.0  # Ray itself would try for many minutes


def run_ray(
    settings: Settings, jobs: Sequence[Job], address: str | None = None, workers: int | None = None
) -> Generator[Outcome]:
    """Yield what became of each job, as they come, in any order.

    A worker that is killed is started again and goes on with the same file. A file whose worker ends `ATTEMPTS` times is
    given up: its outcome is an error. Results are those of `run_local` with as many threads: `settings.threads`, or as
    many as the framework takes by itself on the worker's machine.

    Args:
        settings, jobs: paths in them mean the same on all machines.
        address: host:port of a cluster, or "auto" for the one that this machine belongs to; by default RAY_ADDRESS, and
            without it a Ray of this machine alone, for as long as the run takes. A Ray that this process is connected to
            is used as it is.
        workers: number of processes; by default as many as there is room for: one a GPU, or one for every
            `settings.threads` CPUs, or without threads one a machine.

    Raises:
        ImportError: Ray is not installed. ConnectionError: no cluster is there.
        ModelError: the model cannot be loaded; when the first outcome is asked for.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: must be at least 1, got {workers}")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ImportError("the Ray engine needs Ray: python -m pip install 'ats-core[ray]'") from error
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    return _run(settings, jobs, address, workers)


def _run(settings: Settings, jobs: Sequence[Job], address: str, workers: int | None) -> Generator[Outcome]:
    left = []
    for job in jobs:  # what is there already needs no workers
        try:
            summary = read_summary(Path(settings.out, job.name))
        except (OSError, ValueError) as error:
            yield Outcome(job, error=f"{type(error).__name__}: {error}")
            continue
        if summary is None:
            left.append(job)
        else:
            yield Outcome(job, summary, skipped=True)
    if left:
        with _connection(address, workers and workers * (settings.threads or 1)):
            yield from _map(settings, left, workers or _count_workers(settings))


def _map(settings: Settings, jobs: Sequence[Job], workers: int) -> Generator[Outcome]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a file takes as long as it takes
    context.max_consecutive_actor_init_deaths = ATTEMPTS
    # Ray Data starts killed workers, and what they were at, again without end. What ends it are the counted attempts.
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
    with DataContext.current(context):
        rows = from_items([{"job": pickle.dumps(job)} for job in jobs], override_num_blocks=len(jobs)).map(
            _RayWorker,
            fn_constructor_args=(settings, attempts, os.environ.get("OMP_NUM_THREADS")),
            # One file at a time: a file that waits behind one that ends the worker would be counted too.
            compute=ActorPoolStrategy(size=min(workers, len(jobs)), max_tasks_in_flight_per_actor=1),
            num_cpus=settings.threads or 1,
            num_gpus=int(settings.device.startswith("cuda")) or None,
        )
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # errors are raised
    try:
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for pickled in table["outcome"]:
                outcome = pickle.loads(pickled.as_py())
                if isinstance(outcome, ModelError):
                    raise outcome
                yield outcome
    finally:
        logger.setLevel(level)


class _Attempts:
    """Counts the attempts at each file, in a process that outlives the workers."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]


class _RayWorker:
    """A `Worker` for rows of Ray Data, one a job."""

    def __init__(self, settings: Settings, attempts: Any, openmp_threads: str | None) -> None:
        if settings.device.startswith("cuda"):
            settings = replace(settings, device="cuda")  # Ray shows a worker none but its own
        self._settings = settings
        self._attempts = attempts
        self._worker: Worker | None = None
        # Ray sets it to the worker's share of CPUs. Frameworks, which are not loaded yet, take it for their threads.
        os.environ.pop("OMP_NUM_THREADS", None)
        if openmp_threads is not None:
            os.environ["OMP_NUM_THREADS"] = openmp_threads

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": pickle.dumps(self._attend(pickle.loads(row["job"])))}

    def _attend(self, job: Job) -> Outcome | ModelError:
        import ray

        if ray.get(self._attempts.add.remote(job.name)) > ATTEMPTS:
            return Outcome(job, error=f"{job.path}: the worker was killed, or crashed, {ATTEMPTS} times")
        if self._worker is None:  # not before the attempt is counted: a model can crash a worker, too
            try:
                self._worker = Worker(self._settings)
            except ModelError as error:
                return error
            except Exception as error:  # noqa: BLE001 - of the code of a model
                return ModelError(f"model: {self._settings.model}: {type(error).__name__}: {error}")
        # Results that are there now are of a worker that was killed before it could tell.
        return replace(self._worker(job), skipped=False)


def _check_address(address: str) -> None:
    if address in ("local", "auto") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"address: must be host:port or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"address: no Ray cluster at {address}: {error}") from error


@contextmanager
def _connection(address: str, cpus: int | None) -> Iterator[None]:
    """A Ray to run on. With address "local" it is said to have that many CPUs, so that the workers have room."""
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(address, logging_level=logging.ERROR, **options)
    try:
        yield
    finally:
        ray.shutdown()


def _count_workers(settings: Settings) -> int:
    """How many the machines have room for."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if settings.device.startswith("cuda"):
        return max(1, sum(int(machine.get("GPU", 0)) for machine in machines))
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    return max(1, sum(count // (settings.threads or count) for count in cpus))
