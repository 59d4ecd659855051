"""Damage files and read them: every one is read or refused with a SourceError, without a crash or a hang.

    python tests/sources_fuzz.py [--count 1000] [--seed 0] [--share] [NAMES]

Prints a line a format. Runs in a process of its own, because a library that crashes would take the tests along.
"""

import argparse
import faulthandler
import logging
import os
import resource
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import ats_core
from ats_core.sources import SourceError, open_source

sys.path.insert(0, str(Path(__file__).parent))
import sources_files

SECONDS = 20  # for one file
MEMORY = 8 << 30


def damage(data, generator):
    """Cut bytes off, or change some: anywhere, or near the beginning where headers are."""
    data = bytearray(data)
    kind = generator.integers(8)
    if kind == 0:
        return data[: generator.integers(len(data))]
    reach = len(data) if kind < 5 else min(len(data), 600)
    if kind == 1:
        first = generator.integers(reach)
        last = min(len(data), first + int(generator.integers(1, 200)))
        data[first:last] = bytes(last - first)
        return data
    for _ in range(generator.integers(1, 12)):
        data[generator.integers(reach)] = generator.integers(256)
    return data


def read_all(path, options):
    with open_source(path, **options) as source:
        for number, level in enumerate(source.levels):
            size = [min(length, 600) for length in level.shape]
            source.read(number, [-1] * len(size), size)
            source.read(number, [length // 2 for length in level.shape], [5] * len(size), padding="reflect")
        source.thumbnail(16)
        repr(source)


def fuzz(maker, count, seed):
    """How many of `count` damaged files were refused."""
    refused = 0
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "good").mkdir()
        path, options, _ = maker(Path(folder) / "good")
        file, _, inside = str(path).removeprefix("file://").partition("::")
        inside = "::" + inside if inside else ""
        members = sorted(x for x in Path(file).rglob("*") if x.is_file()) if os.path.isdir(file) else [Path(file)]
        for number in range(count):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            member = members[generator.integers(len(members))]
            good = member.read_bytes()
            member.write_bytes(damage(good, generator))
            try:
                read_all(("file://" if "file://" in str(path) else "") + file + inside, options)
            except SourceError as error:
                assert file in str(error), f"the message does not name the file: {error}"
                refused += 1
            except BaseException:
                shutil.copy(member, f"{tempfile.gettempdir()}/damaged-{maker.__name__}-{number}")
                print(f"{maker.__name__}: number {number} of seed {seed}, {member.name}", flush=True)
                raise
            finally:
                member.write_bytes(good)
                faulthandler.cancel_dump_traceback_later()
    return refused


BACKENDS = ("npy", "tiff", "openslide", "zarr", "hdf5", "dicom", "video", "audio", "nifti")


def backend_of(name):
    return next((backend for backend in BACKENDS if backend in name), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", action="store_true", help="the count is divided among the formats of a backend")
    parser.add_argument("names", nargs="*", choices=[[], *sources_files.NAMES], metavar="NAMES")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    ats_core.set_num_threads(1)
    for maker in sources_files.MAKERS:
        name = maker.__name__
        backend = backend_of(name)
        if backend is not None and (not arguments.names or name in arguments.names):
            formats = sum(backend_of(other) == backend for other in sources_files.NAMES)
            count = -(-arguments.count // formats) if arguments.share else arguments.count
            print(f"{name} ...", flush=True)
            print(f"{name}: {count} damaged, {fuzz(maker, count, arguments.seed)} refused", flush=True)


if __name__ == "__main__":
    main()
