"""What cannot be read is an error that names the file, and what is missing is named too."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sources_files
from ats_core.sources import FunctionSource, Level, SourceBatch, SourceError, handles, open_source
from ats_core.sources import errors as source_errors
from sources_files import made, need, pixels, smooth  # noqa: F401

ON_DISK = [name for name in sources_files.NAMES if "array" not in name]


@pytest.mark.parametrize("part", range(3))
def test_damaged_files(part):
    """200 of every backend. In a process of its own: a library that crashes is a failure, not the end of the tests."""
    names = ON_DISK[part::3]
    command = [sys.executable, Path(__file__).with_name("sources_fuzz.py"), "--count", "200", "--share", *names]
    result = subprocess.run(command, check=False, capture_output=True, timeout=300)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:].decode(errors="replace")
    assert all(f"\n{name}: " in result.stdout.decode() for name in names)


def test_a_file_that_vanished(made, tmp_path):  # noqa: F811
    path, options, _ = made
    if not isinstance(path, str | os.PathLike):
        return
    file = str(path).removeprefix("file://").partition("::")[0]
    moved = f"{tmp_path}/gone"
    with open_source(path, **options) as source:
        state = pickle.dumps(source)
    os.rename(file, moved)
    try:
        with pytest.raises(SourceError) as caught:
            open_source(path, **options)
        assert file in str(caught.value)
        with pytest.raises(SourceError) as caught, pickle.loads(state) as source:
            source.read(0, [0] * len(source.shape), 2)
        assert file in str(caught.value)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), SourceError)
    finally:
        os.rename(moved, file)


def test_a_map_of_a_file_that_was_cut_off(tmp_path):
    """Would be a bus error."""
    np.save(tmp_path / "a.npy", np.ones((4096, 4096), np.uint8))
    with open_source(tmp_path / "a.npy") as source:
        assert source.read(0, (4000, 0), 5).all()
        os.truncate(tmp_path / "a.npy", 5000)
        words = r"a\.npy: level 0, region \[4000:4005, 0:5\]: .*cut off: 5000 bytes"
        with pytest.raises(SourceError, match=words):
            source.read(0, (4000, 0), 5)


def test_a_file_that_was_replaced(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((40, 40)))
    with open_source(tmp_path / "a.npy") as source, pickle.loads(pickle.dumps(source)) as other:
        np.save(tmp_path / "a.npy", np.ones((50, 50)))
        assert source.read(0, (0, 0), 2).all()  # still has the one that it opened
        with pytest.raises(SourceError, match="has changed since it was first opened"):
            other.read(0, (0, 0), 2)


def test_a_truncated_tile_names_file_and_region(tmp_path):
    tifffile, _ = need("tifffile", "imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", smooth((256, 256)), photometric="rgb", compression="jpeg", tile=(64, 64))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        last = file.pages[0].dataoffsets[-1]
    os.truncate(tmp_path / "a.tif", last + 10)
    with open_source(tmp_path / "a.tif") as source:
        source.read(0, (0, 0), 64)
        with pytest.raises(SourceError, match=r"a\.tif: level 0, region \[192:256, 192:256\]: the file is cut off"):
            source.read(0, (192, 192), 64)
        source.read(0, (0, 0), 64)  # and goes on


def test_an_unknown_compression(tmp_path):
    tifffile, _ = need("tifffile", "imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", smooth((64, 64)), photometric="rgb", compression="zlib", tile=(64, 64))
    data = (tmp_path / "a.tif").read_bytes()
    tag = b"\x03\x01\x03\x00\x01\x00\x00\x00"  # Compression, one SHORT
    assert data.count(tag) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(tag + data[data.index(tag) + 8 :][:2], tag + b"\xe9\xfd"))
    with pytest.raises(SourceError, match=r"a\.tif: "), open_source(tmp_path / "a.tif") as source:
        source.read(0, (0, 0), 64)


def test_a_wrong_checksum(tmp_path):
    [h5py] = need("h5py")
    image = pixels((32, 32, 3))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        where = (
            file.create_dataset("x", data=image, chunks=(16, 32, 3), fletcher32=True).id.get_chunk_info(1).byte_offset
        )
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[where + 5] ^= 1
    (tmp_path / "a.h5").write_bytes(data)
    with open_source(tmp_path / "a.h5") as source:
        np.testing.assert_array_equal(source.read(0, (0, 0), (16, 32)), image[:16])
        with pytest.raises(SourceError, match=r"a\.h5::x: level 0, region \[16:32, 0:32\]: .* has a wrong checksum"):
            source.read(0, (16, 0), 5)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xyz", b"nothing known" * 9, "neither its content nor its name is known; backend= takes one of"),
        ("a.svs", b"no slide" * 99, "a.svs: cannot be opened"),
        ("a.tif", b"II*\0" + bytes(99), "a.tif: "),
        ("a.wav", b"RIFF\0\0\0\0WAVE", "a.wav: cannot be opened: "),
        ("a.dcm", bytes(128) + b"DICM" + bytes(99), r"a.dcm: cannot be opened \(dicom: .*; openslide: "),
        ("a.npy", b"", "a.npy: cannot be opened"),
    ],
)
def test_what_is_no_such_file(tmp_path, name, content, words):
    need("openslide", "wsidicom", "tifffile", "soundfile")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path / name)


def test_nothing_there(tmp_path):
    for path in (tmp_path / "a.tif", f"{tmp_path}/a.h5::/x", tmp_path / "b" / "c.zarr"):
        with pytest.raises(SourceError, match="no such file"):
            open_source(path)
    with pytest.raises(SourceError, match="neither its content"):
        open_source(tmp_path)  # an empty folder


@pytest.mark.parametrize(
    ("module", "extra", "name"),
    [
        ("tifffile", "tiff", "a.tif"),
        ("openslide", "slides", "a.svs"),
        ("zarr", "zarr", "memory://a"),
        ("h5py", "hdf5", "a.h5"),
        ("wsidicom", "dicom", "a.dcm"),
        ("av", "video", "a.mp4"),
        ("soundfile", "audio", "a.wav"),
        ("nibabel", "nifti", "a.nii"),
    ],
)
def test_a_missing_package_names_the_command(tmp_path, monkeypatch, module, extra, name):
    monkeypatch.setitem(sys.modules, module, None)
    path = name if "://" in name else tmp_path / name
    if "://" not in name:
        path.write_bytes(b"?" * 600)
    with pytest.raises(ImportError) as caught:
        open_source(path)
    assert f"python -m pip install 'ats-core[{extra}]'" in str(caught.value) and module in str(caught.value)
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f"\n{extra} = [" in project


def test_bad_arguments(tmp_path):
    with open_source(pixels((9, 9, 3))) as source:
        for arguments, words in [
            ((1, (0, 0), 3), "level: must be 0 to 0"),
            ((0, (0, 0, 0), 3), "origin: must have 2 values"),
            ((0, (0, 0), 0), "size: must be at least 1"),
        ]:
            with pytest.raises(ValueError, match=words):
                source.read(*arguments)
        with pytest.raises(ValueError, match="padding: must be one of"):
            source.read(0, (0, 0), 3, padding="mirror")
        with pytest.raises(ValueError, match="size: must be at least 1"):
            source.thumbnail(0)
        for bad in (0.5, -2, float("nan"), float("inf"), (4, 0)):
            with pytest.raises(ValueError, match="downsample: must be at least 1"):
                source.thumbnail(downsample=bad)
        with pytest.raises(ValueError, match="downsample: must have 2 values, one a spatial axis, got 3"):
            source.thumbnail(downsample=(2, 2, 2))
        with pytest.raises(TypeError, match="downsample: must be a real number"):
            source.thumbnail(downsample="four")
        for both in ({}, {"size": 4, "downsample": 2}):
            with pytest.raises(TypeError, match="size: exactly one of size and downsample must be given"):
                source.thumbnail(**both)
        assert open_source(source) is source
    with pytest.raises(ValueError, match="backend: must be one of"):
        open_source("a.tif", backend="pillow")
    with pytest.raises(TypeError, match="make a FunctionSource"):
        open_source(len)
    with pytest.raises(ValueError, match="axes: must be 3 different letters"):
        open_source(pixels((9, 9, 3)), axes="yx")
    with pytest.raises(ValueError, match="name indices of the others"):
        open_source(pixels((2, 3, 9, 9)), axes="tzyx")
    assert open_source(pixels((2, 3, 9, 9)), axes="tzyx", select={"t": 1}).shape == (3, 9, 9)
    with pytest.raises(SourceError, match="has no pixels"):
        open_source(np.zeros((0, 4, 3)))
    with pytest.raises(TypeError, match="real numbers"):
        open_source(np.zeros((4, 4), complex))


def test_a_function_that_returns_something_else():
    for result, words in [
        (np.zeros((4, 4, 1), np.float32), "got float32"),
        (np.zeros((4, 4), np.uint8), r"got uint8 \(4, 4\)"),
        ("text", "pixels"),
    ]:
        for tile in (None, (4, 4)):
            source = FunctionSource(lambda *_, result=result: result, [Level((4, 4), (), tile)], "uint8", name="f")
            with pytest.raises(SourceError, match=rf"^f: level 0, region \[0:4, 0:4\]: .*{words}"):
                source.read(0, (0, 0), 4)
    with pytest.raises(SourceError, match="have to be decoded in one piece"):
        FunctionSource(len, [Level((10**6, 10**6), (), (10**5, 10**5))], "uint8")


def test_a_closed_source_says_so():
    source = open_source(pixels((9, 9, 3)))
    assert not source.closed and "closed" not in repr(source)
    source.close()
    source.close()
    assert source.closed and "closed" in repr(source)
    with pytest.raises(SourceError, match=r"^array \(9, 9, 3\): .*is closed"):
        source.read(0, (0, 0), 3)
    with pytest.raises(SourceError, match="is closed"):
        source.thumbnail(3)


def test_ten_thousand_opens(tmp_path):
    """More than a process may have open, with and without a close."""
    np.save(tmp_path / "a.npy", pixels((9, 9, 3)))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10_000):
        source = open_source(tmp_path / "a.npy")
        if number % 2:
            source.close()
    del source
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_sources_share_few_files(tmp_path):
    np.save(tmp_path / "a.npy", pixels((9, 9, 3)))
    before = len(os.listdir("/proc/self/fd"))
    count = 2 * handles.LIMIT
    with SourceBatch([tmp_path / "a.npy"] * count) as batch:
        patches = batch.read_patches(np.zeros((count, 1, 2), np.int64), 9)
        assert (patches[:, 0] == np.load(tmp_path / "a.npy")).all()
        assert len(os.listdir("/proc/self/fd")) <= before + handles.LIMIT
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_words_of_an_error():
    assert source_errors.words(KeyError()) == "KeyError"
    assert len(source_errors.words(ValueError("x" * 1000))) < 330


def test_a_memory_map_is_sent_by_its_name(tmp_path):
    whole = pixels((300, 400, 3))
    np.save(tmp_path / "a.npy", whole)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for view in (mapped, mapped[10:, 5::2], mapped[::-1], np.asarray(mapped)[3:]):
        with open_source(view) as source:
            state = pickle.dumps(source)
            assert len(state) < 2000
            with pickle.loads(state) as other:
                np.testing.assert_array_equal(other.read(0, (0, 0), other.shape), view)


def test_nothing_is_imported_before_it_is_needed():
    packages = ["torch", "tensorflow", "keras", "tifffile", "openslide", "zarr", "tensorstore", "h5py", "av", "nibabel"]
    code = (
        "import sys, numpy as np, ats_core.sources as s; s.open_source(np.ones((9, 9))).read(0, (0, 0), 3); "
        f"print([name for name in {packages} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
