"""The example on traffic signs: its download, its annotations, and a tiny training on the made-up set, end to end."""

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

for module in ("keras", "PIL", "matplotlib", "tqdm"):
    pytest.importorskip(module)
pytest.importorskip("ats_core.keras", exc_type=ImportError)

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import download
import keras
import speed_limits as program
import speed_limits_data as data
import speed_limits_made_up as made_up
from PIL import Image

# ---------------------------------------------------------------------------------------------------------- annotations

REAL_FORMAT = """\
1277381663Image000000.jpg:
1277381664Image000001.jpg:MISC_SIGNS;MISC_SIGNS;
a.jpg:VISIBLE, 1010.5, 333.000000, 990.25, 310.000000, PROHIBITORY, 70_SIGN;MISC_SIGNS;
b.jpg:SIDE_ROAD, 20, 30, 10., .5, INFORMATION, PEDESTRIAN_CROSSING;BLURRED, 9.0a, 8.0.., 1e1;, 3
c.jpg:OCCLUDED, 9.0a, 8.0 px, 1e1x, -3.5-, MANDATORY, PASS_RIGHT_SIDE; ;

d.jpg : VISIBLE,9,8,7,6,OTHER,OTHER ;
"""


def test_annotations(tmp_path):
    path = tmp_path / "annotations.txt"
    good = [line for line in REAL_FORMAT.splitlines() if not line.startswith("b.jpg")]
    path.write_text("\r\n".join(good))
    read = dict(data.read_annotations(path))
    assert list(read) == ["1277381663Image000000.jpg", "1277381664Image000001.jpg", "a.jpg", "c.jpg", "d.jpg"]
    assert read["1277381663Image000000.jpg"] == read["1277381664Image000001.jpg"] == []
    assert read["a.jpg"] == [("VISIBLE", 1010.5, 333.0, 990.25, 310.0, "PROHIBITORY", "70_SIGN")]
    assert read["a.jpg"][0].area == (1010.5 - 990.25) * (333 - 310)
    assert read["c.jpg"] == [("OCCLUDED", 9.0, 8.0, 10.0, -3.5, "MANDATORY", "PASS_RIGHT_SIDE")]
    assert read["d.jpg"] == [("VISIBLE", 9.0, 8.0, 7.0, 6.0, "OTHER", "OTHER")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no colon", "NAME:SIGNS"),
        ("a.jpg:VISIBLE, 1, 2, 3, 4, PROHIBITORY;", "VISIBILITY, x_max"),
        ("a.jpg:HIDDEN, 1, 2, 3, 4, PROHIBITORY, 50_SIGN;", "HIDDEN"),
        ("a.jpg:VISIBLE, 1, x2, 3, 4, PROHIBITORY, 50_SIGN;", "'x2'"),
        ("a.jpg:VISIBLE, 1, , 3, 4, PROHIBITORY, 50_SIGN;", "number"),
        ("a.jpg:VISIBLE, 1, nan, 3, 4, PROHIBITORY, 50_SIGN;", "nan"),
        ("a.jpg:VISIBLE, 1, 1e999, 3, 4, PROHIBITORY, 50_SIGN;", "1e999"),
    ],
)
def test_broken_annotations(line, message, tmp_path):
    path = tmp_path / "annotations.txt"
    path.write_text(f"good.jpg:\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line 3: .*{re.escape(message)}"):
        data.read_annotations(path)


def sign(name, visibility="VISIBLE", size=10):
    return data.Sign(visibility, 100 + size, 50 + size, 100, 50, "TYPE", name)


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ([], "EMPTY"),
        ([sign("OTHER")], None),
        ([sign("60_SIGN"), sign("STOP")], None),
        ([sign("50_SIGN")], "50_SIGN"),
        ([sign("STOP"), sign("80_SIGN")], "80_SIGN"),
        ([sign("70_SIGN", "BLURRED")], None),
        ([sign("70_SIGN", "SIDE_ROAD"), sign("STOP")], None),
        ([sign("70_SIGN", "OCCLUDED")], None),
        ([sign("50_SIGN", "BLURRED", 99), sign("70_SIGN", size=5)], "70_SIGN"),  # the clearest, not the largest
        ([sign("50_SIGN", size=9), sign("70_SIGN", size=10), sign("80_SIGN", size=8)], "70_SIGN"),  # then the largest
        ([sign("STOP", size=50), sign("50_SIGN", size=9)], "50_SIGN"),
    ],
)
def test_class_of(signs, expected):
    for order in (signs, signs[::-1]):
        assert data.class_of(order) == (None if expected is None else data.CLASSES.index(expected))


