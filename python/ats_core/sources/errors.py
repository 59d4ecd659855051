"""The one error of files that cannot be read, and of packages that are not there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class SourceError(OSError):
    """A file that cannot be opened or read. The message names the file, and the level and region if there is one."""


def require(module: str, extra: str) -> Any:
    """The module of a backend, or an error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{extra} sources need {package}: python -m pip install 'ats-core[{extra}]'") from error


def words(error: BaseException) -> str:
    """An error of a library in one line."""
    text = " ".join(str(error).split())
    if len(text) > 300:
        text = text[:300] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Turn whatever a library raises about a broken file into a SourceError."""
    try:
        yield
    except ImportError:
        raise
    except SourceError as error:
        if str(error).startswith(name):
            raise
        raise SourceError(f"{name}: cannot be opened: {error}") from error
    except FileNotFoundError as error:
        raise SourceError(f"{name}: no such file") from error
    except Exception as error:
        raise SourceError(f"{name}: cannot be opened: {words(error)}") from error


def of_region(error: Exception, name: str, level: int, start: Sequence[int], stop: Sequence[int]) -> Exception:
    """What to raise when a region of a level cannot be read because of `error`."""
    if isinstance(error, ImportError):
        return error
    text = str(error).removeprefix(f"{name}: ") if isinstance(error, SourceError) else words(error)
    ranges = ", ".join(f"{first}:{last}" for first, last in zip(start, stop, strict=True))
    return SourceError(f"{name}: level {level}, region [{ranges}]: {text}")
