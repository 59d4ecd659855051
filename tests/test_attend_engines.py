"""Which engine runs a model over files, and what happens to its processes, changes nothing of the results."""

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tifffile = pytest.importorskip("tifffile")
for package in ("ray.data", "imagecodecs", "bokeh", "matplotlib", "PIL", "tqdm"):
    pytest.importorskip(package)

from ats_core.attend.local import run_local
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
def expected(slides, model, tmp_path_factory):
    """The results of one process."""
    out = tmp_path_factory.mktemp("local") / "out"
    threads = torch.get_num_threads()
    try:
        assert main(["attend", str(slides), "--model", model, "--out", str(out), "--threads", "1"]) == 1
    finally:
        torch.set_num_threads(threads)
    return contents(out)


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


def contents(out):
    """All files of results, and the table's rows without errors."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {**files, "predictions.csv": [row for row in table(out).values() if not row["error"]]}


def table(out):
    with open(out / "predictions.csv", newline="") as stream:
        return {Path(row["file"]).name: row for row in csv.DictReader(stream)}


def test_local_order_does_not_matter(slides, model, expected, tmp_path):
    settings = Settings(model, str(tmp_path))
    jobs = [Job(str(slides / name), name) for name in ("c.tif", "a.tif")]
    assert [outcome.job for outcome in run_local(settings, jobs)] == jobs
    for name in ("a.tif", "c.tif"):
        assert (tmp_path / name / "patches.geojson").read_bytes() == expected[f"{name}/patches.geojson"]


def test_ray_on_this_machine(slides, model, expected, tmp_path, capfd):
    import ray

    out = tmp_path / "out"
    command = ["attend", str(slides), "--model", model, "--out", str(out), "--threads", "1", "--engine", "ray"]
    assert main(command) == 1
    assert contents(out) == expected
    assert not ray.is_initialized()
    assert "6 files: 5 done, 0 were done already, 1 failed" in capfd.readouterr().err


def test_killed_workers_lose_nothing(cluster, slides, log, model, expected, tmp_path, capfd):
    """One is killed while it writes results, one by a file, again and again."""
    bomb = tmp_path / "bomb.tif"
    tifffile.imwrite(bomb, np.full((64, 64, 3), 255, np.uint8), photometric="rgb")
    log.write_text("")
    out = tmp_path / "out"
    killed = []

    def kill():
        while not killed and not finished.is_set():
            if any(out.glob(".a.tif.*.partial")):
                killed.extend(int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("a.tif"))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.001)

    finished = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    options = ["--model", model, "--out", str(out), "--threads", "1", "--engine", "ray", "--address", cluster]
    try:
        assert main(["attend", str(slides), str(bomb), *options]) == 1
    finally:
        finished.set()
        killer.join()
    assert contents(out) == expected
    rows = table(out)
    assert sorted(rows) == ["a.tif", "b.tif", "bomb.tif", "c.tif", "d.tif", "e.tif", "x.tif"]
    assert rows["bomb.tif"]["error"] == f"{bomb}: the worker was killed, or crashed, {ATTEMPTS} times"
    looks = [line.split() for line in log.read_text().splitlines()]
    assert len(killed) == 1
    processes = {name: [int(pid) for other, pid in looks if other == name] for name, _ in looks}
    assert {name: len(pids) for name, pids in processes.items()} == {
        "a.tif": 2, "b.tif": 1, "c.tif": 1, "d.tif": 1, "e.tif": 1, "bomb.tif": ATTEMPTS,
    }  # fmt: skip
    assert "7 files: 5 done, 0 were done already, 2 failed" in capfd.readouterr().err

    # What is there already is not done again, and needs no workers.
    assert main(["attend", *(str(slides / f"{letter}.tif") for letter in "abcde"), *options]) == 0
    assert "5 files: 0 done, 5 were done already, 0 failed" in capfd.readouterr().err
    assert contents(out) == expected


def test_a_model_that_cannot_be_loaded(cluster, slides, tmp_path, capfd):
    (tmp_path / "model.pt").write_text("no pickle")
    command = ["attend", str(slides), "--model", str(tmp_path / "model.pt"), "--out", str(tmp_path / "out")]
    assert main([*command, "--engine", "ray", "--address", cluster]) == 2
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
