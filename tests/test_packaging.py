"""What is built and installed: the library alone for C and C++, the wheel, and adapters compiled at first import."""

import os
import re
import shutil
import subprocess
import sys
import threading
import venv
from pathlib import Path

import pytest

import ats_core

ROOT = Path(__file__).parents[1]
CONSUMER = ROOT / "tests" / "cmake_consumer"
PACKAGE = Path(ats_core.get_include()).parent
JOBS = str(min(2, os.cpu_count() or 1))


def run(*command, check=True, **environment):
    """Run a command in a neutral folder; the environment's None entries are taken out."""
    merged = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": JOBS, **environment}
    merged = {name: str(value) for name, value in merged.items() if value is not None}
    result = subprocess.run(
        [str(word) for word in command],
        check=False,
        cwd=ROOT.anchor,
        env=merged,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert not check or result.returncode == 0, f"{command}\n{result.stdout}"
    return result


def need(program):
    """Return the program's path, from this Python's environment before any other; skip where there is none."""
    found = shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


# ---- the library alone ----


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """libats configured, built and installed by CMake, with no Python in it: what `make test` has built already."""
    prefix = tmp_path_factory.mktemp("standalone") / "prefix"
    build = ROOT / "build" / "release"
    cmake = need("cmake")
    run(cmake, "-S", ROOT, "--preset", "release", PATH=os.pathsep.join([str(Path(cmake).parent), os.environ["PATH"]]))
    run(cmake, "--build", build, "--target", "ats")
    run(cmake, "--install", build, "--prefix", prefix)
    return prefix


def test_a_c_and_a_cpp_program_use_find_package(installed, tmp_path):
    run(need("cmake"), "-S", CONSUMER, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={installed}")
    run(need("cmake"), "--build", tmp_path)
    for program in ("consumer_c", "consumer_cc"):
        assert run(tmp_path / program).stdout.startswith(f"libats {ats_core.__version__}: ")


def test_find_package_refuses_another_version(installed, tmp_path):
    shutil.copytree(CONSUMER, tmp_path / "source")
    cmakelists = tmp_path / "source" / "CMakeLists.txt"
    cmakelists.write_text(cmakelists.read_text().replace("find_package(ats 0.1 ", "find_package(ats 99.0 "))
    folders = ["-S", tmp_path / "source", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}"]
    result = run(need("cmake"), *folders, check=False)
    assert result.returncode != 0 and "99.0" in result.stdout


def test_a_c_program_uses_pkg_config_after_the_tree_moved(installed, tmp_path):
    pkg_config = need("pkg-config")
    moved = shutil.copytree(installed, tmp_path / "moved", symlinks=True)
    [folder] = {path.parent for path in moved.rglob("ats.pc")}
    flags = run(pkg_config, "--cflags", "--libs", "ats", PKG_CONFIG_PATH=folder).stdout.split()
    assert run(pkg_config, "--modversion", "ats", PKG_CONFIG_PATH=folder).stdout.strip() == ats_core.__version__
    run(need("cc"), "-std=c11", CONSUMER / "consumer.c", "-o", tmp_path / "program", *flags, "-lm")
    run(tmp_path / "program", LD_LIBRARY_PATH=folder.parent)


def test_the_library_exports_its_api_and_nothing_else(installed):
    nm = need("nm")
    declared = set(
        re.findall(r"\bATS_API [^;(]*?(ats_\w+)\(", Path(ats_core.get_include(), "ats", "ats.h").read_text())
    )
    libraries = [PACKAGE / "lib" / "libats.so", *installed.rglob("libats.so")]
    assert len(libraries) == 2
    for library in libraries:
        symbols = run(nm, "-D", "--defined-only", library).stdout.splitlines()
        assert {line.split()[-1] for line in symbols} == declared


def test_sonames(installed):
    readelf = need("readelf")
    major, minor, _ = ats_core.__version__.split(".")
    soversion = f"0.{minor}" if major == "0" else major
    [standalone] = installed.rglob("libats.so")
    for library, soname in [(standalone, f"libats.so.{soversion}"), (PACKAGE / "lib" / "libats.so", "libats.so")]:
        assert f"soname: [{soname}]" in run(readelf, "-d", library).stdout
    assert not [path for path in PACKAGE.rglob("*") if path.is_symlink()]


# ---- the wheel ----


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    run(*command, f"--config-settings=build-dir={ROOT / 'build' / 'python'}")  # where `make install` has built it
    [path] = folder.glob("ats_core-*.whl")
    return path


@pytest.fixture(scope="module")
def numpy_only(wheel, tmp_path_factory):
    """The Python of an empty environment with the wheel and NumPy."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    numpy = __import__("numpy").__version__
    run(python, "-m", "pip", "install", f"numpy=={numpy}", wheel)
    return python


def test_the_wheel_works_with_numpy_alone(numpy_only):
    packages = run(numpy_only, "-m", "pip", "list", "--format=freeze").stdout
    assert "torch" not in packages
    code = (
        "import numpy as np, ats_core; s = ats_core.sample(np.ones((2, 3, 3)), 9, rng=1); "
        "assert (np.sort(s.indices) == np.arange(9)).all(); print(ats_core.__version__)"
    )
    assert run(numpy_only, "-c", code).stdout.strip() == ats_core.__version__


@pytest.mark.parametrize(
    "module, name",
    [("torch", "PyTorch"), ("tensorflow", "TensorFlow"), ("keras", "Keras")],
)
def test_without_a_framework_the_error_says_so(numpy_only, module, name):
    result = run(numpy_only, "-c", f"import ats_core.{module}", check=False)
    assert result.returncode != 0
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith(("ImportError: ", "ModuleNotFoundError: ")) and name in last and "pip install" in last


def test_the_package_says_what_it_has():
    info = ats_core.build_info()
    assert info["version"] == ats_core.__version__
    assert all(re.fullmatch(r"\d+\w*(-real|-virtual)?|native|all|all-major", x) for x in info["cuda_architectures"])


# ---- adapters compiled at first import ----

IMPORT = "import ats_core.torch, torch; print('imported', ats_core.__file__)"


@pytest.fixture
def without_adapter(tmp_path):
    """A copy of the installed package as if the frameworks had come after it: PYTHONPATH and cache folder."""
    pytest.importorskip("torch")
    copy = tmp_path / "site" / "ats_core"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "_ats_torch.so", "_ats_tensorflow*"))
    return {"PYTHONPATH": copy.parent, "ATS_CACHE_DIR": tmp_path / "cache", "CXX": None}


def test_the_first_import_builds_and_the_second_is_quiet(without_adapter):
    first = run(sys.executable, "-c", IMPORT, **without_adapter).stdout.splitlines()
    built = list(without_adapter["ATS_CACHE_DIR"].rglob("*"))
    assert [path.name for path in built if path.is_file()] == ["_ats_torch.so"]
    [library] = [path for path in built if path.is_file()]
    assert first[0].startswith("ats_core: ") and "PyTorch" in first[0] and str(library) in first[0]
    assert first[1:] == [f"imported {without_adapter['PYTHONPATH'] / 'ats_core' / '__init__.py'}"]
    changed = library.stat().st_mtime_ns
    assert run(sys.executable, "-c", IMPORT, **without_adapter).stdout.splitlines() == first[1:]
    assert library.stat().st_mtime_ns == changed


def test_two_processes_may_build_at_once(without_adapter):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(run(sys.executable, "-c", IMPORT, **without_adapter)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.stdout.splitlines()[-1].split()[0] for result in results] == ["imported"] * 2
    assert len([path for path in without_adapter["ATS_CACHE_DIR"].rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"CXX": "/nonexistent"}, ["CXX=/nonexistent", "install g++"]),
        ({"CXX": "false"}, ["the compiler failed", "false -std=c++17"]),
        ({"ATS_CACHE_DIR": "/proc/no"}, ["ATS_CACHE_DIR", "/proc/no"]),
    ],
    ids=["no compiler", "compiler fails", "no cache folder"],
)
def test_a_build_that_cannot_be_says_why(without_adapter, change, words):
    result = run(sys.executable, "-c", IMPORT, check=False, **{**without_adapter, **change})
    assert result.returncode != 0
    message = result.stdout[result.stdout.index("ImportError: ") :]
    assert all(word in message for word in words), message


def test_missing_headers_are_named(without_adapter, tmp_path):
    code = f"import torch; torch.__file__ = {str(tmp_path / 'torch' / '__init__.py')!r}; import ats_core.torch"
    result = run(sys.executable, "-c", code, check=False, **without_adapter)
    assert "ImportError: " in result.stdout and f"no folder {tmp_path / 'torch' / 'include'}" in result.stdout


def test_an_old_pytorch_is_refused():
    pytest.importorskip("torch")
    code = "import torch; torch.__version__ = type(torch.__version__)('2.9.1'); import ats_core.torch"
    result = run(sys.executable, "-c", code, check=False)
    assert "ImportError: ats_core.torch needs PyTorch 2.10 or newer" in result.stdout and "2.9.1" in result.stdout


def test_the_prebuilt_adapter_is_used():
    pytest.importorskip("torch")
    code = "import ats_core._build as b; print(b.adapter_path('torch'))"
    path = run(sys.executable, "-c", code, CXX="/nonexistent").stdout.strip()
    assert path == str(PACKAGE / "torch" / "_ats_torch.so")


# ---- the operations on CUDA: a library that this PyTorch may have nothing for ----

STREAM = "aoti_torch_get_current_cuda_stream"  # all that a PyTorch without CUDA lacks of it


@pytest.fixture(scope="module")
def pytorch_with_cuda(tmp_path_factory):
    """The folder of a PyTorch as one with CUDA looks to a compiler: this one's headers and library, and an empty other."""
    home = Path(pytest.importorskip("torch").__file__).parent
    copy = tmp_path_factory.mktemp("pytorch") / "torch"
    (copy / "lib").mkdir(parents=True)
    (copy / "include").symlink_to(home / "include")
    (copy / "lib" / "libtorch_cpu.so").symlink_to(home / "lib" / "libtorch_cpu.so")
    (copy / "empty.c").touch()
    library = copy / "lib" / "libtorch_cuda.so"
    run(need("cc"), "-shared", "-Wl,-soname,libtorch_cuda.so", copy / "empty.c", "-o", library)
    return copy


def missing_in_this_pytorch(library):
    home = Path(pytest.importorskip("torch").__file__).parent / "lib"
    exported = {
        line.split()[-1]
        for line in run(need("nm"), "-D", "--defined-only", home / "libtorch_cpu.so").stdout.splitlines()
    }
    undefined = {line.split()[-1] for line in run(need("nm"), "-D", "-u", library).stdout.splitlines()}
    return {name for name in undefined if name.startswith(("aoti_torch_", "torch_"))} - exported


def test_the_wheel_has_the_library_for_cuda():
    library = PACKAGE / "torch" / "_ats_torch_cuda.so"
    needed = run(need("readelf"), "-d", library).stdout
    assert all(f"[{name}.so]" in needed for name in ("libats", "libtorch_cpu", "libtorch_cuda"))
    assert not re.search(r"libcuda|libcudart", needed)
    assert missing_in_this_pytorch(library) <= {STREAM}


def test_the_library_for_cuda_is_built_where_pytorch_has_cuda(without_adapter, pytorch_with_cuda):
    (without_adapter["PYTHONPATH"] / "ats_core" / "torch" / "_ats_torch_cuda.so").unlink()
    code = (
        f"import torch; torch.__file__ = {str(pytorch_with_cuda / '__init__.py')!r}; "
        "import ats_core._build as b; print(b.adapter_path('torch_cuda'))"
    )
    said, path = run(sys.executable, "-c", code, **without_adapter).stdout.splitlines()
    assert said.startswith("ats_core: building") and path.endswith("/_ats_torch_cuda.so") and path in said
    assert missing_in_this_pytorch(path) <= {STREAM}


def test_a_pytorch_without_cuda_leaves_it_alone():
    if pytest.importorskip("torch").version.cuda:
        pytest.skip("this PyTorch has CUDA")
    code = "import ats_core.torch; print([line for line in open('/proc/self/maps') if '_ats_torch_cuda' in line])"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"


# ---- the same for TensorFlow, whose binaries serve one version each ----

IMPORT_TENSORFLOW = "import ats_core.tensorflow as ats; print('drew', ats.sample([[1.0, 2.0]], 2).indices.shape)"


def test_an_adapter_for_another_tensorflow_is_not_used(without_adapter):
    tensorflow = pytest.importorskip("tensorflow")
    stale = without_adapter["PYTHONPATH"] / "ats_core" / "tensorflow" / "_ats_tensorflow_2.17.0.so"
    stale.write_bytes(b"for another version")
    first = run(sys.executable, "-c", IMPORT_TENSORFLOW, **without_adapter).stdout.splitlines()
    [library] = [path for path in without_adapter["ATS_CACHE_DIR"].rglob("*") if path.is_file()]
    [said] = [line for line in first if line.startswith("ats_core: ")]
    assert f"TensorFlow {tensorflow.__version__}" in said and str(library) in said and first[-1] == "drew (1, 2)"
    changed = library.stat().st_mtime_ns
    second = run(sys.executable, "-c", IMPORT_TENSORFLOW, **without_adapter).stdout.splitlines()
    assert not [line for line in second if line.startswith("ats_core: ")] and second[-1] == "drew (1, 2)"
    assert library.stat().st_mtime_ns == changed


def test_a_tensorflow_adapter_that_cannot_be_built_says_why(without_adapter, tmp_path):
    pytest.importorskip("tensorflow")
    result = run(sys.executable, "-c", IMPORT_TENSORFLOW, check=False, **{**without_adapter, "CXX": "/nonexistent"})
    assert "ImportError: ats_core has to compile its adapter for TensorFlow" in result.stdout
    assert "CXX=/nonexistent" in result.stdout and "install g++" in result.stdout
    moved = f"import tensorflow as tf; tf.__file__ = {str(tmp_path / 'tensorflow' / '__init__.py')!r}; "
    result = run(sys.executable, "-c", moved + IMPORT_TENSORFLOW, check=False, **without_adapter)
    assert "ImportError: " in result.stdout and f"no folder {tmp_path / 'tensorflow' / 'include'}" in result.stdout


def test_the_prebuilt_tensorflow_adapter_is_used():
    version = pytest.importorskip("tensorflow").__version__
    code = "import ats_core._build as b; print(b.adapter_path('tensorflow'))"
    path = run(sys.executable, "-c", code, CXX="/nonexistent").stdout.splitlines()[-1]
    assert path == str(PACKAGE / "tensorflow" / f"_ats_tensorflow_{version}.so")


def test_an_old_tensorflow_is_refused():
    pytest.importorskip("tensorflow")
    code = "import tensorflow as tf; tf.__version__ = '2.17.1'; import ats_core.tensorflow"
    result = run(sys.executable, "-c", code, check=False)
    assert "ImportError: ats_core.tensorflow needs TensorFlow 2.18 or newer" in result.stdout
    assert "2.17.1" in result.stdout
