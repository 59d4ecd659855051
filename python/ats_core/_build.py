"""Find a framework's adapter, or compile it when the framework was installed after ats_core.

A wheel built where a framework is present holds its adapter (cmake/torch.cmake). Otherwise the adapter is compiled at
the first import from the sources in ats_core/_src, and kept in a cache folder: $ATS_CACHE_DIR, $XDG_CACHE_HOME or
~/.cache. A framework needs one function here that returns its `Adapter`.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ats_core import _core

ROOT = Path(_core.__file__).parent
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-ffile-prefix-map={ROOT}=.")


@dataclass(frozen=True)
class Adapter:
    """How a framework's adapter is compiled, and where it is when it came with the wheel."""

    name: str
    sources: str  # a pattern, in ats_core/_src
    framework: str  # for messages, with the version: a new version is a new build
    prebuilt: Path
    include_dirs: tuple[Path, ...]
    defines: tuple[str, ...]
    libraries: tuple[str, ...]  # linker arguments


def adapter_path(name: str) -> str:
    """Return the path of a framework's adapter; compile it first where that has not been done.

    Raises
    ------
    ImportError
        When the adapter cannot be compiled; says what to do.
    """
    adapter = _ADAPTERS[name]()
    return str(adapter.prebuilt if adapter.prebuilt.exists() else _cached_or_built(adapter))


def _torch(name: str = "torch", libraries: tuple[str, ...] = ("-l:libtorch_cpu.so",)) -> Adapter:
    import torch  # ats_core.torch has checked that it is there and new enough

    home = Path(torch.__file__).parent
    include = home / "include"
    return Adapter(
        name=name,
        sources=f"torch/ats_{name}.cc",
        framework=f"PyTorch {torch.__version__}",
        prebuilt=ROOT / "torch" / f"_ats_{name}.so",
        include_dirs=(include, include / "torch" / "csrc" / "api" / "include"),
        defines=("TORCH_TARGET_VERSION=0x020a000000000000",),  # PyTorch 2.10's stable ABI
        libraries=("-Wl,--no-as-needed", f"-L{home / 'lib'}", *libraries),
    )


def _torch_cuda() -> Adapter:
    return _torch("torch_cuda", ("-l:libtorch_cpu.so", "-l:libtorch_cuda.so"))


def _tensorflow() -> Adapter:
    import tensorflow  # ats_core.tensorflow has checked that it is there and new enough

    version = tensorflow.__version__
    home = Path(tensorflow.__file__).parent
    flags = tensorflow.sysconfig.get_compile_flags()
    return Adapter(
        name="tensorflow",
        sources="tensorflow/*.cc",
        framework=f"TensorFlow {version}",
        prebuilt=ROOT / "tensorflow" / f"_ats_tensorflow_{version}.so",  # a binary serves one version only
        include_dirs=(home / "include",),
        defines=tuple(flag[2:] for flag in flags if flag.startswith("-D")),
        libraries=tuple(tensorflow.sysconfig.get_link_flags()),
    )


_ADAPTERS = {"tensorflow": _tensorflow, "torch": _torch, "torch_cuda": _torch_cuda}


def _cached_or_built(adapter: Adapter) -> Path:
    sources = sorted((ROOT / "_src").glob(adapter.sources))
    arguments = [
        *FLAGS,
        *(f"-D{define}" for define in adapter.defines),
        f"-I{ROOT / 'include'}",
        *(f"-isystem{folder}" for folder in adapter.include_dirs),
        *map(str, sources),
        f"-L{ROOT / 'lib'}",
        f"-Wl,-rpath,{ROOT / 'lib'}",
        "-lats",
        *adapter.libraries,
    ]
    digest = hashlib.sha256("\0".join([*arguments, adapter.framework, _core.version()]).encode())
    for file in sorted([*sources[0].parent.iterdir(), *(ROOT / "include" / "ats").iterdir()]):
        digest.update(file.read_bytes())
    target = _cache_dir() / digest.hexdigest()[:16] / f"_ats_{adapter.name}.so"
    if not target.exists():
        _compile(adapter, arguments, target)
    return target


def _cache_dir() -> Path:
    home = os.environ.get("ATS_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "ats_core"


def _compile(adapter: Adapter, arguments: list[str], target: Path) -> None:
    for folder in adapter.include_dirs:
        if not folder.is_dir():
            raise ImportError(f"{_intent(adapter)}, but its headers are missing: there is no folder {folder}")
    compiler = _compiler(adapter)
    print(f"ats_core: building its adapter for {adapter.framework}, this once: {target}", file=sys.stderr, flush=True)
    with _new_file(target) as output:
        command = [*compiler, *arguments, "-o", str(output)]
        result = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        if result.returncode != 0:
            last = "\n".join(result.stdout.splitlines()[-20:])
            raise ImportError(f"{_intent(adapter)}, but the compiler failed:\n{shlex.join(command)}\n{last}")


def _compiler(adapter: Adapter) -> list[str]:
    asked = os.environ.get("CXX")
    for command in [asked] if asked else ["g++", "c++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    found = f"CXX={asked} cannot be run" if asked else "no C++ compiler was found"
    raise ImportError(f"{_intent(adapter)}, but {found}: install g++ (Debian: apt-get install g++) or set CXX")


def _intent(adapter: Adapter) -> str:
    return f"ats_core has to compile its adapter for {adapter.framework}, which was not there when it was installed"


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes target at the end, in one step: processes may build at the same time."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent)
    except OSError as error:
        raise ImportError(f"ats_core cannot keep what it compiles: {error}; set ATS_CACHE_DIR to a folder") from error
    with folder:
        output = Path(folder.name) / target.name
        yield output
        os.replace(output, target)
