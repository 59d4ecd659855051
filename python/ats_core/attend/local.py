"""Files one after the other, in this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ats_core.attend.work import Job, Outcome, Settings, Worker


def run_local(settings: Settings, jobs: Sequence[Job]) -> Generator[Outcome]:
    """Yield what became of each job, in their order. The model is loaded before this returns."""
    worker = Worker(settings)
    return (worker(job) for job in jobs)
