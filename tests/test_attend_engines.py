"""Which engine runs a model over files, and what happens to its processes, changes nothing of the results."""

import csv
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tifffile = pytest.importorskip("tifffile")
for package in ("ray.data", "imagecodecs", "bokeh", "matplotlib", "PIL", "tqdm"):
    pytest.importorskip(package)

from ats_core.attend.local import run_local
from ats_core.attend.outputs import _hidden
from ats_core.attend.ray_engine import ATTEMPTS, run_ray
from ats_core.attend.work import Job, Settings
from ats_core.command import main
from attend_models import Fragile, write_slide

pytestmark = pytest.mark.filterwarnings("ignore:`.*` is deprecated:DeprecationWarning:ray")


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    """Workers look for modules, such as that of the model, in the folder in which the command is given."""
    monkeypatch.chdir(Path(__file__).parent)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Five slides; one file is broken."""
    folder = tmp_path_factory.mktemp("slides")
    for number, letter in enumerate("abcde"):
        write_slide(folder / f"{letter}.tif", (280 + 30 * number, 400), seed=number)
    (folder / "x.tif").write_bytes((folder / "a.tif").read_bytes()[:9000])
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def model(log):
    path = log.with_name("model.pt")
    torch.save(Fragile(str(log)), path)
    return str(path)


@pytest.fixture(scope="module")
def cluster():
    """The address of two "machines"."""
    from ray.cluster_utils import Cluster

    common = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=common)
    try:
        cluster.add_node(**common)
        yield cluster.address
    finally:
        cluster.shutdown()


def files(out):
    """All that is in a folder of results, hidden or not."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def read_log(log):
    """(file, process, threads) for every time that the model looked at one."""
    return [(name, int(pid), int(threads)) for name, pid, threads in map(str.split, log.read_text().splitlines())]


def test_local_order_does_not_matter(slides, model, tmp_path):
    jobs = [Job(str(slides / f"{letter}.tif"), f"{letter}.tif") for letter in "abc"]
    settings = Settings(model, str(tmp_path / "forth")), Settings(model, str(tmp_path / "back"))
    assert [outcome.job for outcome in run_local(settings[0], jobs)] == jobs
    assert [outcome.job for outcome in run_local(settings[1], jobs[::-1])] == jobs[::-1]
    assert files(tmp_path / "forth") == files(tmp_path / "back")


@pytest.mark.slow
def test_ray_on_this_machine(slides, log, model, tmp_path, capfd):
    import ray

    odd = tmp_path / os.fsdecode(b"no-UTF-8-\xff.tif")
    write_slide(odd)
    command = ["attend", str(slides), str(odd), "--model", model, "--out"]
    assert main([*command, str(tmp_path / "local")]) == 1
    log.write_text("")
    capfd.readouterr()
    assert main([*command, str(tmp_path / "ray"), "--engine", "ray"]) == 1
    assert "7 files: 6 done, 0 were done already, 1 failed" in capfd.readouterr().err
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert not ray.is_initialized()
    assert {pid for _, pid, _ in read_log(log)} != {os.getpid()}
    assert {threads for _, _, threads in read_log(log)} == {torch.get_num_threads()}


@pytest.mark.slow
def test_killed_workers_lose_nothing(cluster, slides, log, model, tmp_path, capfd):
    """One is killed while it writes results, and one by a file, again and again."""
    threads = torch.get_num_threads()
    options = ["--model", model, "--threads", "1", "--out"]
    assert main(["attend", str(slides), *options, str(tmp_path / "local")]) == 1
    torch.set_num_threads(threads)
    bomb = tmp_path / "bomb.tif"
    tifffile.imwrite(bomb, np.full((64, 64, 3), 255, np.uint8), photometric="rgb")
    log.write_text("")
    out = tmp_path / "out"
    killed = []

    def kill():
        while not killed and not finished.is_set():
            if any(out.glob(f"{_hidden(out / 'a.tif')}.*")):
                killed.extend(pid for name, pid, _ in read_log(log) if name == "a.tif")
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.001)

    finished = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    options += [str(out), "--engine", "ray", "--address", cluster]
    try:
        assert main(["attend", str(slides), str(bomb), *options]) == 1
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 1
    assert "7 files: 5 done, 0 were done already, 2 failed" in capfd.readouterr().err
    assert results(out) == results(tmp_path / "local")
    with open(out / "predictions.csv", newline="") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    assert sorted(rows) == sorted([*map(str, slides.iterdir()), str(bomb)])
    assert [path for path, row in rows.items() if row["error"]] == [str(bomb), str(slides / "x.tif")]
    assert rows[str(bomb)]["error"] == f"{bomb}: the worker was killed, or crashed, {ATTEMPTS} times"
    looks = Counter(name for name, _, _ in read_log(log))
    assert looks == {"a.tif": 2, "b.tif": 1, "c.tif": 1, "d.tif": 1, "e.tif": 1, "bomb.tif": ATTEMPTS}

    # What is there already is not done again, and needs no workers.
    log.write_text("")
    assert main(["attend", *(str(slides / f"{letter}.tif") for letter in "abcde"), *options]) == 0
    assert "5 files: 0 done, 5 were done already, 0 failed" in capfd.readouterr().err
    assert not log.read_text()
    assert results(out) == results(tmp_path / "local")


def results(out):
    """All files but the table, which tells of more than results."""
    return {path: data for path, data in files(out).items() if path != "predictions.csv"}


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded(cluster, slides, tmp_path, capfd):
    (tmp_path / "model.pt").write_text("no pickle")
    command = ["attend", str(slides), "--model", str(tmp_path / "model.pt"), "--out", str(tmp_path / "out")]
    assert main([*command, "--engine", "ray", "--address", cluster, "--workers", "1"]) == 2
    assert "is no model that torch.save wrote" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"workers": 0}, ValueError, "workers: must be at least 1"),
        ({"address": "nowhere"}, ValueError, "address: must be host:port or auto, got 'nowhere'"),
        ({"address": "127.0.0.1:1"}, ConnectionError, "address: no Ray cluster at 127.0.0.1:1"),
        ({"address": "127.0.0.1:99999"}, ConnectionError, "address: no Ray cluster at 127.0.0.1:99999"),
    ],
)
def test_arguments_that_mean_nothing(options, error, words):
    with pytest.raises(error, match=words):
        run_ray(Settings("model.pt", "out"), [], **options)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=r"python -m pip install 'ats-core\[ray\]'"):
        run_ray(Settings("model.pt", "out"), [])