# --------------------------------------------------------------------------------------------------------- made-up set

COUNTS = {"train": 20, "test": 10}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A made-up set with few pictures."""
    folder = tmp_path_factory.mktemp("small")
    made_up.write(folder, seed=3, counts=COUNTS)
    return folder


def test_made_up_set(small, tmp_path):
    """The format holds, the labels are those that were drawn, the signs are where the annotations say."""
    text = (small / "Set1" / "annotations.txt").read_text()
    assert all(word in text for word in ("MISC_SIGNS;", "VISIBLE, ", "50_SIGN;", ".jpg:\n"))
    for split, name in data.SETS.items():
        kinds = [made_up.KINDS[i % 10] for i in range(COUNTS[split])]
        annotated = data.read_annotations(small / name / "annotations.txt")
        found = [data.class_of(signs) for _, signs in annotated]
        assert found == [None if kind is None else data.CLASSES.index(kind) for kind in kinds]
        images = data.SpeedLimitImages(small, split)
        assert images.names == [image for (image, _), k in zip(annotated, found, strict=True) if k is not None]
        np.testing.assert_array_equal(images.classes, [k for k in found if k is not None])
        weights = images.class_weights()
        np.testing.assert_allclose([weights[k] * images.counts[k] for k in range(4)], len(images) / 4)
        signs = dict(annotated)
        for i, image in enumerate(images.names):
            pixels = images.read(i)
            assert pixels.shape == (240, 320, 3) == (*images.shape, 3) and pixels.dtype == np.uint8
            for box in signs[image]:
                if box.name in data.CLASSES and box.visibility == "VISIBLE":
                    middle = int((box.x_min + box.x_max) / 2)
                    red, green, blue = pixels[int(box.y_min) + 1, middle - 1 : middle + 2].mean(axis=0)
                    assert red > max(green, blue) + 40, image  # the rim
    made_up.write(tmp_path, seed=3, counts=COUNTS)
    for path in small.rglob("*.*"):
        if path.suffix in (".zip", ".txt"):
            assert (tmp_path / path.relative_to(small)).read_bytes() == path.read_bytes()


def test_some_of_each(small):
    images = data.SpeedLimitImages(small, "train")
    rows = images.some_of_each(8)
    assert len(set(rows)) == 8 and list(images.classes[rows]) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert sorted(images.some_of_each(1000)) == list(range(len(images)))


def test_broken_sets(small, tmp_path):
    """Every way in which a folder can be wrong is an error that names the file."""

    def copy(name):
        return Path(shutil.copytree(small, tmp_path / name))

    folder = copy("no image of a class")
    path = folder / "Set1" / "annotations.txt"
    path.write_text(re.sub(r".*VISIBLE[^;]*70_SIGN.*\n", "", path.read_text()))
    with pytest.raises(ValueError, match=r"annotations\.txt has no image of class 70_SIGN"):
        data.SpeedLimitImages(folder, "train")

    folder = copy("an image that the archive lacks")
    path = folder / "Set1" / "annotations.txt"
    path.write_text(path.read_text() + "absent.jpg:\n")
    with pytest.raises(ValueError, match=r"Set1Part0\.zip lacks 1 of 19 images, for example absent\.jpg"):
        data.SpeedLimitImages(folder, "train")

    archive = copy("broken images") / "Set1" / "Set1Part0.zip"
    with zipfile.ZipFile(archive) as file:
        content = {name: file.read(name) for name in file.namelist()}
    broken = list(content)[5]
    small_one = io.BytesIO()
    Image.new("RGB", (100, 80)).save(small_one, "JPEG")

    def images_with(raw):
        with zipfile.ZipFile(archive, "w") as file:
            for name, right in content.items():
                file.writestr(name, raw if name == broken else right)
        return data.SpeedLimitImages(archive.parent.parent, "train")

    for raw, message in (
        (small_one.getvalue(), "has 80 x 100 pixels, .* 240 x 320"),
        (b"", "cannot be read"),
        (b"<html>", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=f"{broken} in .*{message}"):
            images_with(raw)
    images = images_with(content[broken][:2000])
    images.read(4)
    with pytest.raises(ValueError, match=f"{broken} in .* cannot be read: .*truncated"):
        images.read(images.names.index(broken))


# ------------------------------------------------------------------------------------------------------------- download


class Server:
    """Serves `files` (path -> bytes) on this machine, as badly as asked for, and notes the requests."""

    def __init__(self):
        self.files = {}
        self.tags = {}  # path -> ETag, W/"..." for a weak one
        self.dates = {}  # path -> Last-Modified
        self.cut = {}  # path -> bytes after which the next answers break off, a number per answer
        self.ranges = True
        self.conditions = True  # whether it knows If-Range
        self.lengths = True
        self.only_parts = False
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler):
        path, headers = handler.path, handler.headers
        self.requests.append((path, headers.get("Range")))
        if path not in self.files:
            handler.send_error(404)
            return
        content, start, status = self.files[path], 0, 200
        validators = {"ETag": self.tags.get(path), "Last-Modified": self.dates.get(path)}
        condition = headers.get("If-Range")
        valid = not self.conditions or condition is None or condition in validators.values()
        if self.ranges and "Range" in headers and valid:
            start, status = int(re.fullmatch(r"bytes=(\d+)-", headers["Range"])[1]), 206
        if start >= len(content) > 0:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if self.only_parts:
            start, status = 5, 206
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.lengths:
            handler.send_header("Content-Length", str(len(content) - start))
        for name, value in validators.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        cuts = self.cut.get(path, [])
        handler.wfile.write(content[start:][: cuts.pop(0) if cuts else None])


@pytest.fixture
def server():
    serving = Server()
    with serving.http:
        thread = threading.Thread(target=serving.http.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.http.shutdown()
        thread.join()


CONTENT = np.random.default_rng(0).bytes(300_000)
SUM = ("sha256", hashlib.sha256(CONTENT).hexdigest())
VALIDATORS = [{"tags": '"1"'}, {"dates": "Wed, 21 Oct 2015 07:28:00 GMT"}, {"tags": 'W/"1"', "dates": "yesterday"}]


def serve(server, content=CONTENT, **validators):
    server.files["/file"] = content
    for kind, value in validators.items():
        getattr(server, kind)["/file"] = value
    return server.url + "/file"


@pytest.mark.parametrize("validators", VALIDATORS)
def test_a_cut_download_goes_on(validators, server, tmp_path):
    """Within one call, as long as that brings more; and later, in another call, from the byte reached."""
    url, target = serve(server, **validators), tmp_path / "new" / "file"
    server.cut["/file"] = [100_000, 50_000, 0]
    with pytest.raises(download.DownloadError, match=rf"{re.escape(url)}: .* after 150000 of 300000 bytes"):
        download.download(url, target, SUM)
    assert [span for _, span in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert {path.name for path in target.parent.iterdir()} == {"file.part", "file.part.json"}
    assert download.download(url, target, SUM) == target
    assert server.requests[-1] == ("/file", "bytes=150000-")
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]
    number = len(server.requests)
    assert download.download(url, target, SUM) == target and len(server.requests) == number  # it is there


def test_stopped_after_the_last_byte(server, tmp_path):
    """Everything arrived, but the program was stopped before it could say so."""
    url, target = serve(server, tags='"1"'), tmp_path / "file"
    server.cut["/file"] = [299_999, 0]
    with pytest.raises(download.DownloadError):
        download.download(url, target, SUM)
    (tmp_path / "file.part").write_bytes(CONTENT)
    download.download(url, target, SUM)
    assert len(server.requests) == 2 and target.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("new", [CONTENT[::-1], CONTENT[:120_000], CONTENT[:150_000]])
def test_changed_meanwhile(new, conditions, server, tmp_path):
    """Another file on the server is downloaded from its start, also from a server that knows no If-Range."""
    url, target = serve(server, tags='"1"'), tmp_path / "file"
    server.cut["/file"] = [150_000, 0]
    with pytest.raises(download.DownloadError):
        download.download(url, target)
    serve(server, new, tags='"2"')
    server.conditions = conditions
    download.download(url, target, ("md5", hashlib.md5(new).hexdigest()))
    assert target.read_bytes() == new and list(tmp_path.iterdir()) == [target]


def test_without_ranges_or_validators(server, tmp_path):
    """It starts anew, and keeps nothing where nothing could go on."""
    url, target = serve(server, tags='"1"'), tmp_path / "file"
    server.ranges = False
    server.cut["/file"] = [150_000, 100_000]
    with pytest.raises(download.DownloadError, match="after 100000 of 300000"):
        download.download(url, target, SUM)
    download.download(url, target, SUM)
    assert target.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [target]
    target.unlink()
    server.tags.clear()
    server.ranges = True
    server.cut["/file"] = [150_000]
    with pytest.raises(download.DownloadError, match="after 150000 of 300000"):
        download.download(url, target, SUM)
    assert list(tmp_path.iterdir()) == []
    download.download(url, target, SUM)
    assert server.requests[-1] == ("/file", None) and target.read_bytes() == CONTENT


def test_without_a_length(server, tmp_path):
    """The checksum decides what a broken connection is."""
    url, target = serve(server, tags='"1"'), tmp_path / "file"
    server.lengths = False
    server.cut["/file"] = [1000]
    with pytest.raises(download.DownloadError, match="SHA-256"):
        download.download(url, target, SUM)
    assert list(tmp_path.iterdir()) == []
    assert download.download(url, target, SUM).read_bytes() == CONTENT


def test_wrong_checksum(server, tmp_path):
    url, target = serve(server, tags='"1"'), tmp_path / "file"
    with pytest.raises(download.DownloadError, match=rf"{re.escape(url)}: .* MD5 is .*, expected 00"):
        download.download(url, target, ("md5", "00"))
    assert list(tmp_path.iterdir()) == []
    server.cut["/file"] = [1000, 0]
    with pytest.raises(download.DownloadError, match="bytes"):
        download.download(url, target, SUM)
    (tmp_path / "file.part").write_bytes(bytes(1000))  # what is here is damaged: found at the end, and not kept
    with pytest.raises(download.DownloadError, match="SHA-256"):
        download.download(url, target, SUM)
    assert list(tmp_path.iterdir()) == []


def test_note_of_another_address(server, tmp_path):
    url = serve(server, tags='"1"')
    (tmp_path / "file.part").write_bytes(b"something else")
    notes = ["", "[]", "{}"]
    for address, validators in (("http://other", {"ETag": '"1"'}), (url, []), (url, 5), (url, {})):
        notes.append(json.dumps({"url": address, "validators": validators, "bytes": len(CONTENT)}))
    for note in notes:
        (tmp_path / "file.part.json").write_text(note)
        assert download.download(url, tmp_path / "file", SUM).read_bytes() == CONTENT
        (tmp_path / "file").unlink()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("started", [False, True])
def test_a_server_that_only_sends_parts(started, server, tmp_path):
    """Told apart from the whole file, without an endless loop."""
    url = serve(server, tags='"1"')
    if started:
        server.cut["/file"] = [1000, 0]
        with pytest.raises(download.DownloadError):
            download.download(url, tmp_path / "file", SUM)
    server.only_parts = True
    with pytest.raises(download.DownloadError, match="a part of the file when asked for all"):
        download.download(url, tmp_path / "file", SUM)
    assert list(tmp_path.iterdir()) == []


def test_refused(server, tmp_path):
    with pytest.raises(download.DownloadError, match="404"):
        download.download(server.url + "/missing", tmp_path / "file")
    (tmp_path / "plain").write_text("")
    with pytest.raises(download.DownloadError, match=re.escape(server.url)):
        download.download(server.url + "/file", tmp_path / "plain" / "file")


@pytest.fixture
def signs_server(server, small, monkeypatch):
    """The small made-up set behind a server, and its sums as those that are expected."""
    sums = {}
    for name in data.SETS.values():
        for path in (small / name / "annotations.txt", small / name / data.archive_name(name)):
            server.files[f"/{name}/{path.name}"] = path.read_bytes()
            server.tags[f"/{name}/{path.name}"] = f'"{path.name}"'
        sums[name] = hashlib.md5((small / name / "annotations.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "ANNOTATIONS_MD5", sums)
    return server


def test_fetch(signs_server, small, tmp_path, monkeypatch):
    archive = "/Set2/Set2Part0.zip"
    signs_server.cut[archive] = [10_000, 0]
    with pytest.raises(download.DownloadError, match="Set2Part0"):
        data.fetch(tmp_path, signs_server.url)
    data.fetch(tmp_path, signs_server.url + "/")
    assert signs_server.requests[-1] == (archive, "bytes=10000-") and len(signs_server.requests) == 6
    for path, content in signs_server.files.items():
        assert (tmp_path / path[1:]).read_bytes() == content
    record = json.loads((tmp_path / "Set2" / "Set2Part0.zip.sha256.json").read_text())
    assert record["sha256"] == hashlib.sha256(signs_server.files[archive]).hexdigest()
    with monkeypatch.context() as patch:  # the second time nothing is read again
        patch.setattr(zipfile.ZipFile, "testzip", None)
        data.fetch(tmp_path, "http://127.0.0.1:1")
    assert len(signs_server.requests) == 6


def test_fetch_refuses_wrong_files(signs_server, tmp_path):
    annotations, archive = "/Set1/annotations.txt", "/Set1/Set1Part0.zip"
    right = dict(signs_server.files)
    signs_server.files[annotations] += b"x"
    with pytest.raises(download.DownloadError, match=r"Set1/annotations\.txt: .*MD5"):
        data.fetch(tmp_path, signs_server.url)
    signs_server.files.update(right)
    damaged = bytearray(right[archive])
    damaged[len(damaged) // 2] ^= 255
    for content, message in ((bytes(damaged), "the sum of .*jpg is wrong"), (b"<html>", "is not a ZIP"), (b"", "ZIP")):
        signs_server.files[archive] = content
        with pytest.raises(download.DownloadError, match=rf"Set1Part0\.zip .*to be deleted.*|.*{message}"):
            data.fetch(tmp_path, signs_server.url)
        assert not (tmp_path / "Set1" / "Set1Part0.zip.sha256.json").exists()
        (tmp_path / archive[1:]).unlink()
    signs_server.files.update(right)
    data.fetch(tmp_path, signs_server.url)


# -------------------------------------------------------------------------------------------------------------- program

TINY = ["--scale=0.15", "--patch-size=24", "--n-patches=3", "--batch-size=8", "--pan=8", "--threads=1"]
WRITTEN = {"checkpoint.npz", "curves.png", "overlay.png", "model.weights.h5", "results.json"}


def main(capsys, *words):
    """(exit code, lines on stderr) of the program in this process."""
    code = program.main([*map(str, words)])
    return code, capsys.readouterr().err.splitlines()


def history(folder):
    entries = json.loads((folder / "results.json").read_text())["history"]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


@pytest.mark.keras
def test_end_to_end(signs_server, tmp_path, capsys, monkeypatch):
    """From the server to the figures; stopped in an epoch and resumed it ends as the run without a stop does."""
    import matplotlib.image
    import speed_limits_model as model

    options = [*TINY, "--epochs=3", "--lr-drop=1", "--data", tmp_path / "data", "--url", signs_server.url]
    code, _ = main(capsys, *options, "--out", tmp_path / "whole")
    assert code == 0
    assert {path.name for path in (tmp_path / "whole").iterdir()} == WRITTEN
    for name in ("curves", "overlay"):
        assert matplotlib.image.imread(tmp_path / "whole" / f"{name}.png").std() > 0
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["images"] == {
        "train": {"EMPTY": 6, "50_SIGN": 4, "70_SIGN": 4, "80_SIGN": 4},
        "test": {"EMPTY": 3, "50_SIGN": 2, "70_SIGN": 2, "80_SIGN": 2},
    }
    assert [entry["epoch"] for entry in results["history"]] == [1, 2, 3]
    assert (
        results["test_accuracy"]
        == results["history"][-1]["test_accuracy"]
        == 1 - history(tmp_path / "whole")[-1]["test_error"]
    )

    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if len(program_run) == 1 and batch == 1:
                raise KeyboardInterrupt

    program_run, keep, fit = [], program.Run._keep, keras.Model.fit
    with monkeypatch.context() as patch:
        patch.setattr(program.Run, "_keep", lambda run, entry: (keep(run, entry), program_run.append(1)))
        patch.setattr(keras.Model, "fit", lambda *a, callbacks, **k: fit(*a, callbacks=[*callbacks, Stop()], **k))
        code, lines = main(capsys, *options, "--out", tmp_path / "stopped")
    assert code == 130 and "stopped after 1 whole epochs; to go on:" in lines and lines[-1].endswith("--resume")
    code, lines = main(capsys, *options, "--out", tmp_path / "stopped")
    assert code == 2 and "holds a run of 1 epochs: add --resume" in lines[-1]
    code, lines = main(capsys, *options, "--out", tmp_path / "stopped", "--resume", "--lr=0.1")
    assert code == 2 and "--lr 0.1 contradicts" in lines[-1]
    code, _ = main(capsys, "--data", tmp_path / "data", "--out", tmp_path / "stopped", "--resume", "--threads=1")
    assert code == 0
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == WRITTEN
    (tmp_path / "stopped" / "overlay.png").unlink()
    assert main(capsys, *options, "--out", tmp_path / "stopped", "--resume")[0] == 0  # all epochs are done
    assert (tmp_path / "stopped" / "overlay.png").is_file()
    (tmp_path / "stopped" / "checkpoint.npz").write_bytes(b"PK\3\4 broken")
    code, lines = main(capsys, *options, "--out", tmp_path / "stopped", "--resume")
    assert code == 2 and "checkpoint.npz is not a checkpoint of this program" in lines[-1]

    # the learning rate falls after the first epoch
    stored = program.keras_module("keras_training").read_checkpoint(tmp_path / "whole" / "checkpoint.npz")
    assert any(array.shape == () and np.isclose(array, 1e-4) for array in stored["backend"]["optimizer"])
    assert model.grid((240, 320), 0.15) == (3, 5)


@pytest.mark.keras
def test_look(signs_server, small, tmp_path):
    """The boxes lie where the attention's cells are, and the prediction is that of the patches in them."""
    run = program.start([*TINY, "--data", str(small), "--url", signs_server.url, "--out", str(tmp_path)])
    images = np.stack([run.test.read(i) for i in range(4)])
    look = run.classifier.look(images, (5, 0))
    rows, columns = look.attention.shape[1:]
    np.testing.assert_allclose(look.attention.sum(axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(look.probabilities.sum(axis=1), 1, rtol=1e-5)
    low = 36, 48
    assert run.low_shape == low
    for b in range(4):
        for (top, left), weight in zip(look.origins[b], look.weights[b], strict=True):
            centre = np.array([top, left]) + 12 - 4.5 * 240 / 36
            cell = centre / [(low[0] - 9) * 240 / 36 / rows, (low[1] - 9) * 320 / 48 / columns]
            i, j = np.round(cell - 0.5).astype(int)
            assert look.attention[b, i, j] == pytest.approx(weight, rel=1e-5)
    same, other = (run.classifier.look(images, (seed, 0)) for seed in (5, 6))
    np.testing.assert_array_equal(same.origins, look.origins)
    np.testing.assert_allclose(same.probabilities, look.probabilities, rtol=1e-5)
    assert not np.array_equal(other.origins, look.origins)


BAD = """--lr inf|--lr nan|--lr 0|--lr -1|--lr x|--entropy nan|--entropy -1|--seed -1|--seed 2147483648|--scale 0|--scale 1.5
--scale nan|--n-patches 0|--patch-size 4|--patch-size 100000|--pan -1|--epochs 0|--batch-size 0|--lr-drop -1
--clipnorm nan|--threads 0|--estimator none|--estimator iid --n-patches 1|--url ftp://here|--url here|--unknown 1
--made-up --data here|--made-up --url http://here"""


@pytest.mark.parametrize("words", re.split(r"[|\n]", BAD))
def test_bad_option(words, tmp_path, capsys):
    code, lines = main(capsys, *TINY, "--out", tmp_path / "out", *words.split())
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith("speed_limits.py: error: ") and words.split()[-2] in lines[0]
    assert not (tmp_path / "out").exists()


def test_keras_that_does_not_work(tmp_path):
    """A backend without our operations is refused by a line that says which ones have them."""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    for script in ("speed_limits.py --made-up", "megapixel_mnist.py --backend keras"):
        line = [sys.executable, *script.split(), "--out", str(tmp_path / "out")]
        done = subprocess.run(line, cwd=EXAMPLES, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and not (tmp_path / "out").exists()
        assert re.search(
            r"\.py: error: .*not on 'jax': set KERAS_BACKEND=tensorflow or KERAS_BACKEND=torch", done.stderr
        )
        assert "Traceback" not in done.stderr


def test_bad_option_for_these_images(signs_server, small, tmp_path, capsys):
    options = [*TINY, "--data", small, "--url", signs_server.url, "--out", tmp_path]
    for words, message in (("--n-patches=16", "15 cells"), ("--scale=0.05", "too small")):
        code, lines = main(capsys, *options, words)
        assert code == 2 and words.split("=")[0] in lines[-1] and message in lines[-1]


def test_no_server(tmp_path, capsys):
    code, lines = main(capsys, "--data", tmp_path / "data", "--url", "http://127.0.0.1:1", "--out", tmp_path / "out")
    assert code == 2 and len(lines) == 1 and "could not download http://127.0.0.1:1/Set1/annotations.txt" in lines[0]


@pytest.mark.keras
def test_diverged_and_interrupted(signs_server, small, tmp_path, capsys, monkeypatch):
    options = [*TINY, "--epochs=2", "--data", small, "--url", signs_server.url]
    run = program.start([*map(str, options), "--out", str(tmp_path / "a")])
    with pytest.raises(program.OptionError, match="diverged: the loss of epoch 1 is nan; choose a lower --lr"):
        run._keep({"epoch": 1, "loss": float("nan")})
    assert not (tmp_path / "a" / "checkpoint.npz").exists()
    monkeypatch.setattr(program, "fetch", Mock(side_effect=KeyboardInterrupt))
    code, lines = main(capsys, *options, "--out", tmp_path / "b")
    assert code == 130 and lines[-2] == "stopped; to go on:"


@pytest.mark.keras
def test_made_up_defaults(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(made_up, "COUNTS", COUNTS)
    monkeypatch.setattr(program.Run, "fit", lambda run: seen.append(run))
    monkeypatch.setattr(program, "report", lambda run: None)
    seen = []
    assert main(capsys, "--made-up", "--epochs", 7, "--threads", 1, "--out", tmp_path)[0] == 0
    (run,) = seen
    assert vars(run.options).items() >= {**program.MADE_UP, "epochs": 7, "scale": 0.3}.items()
    assert (len(run.train), len(run.test)) == (18, 9)
    before = os.stat(tmp_path / "data" / "Set1" / "Set1Part0.zip").st_mtime_ns
    assert main(capsys, "--made-up", "--threads", 1, "--out", tmp_path)[0] == 0  # not drawn again
    assert os.stat(tmp_path / "data" / "Set1" / "Set1Part0.zip").st_mtime_ns == before
