"""One file after the other: what a process does of a run, and what it tells of each file."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ats_core.attend.models import Model, load_model
from ats_core.attend.outputs import read_summary, write_results
from ats_core.sources import SourceError, open_source


@dataclass(frozen=True)
class Settings:
    """What is the same for every file of a run. It is sent to workers.

    Attributes:
        model: path of a saved model, or "module:name" or "file.py:name" of a function that makes one.
        weights: for such a function, the file of its state; None: as it is made.
        out: folder for the results; each file has a folder in it.
        seed: of the random numbers; a file's draws depend on it and on the file's name within the run, not on others.
        size, downsample: of the thumbnails that the attention network is given (`Source.thumbnail`); one of them.
        view_size: of the pictures for people, pixels of their longest axis.
        classes: names of the predicted classes; None: numbers.
        device: as PyTorch names it; Keras takes the one it has.
        threads: of the framework, in each process; results may differ in the last bits with it.
        code: a folder in which modules that the model needs are looked for too.
    """

    model: str
    out: str
    weights: str | None = None
    seed: int = 0
    size: int | None = None
    downsample: float | None = None
    view_size: int = 4096
    classes: tuple[str, ...] | None = None
    device: str = "cpu"
    threads: int | None = None
    code: str | None = None


@dataclass(frozen=True)
class Job:
    """A file, and the name of its folder of results (also its name within the run: unique, with / between parts)."""

    path: str
    name: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `summary` (see `write_results`), or the words of an error.

    `skipped`: the results were there already.
    """

    job: Job
    summary: dict[str, Any] | None = None
    error: str | None = None
    skipped: bool = False
    seconds: float = 0.0


class Worker:
    """Attends to files with a model that is loaded once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._model: Model = load_model(settings)

    def __call__(self, job: Job) -> Outcome:
        """Attend to a file and write its results, all or none of them. An error becomes a part of the outcome."""
        start = time.monotonic()
        folder = Path(self._settings.out, job.name)
        try:
            summary = read_summary(folder)
            if summary is not None:
                return Outcome(job, summary, skipped=True)
            with open_source(job.path) as source:
                attended = self._model.attend(source, rng=to_rng(self._settings.seed, job.name))
                summary = write_results(attended, source, folder, self._settings)
        except Exception as error:  # noqa: BLE001 - of a broken file, or of a model that does not suit it
            words = str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"
            return Outcome(job, error=words, seconds=time.monotonic() - start)
        return Outcome(job, summary, seconds=time.monotonic() - start)


def to_rng(seed: int, name: str) -> tuple[int, int]:
    """(seed, offset): a stream of random numbers that no other name is likely to have."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=7).digest()
    return seed, int.from_bytes(digest, "little")
