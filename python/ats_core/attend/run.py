"""A run: which files, whether their results are those that are asked for, progress, and what is told at the end."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from ats_core.attend.local import run_local
from ats_core.attend.models import ModelError
from ats_core.attend.outputs import is_result, remove_partial
from ats_core.attend.work import Job, Outcome, Settings
from ats_core.plot import require
from ats_core.sources import find_sources

RUN, TABLE = "run.json", "predictions.csv"
# What decides the results; the rest decides how fast they come.
DECIDING = ("model", "weights", "seed", "size", "downsample", "view_size", "classes")


def attend_all(
    files: Sequence[str],
    settings: Settings,
    *,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
) -> int:
    """Attend to files and to the files in folders; see ``ats-core attend --help``.

    Files whose results are there from an earlier run with the same settings are left as they are.

    Args:
        engine: "local" or "ray"; address and workers are Ray's.

    Returns:
        How many files failed.

    Raises:
        ValueError: nothing to do; two files would write into the same folder; the results in `settings.out` are of other
            settings. ModelError: the model cannot be loaded. SourceError: no such file or folder.
        OSError: nothing can be written to `settings.out`. ImportError: a package is missing.
    """
    jobs = find_jobs(files)
    settings = replace(
        settings,
        model=_absolute(settings.model),
        weights=settings.weights and _absolute(settings.weights),
        out=os.path.abspath(settings.out),
        code=os.getcwd(),
    )
    tqdm = require("tqdm", "attend").tqdm
    for module in ("bokeh", "PIL", "matplotlib", "tifffile"):  # before any work
        require(module, "attend")
    started = _start(engine, settings, jobs, address, workers)
    _claim(settings)
    outcomes = []
    try:
        # Workers have ended before what they left is removed.
        with closing(started), tqdm(total=len(jobs), unit="file", disable=None) as bar:
            for outcome in started:
                outcomes.append(outcome)
                bar.update()
                bar.set_postfix_str(outcome.job.name[-40:])
                if outcome.error is not None:
                    path = outcome.job.path
                    bar.write(outcome.error if path in outcome.error else f"{path}: {outcome.error}", file=sys.stderr)
    finally:
        for job in jobs:
            remove_partial(Path(settings.out, job.name))
        _write_table(Path(settings.out, TABLE), outcomes, settings)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    skipped = sum(outcome.skipped for outcome in outcomes)
    print(
        f"{len(outcomes)} files: {len(outcomes) - skipped - len(failed)} done, {skipped} were done already, "
        f"{len(failed)} failed. Results are in {settings.out}",
        file=sys.stderr,
    )
    return len(failed)


def find_jobs(files: Sequence[str]) -> list[Job]:
    """A job for every file, and for every file in a folder but for results. Its name is that of the file in the folder."""
    jobs: dict[str, Job] = {}
    for given in files:
        found = [path for path in find_sources(given) if path == given or not is_result(path)]
        if not found:
            raise ValueError(f"{given}: has no file of a known format in it")
        for path in found:
            job = Job(_absolute(path), _name(path, given))
            if jobs.setdefault(job.name, job).path != job.path:
                raise ValueError(
                    f"{jobs[job.name].path} and {job.path}: would both have their results in {job.name}; give a folder "
                    "that both are in"
                )
    return list(jobs.values())


def _name(path: str, given: str) -> str:
    """Where a file's results lie in the folder of results."""
    if "://" in path:
        name = path.partition("://")[2]
    elif path != os.fspath(given):
        name = os.path.relpath(path, given)
    else:
        file, separator, inside = path.partition("::")
        name = os.path.basename(os.path.abspath(file))
        name += separator.replace(":", "_") + inside.strip("/").replace("/", "_")
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def _absolute(path: str) -> str:
    """For workers, which may run in another folder. What is no path (a URL, module:function) stays as it is."""
    if "://" in path:
        return path
    if os.path.exists(path):
        return os.path.abspath(path)
    file, separator, rest = path.partition(":")
    return os.path.abspath(file) + separator + rest if not separator or os.path.isfile(file) else path


def _start(
    engine: str, settings: Settings, jobs: Sequence[Job], address: str | None, workers: int | None
) -> Generator[Outcome]:
    if engine == "ray":
        from ats_core.attend.ray_engine import run_ray

        return run_ray(settings, jobs, address, workers)
    return run_local(settings, jobs)


def _claim(settings: Settings) -> None:
    """Make the folder of results, or see that the results in it are of the same model and settings."""
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    facts = {name: value for name, value in asdict(settings).items() if name in DECIDING}
    facts["sha256"] = [_digest(path) for path in (settings.model, settings.weights) if path is not None]
    text = json.dumps(facts, indent=1) + "\n"
    try:
        before = (out / RUN).read_text()
    except FileNotFoundError:
        before = None
    others = {path.name for path in out.iterdir()} - {RUN, TABLE}
    if before is None and others:
        raise ValueError(f"--out: {out} holds something else; choose a new folder")
    if not others:  # no result yet
        (out / RUN).write_text(text)
    elif before != text:
        try:
            old = json.loads(before or "")
        except ValueError:
            old = {}
        other = ", ".join(name for name in facts if old.get(name) != json.loads(text)[name])
        raise ValueError(f"--out: {out} holds results of another run (other {other}); choose a new folder")


def _digest(path: str) -> str | None:
    """SHA-256 of a model's file; None for a function of an installed module."""
    file = path if os.path.exists(path) else path.rpartition(":")[0]
    try:
        with open(file, "rb") as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        if file.endswith(".py") or os.sep in path:
            raise ModelError(f"model: {path}: no such file") from None
        return None


def _write_table(path: Path, outcomes: Sequence[Outcome], settings: Settings) -> None:
    """All predictions, a line a file, sorted."""
    unfinished = path.with_suffix(".part")
    # A name that is no UTF-8 is written as it is.
    with open(unfinished, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "results", "class", "prediction", "error"])
        for outcome in sorted(outcomes, key=lambda outcome: outcome.job.name):
            summary = outcome.summary or {}
            prediction = summary.get("prediction")
            writer.writerow(
                [
                    outcome.job.path,
                    "" if outcome.summary is None else outcome.job.name,
                    summary.get("class") or "",
                    "" if prediction is None else json.dumps(prediction),
                    outcome.error or "",
                ]
            )
    unfinished.replace(path)
