"""The gigapixel example at a tiny setting: its slides, what it writes, how it stops and goes on, how it refuses bad input."""

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

for module in ("torch", "scipy", "tqdm", "tifffile", "imagecodecs", "PIL", "matplotlib", "bokeh"):
    pytest.importorskip(module)

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import gigapixel as program
import gigapixel_data as data
import gigapixel_model as model
import gigapixel_report as report
import gigapixel_slides as slides
import torch

from ats_core.sources import open_source

TINY = re.findall(
    r"\S+",
    "--size=2048 --crop=640 --slides=2 --n-train=8 --n-test=4 --n-patches=4 --batch-size=4 --downsample=16 "
    "--epochs=2 --threads=1",
)
SLIDES = "slides-2048-640-2-0"
WRITTEN = {"checkpoint.pt", "model.pt", "overview.jpg", "results.json", SLIDES, "unseen"}


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*words, program=("gigapixel.py",), cwd=EXAMPLES):
    line = [sys.executable, *program, *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def main(capsys, *words):
    """(exit code, lines on stderr) of the program in this process."""
    code = program.main([*map(str, words)])
    return code, capsys.readouterr().err.splitlines()


def history(folder):
    """The history in results.json but for the times."""
    entries = json.loads((folder / "results.json").read_text())["history"]
    return [{name: value for name, value in entry.items() if name != "train_s"} for entry in entries]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two epochs without a stop, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(*TINY, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def plans():
    return [data.make_plan(2048, 640, 0, number) for number in range(3)]


# ---------------------------------------------------------------------------------------------------------- the program


def test_all_files_are_there(whole):
    folder, printed = whole
    assert {path.name for path in folder.iterdir()} == WRITTEN
    names = {path.name for path in (folder / SLIDES).iterdir()}
    assert names == {f"{name}.ome.tif" for name in ("training-0", "training-1", "test", "unseen")}
    assert re.findall(r"^epoch +(\d+)/2   loss \d", printed, re.MULTILINE) == ["1", "2"]
    assert str(folder / "unseen" / "index.html") in printed
    assert "<html" in (folder / "unseen" / "index.html").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert results["test_accuracy"] == results["history"][-1]["test_accuracy"]
    assert results["unseen"]["kind"] == data.KINDS[0] and results["unseen"]["patches"] == 4
    from PIL import Image

    with Image.open(folder / "overview.jpg") as picture:
        assert np.asarray(picture).std() > 10


def test_the_model_is_loaded_where_the_example_is_not(whole, tmp_path):
    folder, _ = whole
    slide = folder / SLIDES / "test.ome.tif"
    words = ["attend", slide, "--model", folder / "model.pt", "--out", tmp_path / "out", "--view-size", 256]
    done = run(*words, program=("-m", "ats_core"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [found] = (tmp_path / "out").glob("*/prediction.json")
    summary = json.loads(found.read_text())
    assert len(summary["prediction"]) == 2 and len(summary["patches"]) == 4


def test_sigint_and_resume_equal_an_uninterrupted_run(whole, tmp_path):
    folder, _ = whole
    shutil.copytree(folder / SLIDES, tmp_path / SLIDES)
    (tmp_path / SLIDES / "test.ome.tif").unlink()  # as if it had been stopped before
    options = [*TINY, "--out", str(tmp_path)]
    # The signal comes from within the second batch of the second epoch: no timing is involved.
    script = """
import os, signal, sys
import gigapixel, gigapixel_model
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
steps, step = [], gigapixel_model.Backend.train_step
def interrupt(self, *arguments):
    steps.append(1)
    if len(steps) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, *arguments)
gigapixel_model.Backend.train_step = interrupt
sys.exit(gigapixel.main())
"""
    stopped = run(*options, program=("-c", script))
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped after 1 whole epochs" in stopped.stderr and "Traceback" not in stopped.stderr
    again, first = (open_source(path / SLIDES / "test.ome.tif").read(0, (0, 0), 2048) for path in (tmp_path, folder))
    np.testing.assert_array_equal(again, first)
    resumed = run(*options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after epoch 1" in resumed.stdout and "test.ome.tif:" not in resumed.stdout
    assert history(tmp_path) == history(folder)
    ours, theirs = (json.loads((path / "unseen" / "prediction.json").read_text()) for path in (tmp_path, folder))
    assert ours["prediction"] == theirs["prediction"] and ours["patches"] == theirs["patches"]


def test_interrupt_while_a_slide_is_written(tmp_path, capsys, monkeypatch):
    def interrupt(self, row, column):
        raise KeyboardInterrupt

    monkeypatch.setattr(slides.Painter, "__call__", interrupt)
    code, lines = main(capsys, *TINY, "--out", tmp_path)
    assert code == 130 and lines[-2] == "stopped; to go on:" and lines[-1].endswith("--resume")
    assert not [*(tmp_path / SLIDES).glob("*.tif")]


def test_a_finished_run(whole, capsys, monkeypatch):
    folder, _ = whole
    code, lines = main(capsys, *TINY, "--out", folder)
    assert code == 2 and f"--out {folder} holds a run of 2 epochs: add --resume" in lines[-1]
    code, lines = main(capsys, *TINY, "--out", folder, "--resume", "--lr=0.1")
    assert code == 2 and "--lr 0.1 contradicts" in lines[-1]
    monkeypatch.setattr(model.Backend, "train_step", Mock(side_effect=AssertionError))
    monkeypatch.setattr(slides, "write_slide", Mock(side_effect=AssertionError))
    before = history(folder)
    assert main(capsys, "--out", folder, "--resume")[0] == 0
    assert history(folder) == before


BAD = """--lr inf|--lr nan|--lr 0|--lr x|--seed -1|--size 100000000|--size 2047|--size 1e3|--size 1088|--crop 500|--crop 1024
--crop 641|--n-train 0|--n-test 0|--threads 0|--epochs 0|--batch-size 0|--n-patches 0|--n-patches 401|--patch-size 16
--patch-size 1000|--downsample 1|--downsample 24|--slides 0|--unknown 1"""


@pytest.mark.parametrize("words", re.split(r"[|\n]", BAD))
def test_bad_option(words, tmp_path, capsys):
    code, lines = main(capsys, *TINY, "--out", tmp_path / "out", *words.split())
    assert code == 2 and len(lines) == 1
    assert words.split()[0] in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["{}/file", "{}/file/below"])
def test_bad_out(out, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, lines = main(capsys, *TINY, "--out", out.format(tmp_path))
    assert code == 2 and len(lines) == 1 and "--out" in lines[0]


def test_folders_of_others_are_left(tmp_path, capsys):
    (tmp_path / "unseen").mkdir()
    (tmp_path / "unseen" / "data.csv").write_text("")
    code, lines = main(capsys, *TINY, "--out", tmp_path)
    assert code == 2 and len(lines) == 1 and "folder unseen of something else" in lines[0]
    assert [path.name for path in tmp_path.rglob("*")] == ["unseen", "data.csv"]


def test_foreign_checkpoint(whole, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    right = torch.load(whole[0] / "checkpoint.pt", weights_only=True)
    for content in (b"some text", {}, {**right, "options": {}}, {**right, "backend": {"model": {}}}):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        code, lines = main(capsys, *TINY, "--out", tmp_path, "--resume")
        assert code == 2 and len(lines) == 1 and f"{path} is not a checkpoint of this program" in lines[0]


# ----------------------------------------------------------------------------------------------------------- the slides


def test_levels_are_halves(whole):
    folder, _ = whole
    with open_source(folder / SLIDES / "unseen.ome.tif") as source:
        sizes = [2048, 1024, 512, 256, 128, 64, 32]
        assert [level.shape for level in source.levels] == [(size, size) for size in sizes]
        assert source.mpp == (0.25, 0.25) and {level.tile for level in source.levels} == {(256, 256)}
        levels = [source.read(number, (0, 0), level.shape) for number, level in enumerate(source.levels)]
    assert 30 < levels[0].std() < 100  # not glass alone
    # Of brightness: JPEG halves the resolution of colours.
    levels = [level @ np.array([0.299, 0.587, 0.114]) for level in levels]
    for fine, coarse in pairwise(levels):
        size = len(coarse)
        means = fine.reshape(size, 2, size, 2).mean((1, 3))
        there = np.abs(means - coarse).mean()
        moved = [np.abs(means - np.roll(coarse, step, axis)).mean() for step in (-1, 1) for axis in (0, 1)]
        assert there < 0.5 * min(moved) and there < 5


def test_halve():
    lanes = np.random.default_rng(0).integers(0, 256, (8, 6, 4)).astype(np.uint16)
    halved = slides.halve(lanes.view(np.uint64)[..., 0]).view(np.uint16).reshape(4, 3, 4)
    expected = np.floor(lanes.reshape(4, 2, 3, 2, 4).mean((1, 3)) + 0.5)
    np.testing.assert_array_equal(halved, expected)


@pytest.fixture(scope="module")
def lesions():
    return data.lesion_textures(0)


def test_lesions_are_where_the_plan_says(whole, plans, lesions):
    """A slide without its lesions differs there, and nowhere else; and the file shows what was painted."""
    plan = plans[0]
    textures = data.tissues(0)
    painters = [slides.Painter(p, textures, lesions) for p in (plan, without_lesions(plan))]
    images = [np.block([[paint(row, column) for column in range(8)] for row in range(8)]) for paint in painters]
    ours, bare = (image.view(np.uint16).reshape(2048, 2048, 4)[..., :3].astype(int) for image in images)
    changed = np.abs(ours - bare).max(-1) > 0
    y, x = np.mgrid[:2048, :2048] + 0.5
    near = np.zeros_like(changed)
    for lesion in plan.lesions:
        away = np.hypot(y - lesion.y, x - lesion.x)
        near |= away < slides.REACH * lesion.radius + slides.EDGE
        core = away < 0.4 * lesion.radius - slides.EDGE / 2
        assert changed[core].mean() > 0.95
        assert ours[core].mean() < bare[core].mean() - 5  # darker than what would be there
    assert not changed[~near].any() and not near.all()
    with open_source(whole[0] / SLIDES / "training-0.ome.tif") as source:
        assert np.abs(source.read(0, (0, 0), 2048) - ours).mean() < 6


def without_lesions(plan):
    return data.Plan(**{**vars(plan), "lesions": ()})


def test_kinds_differ_close_by_and_not_from_afar(lesions):
    colours = slides.colours()
    seen = []
    for textures in lesions:
        h, e = (
            np.concatenate([np.clip(255 * plane, 0, 255).astype(int) for plane in planes])
            for planes in zip(*textures, strict=True)
        )
        seen.append(colours[h << 8 | e].view(np.uint16).reshape(*h.shape, 4)[..., :3].astype(float))
    afar = [image.mean((0, 1)) for image in seen]
    assert np.abs(afar[0] - afar[1]).max() < 0.1 * min(image.std() for image in seen)
    # Along its nuclei a bundle changes less than across, in whichever direction; rings do not.
    lengths = [[np.abs(np.diff(image.mean(-1), axis=axis)).mean() for axis in (0, 1)] for image in seen]
    assert max(lengths[1]) > 1.5 * min(lengths[1]) and max(lengths[0]) < 1.2 * min(lengths[0])


def test_crops_show_lesions_of_their_kind_alone(plans):
    for plan in plans:
        places = data.crop_places(plan, 40)
        assert [kind for _, kind in places] == [0, 1] * 20 and len(set(places)) > 8
        for corner, kind in places:
            assert min(corner) >= 0 and max(corner) + plan.crop <= plan.size and corner[0] % 64 == corner[1] % 64 == 0
            shown = [lesion for lesion in plan.lesions if touches(lesion, corner, plan.crop)]
            assert shown and {lesion.kind for lesion in shown} == {kind}


def touches(lesion, corner, side):
    return all(
        -lesion.radius < x - low < side + lesion.radius for x, low in zip((lesion.y, lesion.x), corner, strict=True)
    )


def test_batches_have_as_many_of_either_kind(whole):
    run = program.start([*TINY, "--out", str(whole[0]), "--resume"])
    run.prepare()
    seen = []
    run.backend.train_step = lambda batch, rng: seen.append(batch) or (0.0, 0)
    run.train_epoch(1)
    assert [batch.targets.tolist() for batch in seen] == [[0, 1, 0, 1]] * 2
    names = [source.name for batch in seen for source in batch.sources]
    assert sorted(names) == sorted(source.name for source in run.train.sources)
    assert {name.split("/")[-1][:10] for name in names} == {"training-0", "training-1"}
    of_kind = dict(zip([source.name for source in run.train.sources], run.train.targets, strict=True))
    assert [of_kind[name] for name in names] == [0, 1] * 4


def test_a_file_shows_one_plan(tmp_path):
    """Whatever the number of slides: files of a stopped run are taken as they are."""
    plans = {}
    for count in (1, 2, 3):
        of_run = program.Slides(program.parser().parse_args([*TINY, f"--slides={count}", "--out", str(tmp_path)]))
        for path, plan in zip(of_run.paths, of_run.plans, strict=True):
            assert plans.setdefault(path, plan.seed) == plan.seed


def test_plans_follow_from_the_seed(plans):
    again, other = data.make_plan(2048, 640, 0, 0), data.make_plan(2048, 640, 1, 0)
    assert again.lesions == plans[0].lesions and np.array_equal(again.tissue, plans[0].tissue)
    assert other.lesions != again.lesions and plans[1].lesions != again.lesions
    assert set(data.make_plan(2048, 640, 0, 3, kind=1).kinds) == {1}


def test_hits():
    attended = Mock(origins=np.array([[0, 0], [90, 100], [131, 100], [100, 300]]), patch_size=(20, 20))
    lesions = [data.Lesion(100, 110, 30, 0, 0), data.Lesion(130, 330, 20, 1, 0)]
    assert report.hits(attended, lesions).tolist() == [False, True, False, True]
