"""The .pxd: a Cython module compiled against the installed package draws NumPy's cells."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ats_core

pytest.importorskip("Cython")
pytest.importorskip("setuptools")

PYX = """
# cython: language_level=3
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from ats_core cimport ats


cdef ats.ats_tensor view(void* data, ats.ats_dtype dtype, int64_t rows, int64_t columns) noexcept nogil:
    cdef ats.ats_tensor tensor
    tensor.data = data
    tensor.dtype = dtype
    tensor.device = ats.ATS_CPU
    tensor.device_index = 0
    tensor.ndim = 2 if columns else 1
    tensor.shape[0] = rows
    tensor.shape[1] = columns
    tensor.strides[0] = columns if columns else 1
    tensor.strides[1] = 1
    return tensor


def draw(float[:, ::1] attention, int64_t[::1] rng, int64_t[:, ::1] indices):
    cdef int64_t rows = attention.shape[0], n = indices.shape[1]
    cdef ats.ats_sample_options options = ats.ats_sample_options(n=n, replace=0, logits=0)
    cdef ats.ats_tensor map_, seed, cells
    cdef ats.ats_tensor probabilities, threshold, log_mass
    cdef size_t bytes = 0
    cdef int status
    cdef double* scratch = <double*>malloc(rows * (n + 2) * sizeof(double))
    cdef void* workspace = NULL
    with nogil:
        map_ = view(&attention[0, 0], ats.ATS_FLOAT32, rows, attention.shape[1])
        seed = view(&rng[0], ats.ATS_INT64, 2, 0)
        cells = view(&indices[0, 0], ats.ATS_INT64, rows, n)
        probabilities = view(scratch, ats.ATS_FLOAT32, rows, n)
        threshold = view(scratch + rows * n, ats.ATS_FLOAT32, rows, 0)
        log_mass = view(scratch + rows * (n + 1), ats.ATS_FLOAT64, rows, 0)
        status = ats.ats_sample_workspace(&map_, &options, &bytes)
        if status == ats.ATS_OK:
            workspace = malloc(bytes + 1)
            status = ats.ats_sample(&map_, &seed, &options, &cells, &probabilities, &threshold, &log_mass, workspace,
                                    ats.ats_thread_pool())
    free(workspace)
    free(scratch)
    if status != ats.ATS_OK:
        raise ValueError(ats.ats_last_error().decode())
"""

SETUP = """
import ats_core
from Cython.Build import cythonize
from setuptools import Extension, setup

paths = ats_core.get_library_dir()
setup(ext_modules=cythonize([Extension(
    "drawing", ["drawing.pyx"], include_dirs=[ats_core.get_include()], libraries=["ats"], library_dirs=[paths],
    runtime_library_dirs=[paths],
)]))
"""

# The Cython module comes first: it must find libats.so by itself.
USE = """
import numpy as np
from drawing import draw

rng = np.random.default_rng(0)
attention = rng.random((4, 600)).astype(np.float32)
indices = np.empty((4, 50), np.int64)
draw(attention, np.array([7, 3]), indices)
try:
    draw(-attention, np.array([7, 3]), indices.copy())
except ValueError as error:
    print(error)
import ats_core

np.testing.assert_array_equal(indices, ats_core.sample(attention, 50, rng=(7, 3)).indices)
print("same picks")
"""


def run(code, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def test_a_cython_module_draws_the_same_cells(tmp_path):
    (tmp_path / "drawing.pyx").write_text(PYX)
    built = run(SETUP, tmp_path, "build_ext", "--inplace")
    assert built.returncode == 0, built.stdout
    used = run(USE, tmp_path)
    assert used.returncode == 0, used.stdout
    assert "same picks" in used.stdout
    assert "attention" in used.stdout.splitlines()[0]  # the core's message for a negative weight


def test_the_pxd_declares_the_whole_c_api():
    header = Path(ats_core.get_include(), "ats", "ats.h").read_text()
    pxd = Path(ats_core.__file__).with_name("ats.pxd").read_text()
    names = set(re.findall(r"\bATS_API [^;(]*?(ats_\w+)\(", header))
    assert len(names) > 20
    assert names == set(re.findall(r"(ats_\w+)\([^)]*\) noexcept", pxd))
    constants = set(re.findall(r"\b(ATS_\w+) = \d", header))
    assert len(constants) > 15
    assert constants <= set(re.findall(r"ATS_\w+", pxd))


def test_folders_hold_what_they_promise():
    assert Path(ats_core.get_include(), "ats", "ats.h").is_file()
    assert Path(ats_core.get_include(), "ats", "ats.hpp").is_file()
    library = Path(ats_core.get_library_dir(), "libats.so")
    assert library.is_file() and not library.is_symlink()
