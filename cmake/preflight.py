"""Say in one message everything that `make` needs and this machine lacks."""

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

missing = []
if sys.version_info < (3, 11):  # the pinned dependencies; the package itself runs on 3.10
    missing.append(f"Python >= 3.11 (this is {sys.version.split()[0]}; try make PYTHON=python3.11)")
if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
    missing.append("Python's venv with ensurepip (Debian: apt-get install python3-venv)")
if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
    missing.append("Python's C headers (Debian: apt-get install python3-dev)")
if not shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]):
    missing.append("a C++17 compiler (Debian: apt-get install g++, or set CXX)")
if missing:
    sys.exit("Missing on this machine:\n" + "\n".join(f"  - {item}" for item in missing))
