"""A saved model over files: what is written is what the model did."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ats_core.sources import SourceBatch, SourceError, find_sources, open_source

torch = pytest.importorskip("torch")
tifffile = pytest.importorskip("tifffile")
for package in ("imagecodecs", "bokeh", "matplotlib", "PIL", "tqdm"):
    pytest.importorskip(package)

import ats_core.torch as ats
from ats_core.attend.torch_model import TorchModel
from ats_core.attend.work import to_rng
from ats_core.command import main
from attend_models import Classifier, write_slide


def read_png(path):
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture)


def save(model, path):
    torch.save(model, path)
    return str(path)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    (folder / "more").mkdir()
    write_slide(folder / "a.tif", seed=1)
    write_slide(folder / "more" / "b.tiff", (513, 300), seed=2)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def run(slides, tmp_path_factory):
    """A run over two slides."""
    folder = tmp_path_factory.mktemp("run")
    model = Classifier(n_patches=6)
    path = save(model, folder / "model.pt")
    out = folder / "out"
    status = main(["attend", str(slides), "--model", path, "--out", str(out), "--classes", "A, B", "--seed", "7"])
    assert status == 0
    return model.eval(), out, path


def summary(folder):
    return json.loads((folder / "prediction.json").read_text())


# ---- what is written ----


@pytest.mark.parametrize("name", ["a.tif", "more/b.tiff"])
def test_the_prediction_is_the_models_own(run, slides, name):
    model, out, _ = run
    found = summary(out / name)
    with open_source(slides / name) as source:
        low, _ = source.thumbnail(64)
        x_low = torch.from_numpy(low).permute(2, 0, 1)[None]
        with torch.inference_mode():
            sampled = model.sampling(x_low, SourceBatch([source]), rng=to_rng(7, name))
            expected = model.head(sampled.features)[0]
            attention = sampled.attention
            draws = ats.sample(attention, 6, rng=to_rng(7, name))
            origins = ats.patch_origins(draws.indices, attention.shape[1:], source.shape, 24, low_shape=low.shape[:2])
    assert found["prediction"] == expected.tolist()
    assert found["class"] == "AB"[int(expected.argmax())]
    assert [patch["index"] for patch in found["patches"]] == draws.indices[0].tolist()
    assert [patch["origin"] for patch in found["patches"]] == origins[0].tolist()
    assert [patch["probability"] for patch in found["patches"]] == pytest.approx(draws.attention[0].tolist(), rel=1e-6)
    coefficients, _ = ats.estimator_arrays(draws.attention, "murthy")
    assert [patch["weight"] for patch in found["patches"]] == pytest.approx(coefficients[0].tolist(), rel=1e-6)
    assert found["source"]["mpp"] == [0.5, 0.5]


def test_pictures_of_patches_are_the_pixels(run, slides):
    _, out, _ = run
    image = np.pad(tifffile.imread(slides / "a.tif"), ((24, 24), (24, 24), (0, 0)))
    for patch in summary(out / "a.tif")["patches"]:
        y, x = (first + 24 for first in patch["origin"])
        np.testing.assert_array_equal(read_png(out / "a.tif" / patch["pictures"][0]), image[y : y + 24, x : x + 24])


def test_the_heat_map_is_a_pyramid_over_the_slide(run, slides):
    _, out, _ = run
    shape = tifffile.imread(slides / "more" / "b.tiff").shape
    with tifffile.TiffFile(out / "more" / "b.tiff" / "heatmap.ome.tif") as file:
        picture, attention = file.series
        assert file.is_ome
        assert picture.shape == shape
        assert [level.shape[0] for level in picture.levels] == [513, 256]
        assert all(level.keyframe.is_tiled for level in picture.levels)
        assert attention.dtype == np.float32
        assert attention.asarray().sum() == pytest.approx(1, abs=1e-5)
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata
    with open_source(out / "more" / "b.tiff" / "heatmap.ome.tif") as source:
        assert source.mpp == (0.5, 0.5)
        assert len(source.levels) == 2
    assert read_png(out / "more" / "b.tiff" / "heatmap.png").shape == shape


def test_boxes_lie_where_patches_do(run):
    _, out, _ = run
    boxes = json.loads((out / "a.tif" / "patches.geojson").read_text())["features"]
    patches = sorted(summary(out / "a.tif")["patches"], key=lambda patch: patch["rank"])
    assert len(boxes) == len(patches) == 6
    assert [patch["probability"] for patch in patches] == sorted((p["probability"] for p in patches), reverse=True)
    for box, patch in zip(boxes, patches, strict=True):
        corners = np.array(box["geometry"]["coordinates"][0])
        y, x = patch["origin"]
        assert corners.min(0).tolist() == [x, y]
        assert corners.max(0).tolist() == [x + 24, y + 24]


def test_the_page_and_the_table(run, slides):
    _, out, _ = run
    assert (out / "a.tif" / "index.html").stat().st_size > 100_000  # Bokeh is in it
    with open(out / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["results"] for row in rows] == ["a.tif", "more/b.tiff"]
    assert [row["file"] for row in rows] == [str(slides / row["results"]) for row in rows]
    for row in rows:
        found = summary(out / row["results"])
        assert (json.loads(row["prediction"]), row["class"], row["error"]) == (found["prediction"], found["class"], "")


def test_draws_do_not_depend_on_other_files(run, slides, tmp_path):
    _, out, path = run
    (tmp_path / "fewer" / "more").mkdir(parents=True)
    (tmp_path / "fewer" / "more" / "b.tiff").write_bytes((slides / "more" / "b.tiff").read_bytes())
    options = ["--model", path, "--out", str(tmp_path / "out"), "--seed", "7"]
    assert main(["attend", str(tmp_path / "fewer"), *options]) == 0
    alone, before = (summary(folder / "more" / "b.tiff") for folder in (tmp_path / "out", out))
    assert alone["patches"] == before["patches"]
    assert alone["prediction"] == before["prediction"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "des_raj"},
        {"estimator": "horvitz_thompson"},
        {"estimator": "iid", "replace": True},
        {"inference": "topk"},
        {"scales": (1, 2, 4)},
        {"field": 3},
    ],
    ids=str,
)
def test_weighted_features_of_the_patches_add_up_to_the_estimate(tmp_path, options):
    write_slide(tmp_path / "a.tif")
    model = Classifier(**options).eval()
    model.head = torch.nn.Identity()
    with open_source(tmp_path / "a.tif") as source:
        attended = TorchModel(model).attend(source, rng=(3, 0))
        patches = SourceBatch([source]).read_patches(attended.origins[None], 24, scales=attended.scales)[0]
    np.testing.assert_array_equal(attended.patches, patches)
    stacked = torch.from_numpy(attended.patches).movedim(-1, 2).flatten(1, 2)  # (n, S * C, 24, 24)
    with torch.inference_mode():
        features = model.sampling.feature((stacked.float() - 127.0) / 64.0).double().numpy()
    np.testing.assert_allclose(attended.weights @ features, attended.prediction, rtol=1e-4, atol=1e-6)
    grid = attended.attention.reshape(-1)
    assert grid.sum() == pytest.approx(1)
    np.testing.assert_allclose(attended.probabilities, grid[attended.indices], rtol=1e-5)
    assert attended.margin == pytest.approx((1.5 * 300 / 46, 1.5 * 420 / 64) if "field" in options else (0, 0))


def test_with_full_inference_weights_are_attention(tmp_path):
    write_slide(tmp_path / "a.tif", (40, 56))
    with open_source(tmp_path / "a.tif") as source:
        attended = TorchModel(Classifier(inference="full", low_size=14)).attend(source, rng=(0, 0))
    best = np.sort(attended.attention.reshape(-1))[::-1][:6]
    np.testing.assert_allclose(attended.weights, best, rtol=1e-5)


def test_sound_and_volumes(tmp_path):
    generator = np.random.default_rng(0)
    soundfile, nibabel = pytest.importorskip("soundfile"), pytest.importorskip("nibabel")
    soundfile.write(tmp_path / "a.wav", generator.normal(size=(9000, 1)) / 4, 8000)
    nibabel.save(
        nibabel.Nifti1Image(generator.normal(size=(40, 30, 50)).astype(np.float32), np.eye(4)), tmp_path / "b.nii"
    )
    for name, axes, shape in (("a.wav", 1, (9000,)), ("b.nii", 3, (50, 30, 40))):
        model = Classifier(axes=axes, channels=1, patch_size=9, low_size=32)
        path, out = save(model, tmp_path / f"{name}.pt"), tmp_path / f"{name}.out"
        assert main(["attend", str(tmp_path / name), "--model", path, "--out", str(out)]) == 0
        found = {file.name for file in (out / name).iterdir()}
        assert found == {"prediction.json", "patches.npy", "heatmap.png"}
        patches = np.load(out / name / "patches.npy")
        assert patches.shape == (6, 1, *(9,) * axes, 1)
        with open_source(tmp_path / name) as source:
            assert source.shape == shape
            for patch, facts in zip(patches, summary(out / name)["patches"], strict=True):
                np.testing.assert_array_equal(patch[0], source.read(0, facts["origin"], (9,) * axes))


# ---- files that cannot be read, and runs that stop ----


def test_a_broken_file_is_told_and_the_rest_completes(run, slides, tmp_path, capfd):
    _, out, path = run
    whole = (slides / "a.tif").read_bytes()
    (tmp_path / "files").mkdir()
    for name, data in (
        ("a.tif", whole),
        ("cut.tif", whole[:9000]),
        ("empty.tif", b""),
        ("text.tiff", b"no TIFF at all"),
    ):
        (tmp_path / "files" / name).write_bytes(data)
    command = ["attend", str(tmp_path / "files"), "--model", path, "--seed", "7", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    told = capfd.readouterr().err
    assert "4 files: 1 done, 0 were done already, 3 failed" in told
    assert "cut.tif: level 0, region" in told
    with open(tmp_path / "out" / "predictions.csv", newline="") as stream:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(stream)}
    assert [name for name, row in rows.items() if row["error"]] == ["cut.tif", "empty.tif", "text.tiff"]
    assert all(str(tmp_path / "files" / name) in row["error"] for name, row in rows.items() if row["error"])
    assert summary(tmp_path / "out" / "a.tif")["patches"] == summary(out / "a.tif")["patches"]
    (tmp_path / "files" / "cut.tif").write_bytes(whole)  # mended, the same command does what is left
    assert main(command) == 1
    assert "4 files: 1 done, 1 were done already, 2 failed" in capfd.readouterr().err


def test_a_file_that_vanishes_in_mid_run(run, slides, tmp_path, capfd):
    _, _, path = run
    files = [tmp_path / f"{letter}.tif" for letter in "abc"]
    for file in files:
        file.write_bytes((slides / "a.tif").read_bytes())
    model = torch.load(path, weights_only=False)
    model.register_forward_pre_hook(RemoveFile(str(files[1])))
    path = save(model, tmp_path / "model.pt")
    assert main(["attend", str(tmp_path), "--model", path, "--out", str(tmp_path / "out")]) == 1
    assert f"{files[1]}: " in capfd.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["a.tif", "c.tif"]


class RemoveFile:
    """A hook that removes a file when the model is called."""

    def __init__(self, path):
        self.path = path

    def __call__(self, *_):
        Path(self.path).unlink(missing_ok=True)


def test_results_of_other_settings_are_not_mixed(run, slides, tmp_path, capfd):
    _, _, path = run
    out = tmp_path / "out"
    common = ["attend", str(slides / "a.tif"), "--out", str(out)]
    assert main([*common, "--model", path]) == 0
    before = summary(out / "a.tif")
    assert main([*common, "--model", path, "--seed", "1"]) == 2
    assert "holds results of another run (other seed)" in capfd.readouterr().err
    other = save(Classifier(n_patches=5), tmp_path / "other.pt")
    Path(path_copy := str(tmp_path / "model.pt")).write_bytes(Path(other).read_bytes())
    assert main([*common, "--model", path_copy]) == 2
    assert "(other model, sha256)" in capfd.readouterr().err
    assert summary(out / "a.tif") == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("do not touch")
    assert main(["attend", str(slides), "--model", path, "--out", str(foreign)]) == 2
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    assert "holds something else" in capfd.readouterr().err


def test_results_are_no_input(run, slides, tmp_path, capfd):
    _, _, path = run
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.tif").write_bytes((slides / "a.tif").read_bytes())
    for out in ("out", "out", "second"):
        assert main(["attend", str(files), "--model", path, "--out", str(files / out)]) == 0
        assert capfd.readouterr().err.splitlines()[-1].startswith("1 files: ")
        assert [p.name for p in (files / out).iterdir() if p.is_dir()] == ["a.tif"]
    heat = files / "out" / "a.tif" / "heatmap.ome.tif"  # unless it is asked for
    assert main(["attend", str(heat), "--model", path, "--out", str(tmp_path / "heat")]) == 0


def test_names_of_all_kinds(run, slides, tmp_path, monkeypatch):
    _, _, path = run
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    names = ["a:b.tif", "new\nline.tif", "*[1]?.tif", "l" * 251 + ".tif", os.fsdecode(b"\xff.tif")]
    for name in names:
        try:
            (files / name).write_bytes((slides / "a.tif").read_bytes())
        except OSError:
            pytest.skip("the file system has no such names")
    monkeypatch.chdir(tmp_path)
    assert main(["attend", "files", *(f"files/{name}" for name in names), "--model", path, "--out", "out"]) == 0
    with open(out / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        rows = {row["results"]: row["file"] for row in csv.DictReader(stream)}
    assert rows == {name: str(files / name) for name in names}
    assert {p.name for p in out.iterdir()} == {*names, "predictions.csv", "run.json"}
    for name in names:
        assert len(summary(out / name)["patches"]) == 6
    assert "\\udcff.tif</title>" in (out / names[-1] / "index.html").read_text("utf-8")


def test_pictures_larger_than_a_page_holds(run, tmp_path):
    _, _, path = run
    write_slide(tmp_path / "a.tif", (600, 4500))
    options = ["--model", path, "--out", str(tmp_path / "out"), "--view-size", "4500"]
    assert main(["attend", str(tmp_path / "a.tif"), *options]) == 0
    assert read_png(tmp_path / "out" / "a.tif" / "heatmap.png").shape == (600, 4500, 3)
    assert (tmp_path / "out" / "a.tif" / "index.html").exists()


@pytest.mark.parametrize("engine", ["local", "ray"])  # Ray is not started: there is nothing left to do
@pytest.mark.parametrize("text", ["", "[1]"])
def test_broken_results_are_told(run, slides, tmp_path, capfd, engine, text):
    _, _, path = run
    if engine == "ray":
        pytest.importorskip("ray.data")
    command = ["attend", str(slides / "a.tif"), "--model", path, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    (tmp_path / "out" / "a.tif" / "prediction.json").write_text(text)
    capfd.readouterr()
    assert main([*command, "--engine", engine]) == 1
    told = capfd.readouterr().err
    assert f"{tmp_path / 'out' / 'a.tif' / 'prediction.json'}: holds no results" in told and "1 failed" in told


# ---- models and arguments that mean nothing ----


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda: torch.nn.Linear(2, 2), "must have one AttentionSampling in it, Linear has 0"),
        (lambda: torch.nn.ModuleList([Classifier(), Classifier()]), "ModuleList has 2"),
        (lambda: Classifier().state_dict(), "holds a OrderedDict, not a module"),
        (lambda: Classifier(low_size=None), "--low-size or --low-downsample"),
    ],
    ids=["no attention", "two", "state dict", "no size"],
)
def test_a_model_that_is_none(slides, tmp_path, capfd, model, words):
    path = save(model(), tmp_path / "model.pt")
    assert main(["attend", str(slides), "--model", path, "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("ats-core: error: ") and words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "model, words",
    [
        ("none.pt", "none.pt: no such file"),
        ("text.pt", "is no model that torch.save wrote"),
        ("attend_models:nothing", "cannot be imported"),
        ("attend_models:torch", "must be a function"),
        ("no_such_module:make", "cannot be imported"),
        ("code.py:broken", "cannot be imported: ZeroDivisionError: division by zero"),
        ("attend_models:write_slide", "raised TypeError: write_slide() missing 1 required"),
        (":make", "cannot be imported"),
    ],
)
def test_a_model_that_cannot_be_loaded(slides, tmp_path, monkeypatch, capfd, model, words):
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("no pickle")
    Path("code.py").write_text("1 / 0")
    assert main(["attend", str(slides), "--model", model, "--out", "out"]) == 2
    assert words in capfd.readouterr().err


def test_a_function_makes_the_model(run, slides, tmp_path, capfd):
    model, _, path = run
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    made = str(Path(__file__).parent / "attend_models.py") + ":make"
    common = ["attend", str(slides / "a.tif"), "--model"]
    options = ["--weights", str(tmp_path / "weights.pt")]
    assert main([*common, made, *options, "--out", str(tmp_path / "out")]) == 0
    assert main([*common, path, "--out", str(tmp_path / "other")]) == 0
    a, b = (summary(tmp_path / folder / "a.tif") for folder in ("out", "other"))
    assert a["prediction"] == b["prediction"]
    assert main([*common, path, *options, "--out", str(tmp_path / "third")]) == 2
    assert "weights: are for a model that a function makes" in capfd.readouterr().err
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    assert main([*common, made, *options, "--out", str(tmp_path / "fourth")]) == 2
    assert "do not suit the model" in capfd.readouterr().err


def test_a_model_that_does_not_suit_a_file(run, slides, tmp_path, capfd):
    path = save(Classifier(channels=1), tmp_path / "model.pt")
    assert main(["attend", str(slides / "a.tif"), "--model", path, "--out", str(tmp_path / "out")]) == 1
    assert f"{slides / 'a.tif'}: RuntimeError: " in capfd.readouterr().err
    common = ["attend", str(slides / "a.tif"), "--model", run[2]]
    assert main([*common, "--classes", "A,B,C", "--out", str(tmp_path / "named")]) == 1
    assert "classes: the model has 2 outputs, got 3 names" in capfd.readouterr().err


def test_arguments_that_mean_nothing(run, slides, tmp_path, capfd):
    _, _, path = run
    empty = tmp_path / "empty"
    empty.mkdir()
    copy = tmp_path / "a.tif"
    copy.write_bytes(b"")
    out = ["--model", path, "--out", str(tmp_path / "out")]
    for arguments, words in (
        ([str(tmp_path / "none.tif"), *out], "none.tif: no such file"),
        ([str(empty), *out], "has no file of a known format"),
        ([str(slides / "a.tif"), str(copy), *out], "would both have their results in a.tif"),
        ([str(slides), *out, "--address", "auto"], "--address: is for --engine ray"),
        ([str(slides), *out, "--device", "cuda:99"], "device: 'cuda:99' cannot be used"),
        ([str(slides), *out, "--device", "toaster"], "device: 'toaster' cannot be used"),
    ):
        status = main(["attend", *arguments])
        error = capfd.readouterr().err
        assert status == 2 and words in error, error
        assert not (tmp_path / "out").exists()
    for arguments in (["--low-size", "0"], ["--low-downsample", "0.5"], ["--seed", str(2**63)], ["--low-size", "x"]):
        with pytest.raises(SystemExit) as stopped:
            main(["attend", str(slides), *out, *arguments])
        assert stopped.value.code == 2
        assert arguments[0] in capfd.readouterr().err


# ---- ats-core info, find_sources ----


def test_info(slides, tmp_path, capfd):
    np.save(tmp_path / "v.npy", np.zeros((40, 30, 2), np.uint16))
    (tmp_path / "broken.tif").write_bytes(b"II*\0nothing")
    assert main(["info", str(slides / "a.tif"), str(tmp_path / "v.npy")]) == 0
    text = capfd.readouterr().out
    assert "backend tiff, axes yx, 3 x uint8" in text and "300 x 420" in text and "y 0.5 um" in text
    assert "backend npy, axes yx, 2 x uint16" in text
    assert main(["info", "--json", str(tmp_path / "broken.tif"), str(slides / "a.tif"), str(tmp_path / "none")]) == 1
    told = capfd.readouterr()
    (line,) = told.out.splitlines()
    assert [level["shape"] for level in json.loads(line)["levels"]] == [[300, 420], [150, 210], [75, 105]]
    assert "broken.tif" in told.err and "none: no such file" in told.err


def test_out_is_a_folder(slides, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["attend", str(slides), "--model", "model.pt", "--out", "s3://bucket/out"]) == 2
    assert "--out: must be a folder, got s3://bucket/out" in capfd.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_function_of_a_package_in_the_folder(slides, tmp_path, monkeypatch):
    """The package is a folder by the name that the model's begins with."""
    monkeypatch.chdir(tmp_path)
    Path("package_of_models").mkdir()
    Path("package_of_models", "__init__.py").write_text("from attend_models import make\n")
    command = ["attend", str(slides / "a.tif"), "--model", "package_of_models:make", "--out", "out"]
    assert main(command) == 0
    assert main(command) == 0


def test_find_sources(slides, tmp_path):
    assert find_sources(slides) == [str(slides / "a.tif"), str(slides / "more" / "b.tiff")]
    assert find_sources(slides / "notes.txt") == [str(slides / "notes.txt")]
    assert find_sources("s3://bucket/a.zarr") == ["s3://bucket/a.zarr"]
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zgroup").write_text("{}")
    (tmp_path / "a.zarr" / "b.tif").write_text("")
    (tmp_path / ".hidden.tif").write_text("")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.DCM").write_text("")
    (tmp_path / "C.NII.GZ").write_text("")
    assert find_sources(tmp_path) == [str(tmp_path / name) for name in ("C.NII.GZ", "a.zarr", "dicom")]
    with pytest.raises(SourceError, match=r"none.*no such"):
        find_sources(tmp_path / "none")


def test_links_in_circles(tmp_path):
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.tif").write_text("")
    (folder / "below" / "up").symlink_to("..")
    (folder / "self.tif").symlink_to("self.tif")
    (folder / "other").symlink_to("below")
    found = [str(folder / name) for name in ("below/a.tif", "other/a.tif", "self.tif")]
    assert find_sources(folder) == found
