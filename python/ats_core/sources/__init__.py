"""Images, volumes, videos and sound that do not fit into memory: only what is asked for is read.

`open_source` opens a file, `Source.read` reads a region of one of its levels, `SourceBatch.read_patches` reads patches
of many sources at once, each tile of theirs once. Nothing here needs a framework; the packages that read a format come
with an extra, such as ``python -m pip install 'ats-core[slides]'``.
"""

from ats_core.sources.batch import SourceBatch
from ats_core.sources.cache import get_cache_size, set_cache_size
from ats_core.sources.errors import SourceError
from ats_core.sources.finding import find_sources
from ats_core.sources.function import FunctionSource
from ats_core.sources.opening import open_source
from ats_core.sources.registry import from_handles, to_handles
from ats_core.sources.source import Level, Source, Statistics

__all__ = [
    "FunctionSource",
    "Level",
    "Source",
    "SourceBatch",
    "SourceError",
    "Statistics",
    "find_sources",
    "from_handles",
    "get_cache_size",
    "open_source",
    "set_cache_size",
    "to_handles",
]
