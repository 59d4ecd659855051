"""The CUDA kernels as nvcc compiles them, on a machine without a GPU: they link, load without a driver, and say so."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ats_core

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "cuda" / "without_driver.c"


def run(*command, **options):
    result = subprocess.run(
        [str(word) for word in command],
        check=False,
        cwd=ROOT.anchor,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}"
    return result.stdout


def need(program):
    found = shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{program} is not installed: the CUDA kernels were not compiled")
    return found


@pytest.fixture(scope="module")
def library():
    """libats.so with kernels for one architecture, hardly optimised, which takes a third of the time. The folder is kept,
    so that the next run compiles what changed."""
    need("nvcc")
    folder = ROOT / "build" / "nvcc"
    options = ["-DATS_BUILD_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90", "-DCMAKE_BUILD_TYPE=Unoptimised"]
    options.append("-DCMAKE_CUDA_FLAGS=-Xcicc=-O1 -Xptxas=-O1")
    run(need("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={need('ninja')}", *options)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(min(2, os.cpu_count() or 1)))
    said = run(need("cmake"), "--build", folder, "--target", "ats", "--parallel", jobs)
    assert "warning" not in said, said
    [built] = folder.glob("libats.so")
    return built


def test_every_kernel_file_is_in_the_library(library):
    objects = {path.name for path in (library.parent / "CMakeFiles" / "ats_kernels.dir").rglob("*.o")}
    assert objects == {f"{path.name}.o" for path in (ROOT / "libats" / "src").glob("*.cu")}


def test_the_library_needs_no_cuda_to_be_there(library):
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run(need("readelf"), "-d", library))
    assert needed and not [name for name in needed if "cuda" in name or "torch" in name]


def test_it_exports_its_api_and_nothing_else(library):
    header = Path(ats_core.get_include(), "ats", "ats.h").read_text()
    declared = set(re.findall(r"\bATS_API [^;(]*?(ats_\w+)\(", header))
    symbols = run(need("nm"), "-D", "--defined-only", library).splitlines()
    assert {line.split()[-1] for line in symbols} == declared


def test_without_a_driver_it_says_so(library, tmp_path):
    """And the CPU's operations work, in the same process."""
    program, include = tmp_path / "program", ROOT / "libats" / "include"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{include}", f"-L{library.parent}"]
    run(need("cc"), *flags, PROGRAM, "-o", program, "-lats", "-lm", f"-Wl,-rpath,{library.parent}")
    # A GPU that may be there is hidden.
    print(run(program, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}))
