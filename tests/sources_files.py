"""Small files of every format that `ats_core.sources` reads, and their pixels as the format's own library reads them.

A maker is given a folder and returns (path, options of `open_source`, levels, each a whole array (*spatial, C)).
"""

import importlib
import warnings

import numpy as np
import pytest


def need(*modules):
    """Import packages that only some formats need; without them the tests of those are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [pytest.importorskip(module) for module in modules]


def pixels(shape, dtype="uint8", seed=0):
    """Noise over a ramp: no two tiles are alike, and JPEG finds something to keep."""
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def smooth(shape, seed=0):
    """An RGB image that JPEG keeps."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(x / (7 + c) + seed) + np.cos(y / (5 + c)) for c in range(3)]
    return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


def halves(image, count):
    """A pyramid whose levels are cut off, as scanners do it."""
    levels = [image]
    for _ in range(count - 1):
        last = levels[-1]
        levels.append(last[: last.shape[0] // 2 * 2 : 2, : last.shape[1] // 2 * 2 : 2].copy())
    return levels


def array(folder):
    image = pixels((61, 47, 3))
    return image, {}, [image]


def array_channels_first(folder):
    image = pixels((3, 61, 47), "int32")
    return image, {"axes": "cyx"}, [image.transpose(1, 2, 0)]


def npy(folder):
    image = pixels((61, 47, 3), "uint16")
    np.save(folder / "a.npy", image)
    return folder / "a.npy", {}, [image]


def npy_fortran(folder):
    volume = np.asfortranarray(pixels((19, 22, 25), "int16").astype(">i2"))
    np.save(folder / "a.npy", volume)
    return folder / "a.npy", {"axes": "zyx"}, [volume[..., None]]


def tiff(name, image, expected=None, **options):
    def make(folder):
        tifffile, _ = need("tifffile", "imagecodecs")
        tifffile.imwrite(folder / "a.tif", image, **options)
        levels = [tifffile.imread(folder / "a.tif")] if expected is None else [expected]
        return folder / "a.tif", {}, levels

    make.__name__ = name
    return make


def tiff_pyramid(folder):
    """JPEG tiles and levels in SubIFDs, a BigTIFF."""
    tifffile, _ = need("tifffile", "imagecodecs")
    levels = halves(smooth((307, 403)), 3)
    with tifffile.TiffWriter(folder / "a.tif", bigtiff=True) as writer:
        options = {"photometric": "rgb", "compression": "jpeg", "tile": (64, 96)}
        writer.write(levels[0], subifds=2, resolution=(20000, 10000), resolutionunit="CENTIMETER", **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    with tifffile.TiffFile(folder / "a.tif") as file:
        return folder / "a.tif", {}, [level.asarray() for level in file.series[0].levels]


def ome_tiff(folder):
    tifffile, _ = need("tifffile", "imagecodecs")
    stack = pixels((3, 2, 45, 52), "uint16")
    metadata = {"axes": "ZCYX"}
    for axis, size in zip("XYZ", (0.25, 0.5, 2.0), strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    tifffile.imwrite(folder / "a.ome.tif", stack, metadata=metadata, compression="zlib", tile=(32, 32))
    return folder / "a.ome.tif", {}, [stack.transpose(0, 2, 3, 1)]


def openslide(name, levels):
    """A pyramid in pages, as OpenSlide's generic TIFF format has it."""

    def make(folder):
        tifffile, _, library = need("tifffile", "imagecodecs", "openslide")
        with tifffile.TiffWriter(folder / "a.tif") as writer:
            for number, level in enumerate(levels):
                writer.write(level, photometric="rgb", compression="jpeg", tile=(128, 128), subfiletype=min(number, 1))
        with library.OpenSlide(folder / "a.tif") as slide:
            found = [
                np.asarray(slide.read_region((0, 0), level, size))[..., :3]
                for level, size in enumerate(slide.level_dimensions)
            ]
        assert len(found) == len(levels)
        return folder / "a.tif", {"backend": "openslide"}, found

    make.__name__ = name
    return make


def fourth(image):
    """A pyramid whose second level is no divisor of the first: OpenSlide would shift its regions."""
    return [image, image[: image.shape[0] // 4 * 4 : 4, : image.shape[1] // 4 * 4 : 4].copy()]


def zarr(name, version, dtype="uint8", **options):
    def make(folder):
        [library] = need("zarr")
        image = pixels((61, 47, 3), dtype)
        stored = library.create_array(folder / "a.zarr", data=image, zarr_format=version, **options)
        assert stored.shape == image.shape
        return folder / "a.zarr", {}, [image]

    make.__name__ = name
    return make


def zarr_url(folder):
    path, options, levels = zarr("", 3, chunks=(16, 24, 3))(folder)
    return f"file://{path}", options, levels


def ome_zarr(folder):
    [library] = need("zarr")
    image = pixels((1, 2, 1, 90, 70), "uint16")
    levels = [image, image[..., ::2, ::2]]
    group = library.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    datasets = []
    for number, level in enumerate(levels):
        group.create_array(str(number), data=level, chunks=(1, 1, 1, 32, 32))
        scale = [1.0, 1.0, 1.0, 0.5 * 2**number, 0.25 * 2**number]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": axis, "unit": "micrometer"} if axis in "zyx" else {"name": axis} for axis in "tczyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return folder / "a.zarr", {}, [level[0, :, 0].transpose(1, 2, 0) for level in levels]


def hdf5(name, dtype, channels=3, **options):
    def make(folder):
        [h5py] = need("h5py")
        image = pixels((61, 47, 3), dtype)
        image[:16, :24] //= 7  # so that some chunks can be compressed
        with h5py.File(folder / "a.h5", "w") as file:
            stored = file.create_dataset(
                "group/image", (70, 47, 3), dtype, chunks=(16, 24, channels), fillvalue=3, **options
            )
            stored[:61] = image
        image = np.concatenate([image, np.full((9, 47, 3), 3, dtype)])
        return f"{folder / 'a.h5'}::/group/image", {}, [image.astype(np.dtype(dtype).newbyteorder("="))]

    make.__name__ = name
    return make


def hdf5_contiguous(folder):
    [h5py] = need("h5py")
    volume = pixels((19, 22, 25), "int16")
    with h5py.File(folder / "a.h5", "w") as file:
        file["only"] = volume
    return folder / "a.h5", {"axes": "zyx"}, [volume[..., None]]


def dicom(folder):
    """Two levels of uncompressed tiles, a file each."""
    need("wsidicom", "pydicom")
    levels = halves(smooth((100, 130)), 2)
    uids = importlib.import_module("pydicom.uid")
    series = [uids.generate_uid(entropy_srcs=[str(number)]) for number in range(3)]
    (folder / "slide").mkdir()
    for number, image in enumerate(levels):
        write_dicom(folder / "slide" / f"{number}.dcm", image, 48, 0.0005 * 2**number, number, series)
    return folder / "slide", {}, levels


def write_dicom(path, image, size, spacing, number, series):
    pydicom = importlib.import_module("pydicom")
    uids = importlib.import_module("pydicom.uid")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uids.VLWholeSlideMicroscopyImageStorage
    instance = uids.generate_uid(entropy_srcs=[series[0], str(number)])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = instance
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = series
    data.Modality, data.PatientID, data.ContainerIdentifier = "SM", "none", "slide"
    data.ImageType = [
        "ORIGINAL" if number == 0 else "DERIVED",
        "PRIMARY",
        "VOLUME",
        "NONE" if number == 0 else "RESAMPLED",
    ]
    data.DimensionOrganizationType = "TILED_FULL"
    data.InstanceNumber = number + 1
    data.VolumetricProperties, data.FocusMethod, data.ExtendedDepthOfField = "VOLUME", "AUTO", "NO"
    data.SpecimenLabelInImage = data.BurnedInAnnotation = "NO"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.LossyImageCompression = 7, 0, "00"
    data.Rows = data.Columns = size
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = image.shape[:2]
    data.TotalPixelMatrixFocalPlanes = data.NumberOfOpticalPaths = 1
    data.ImagedVolumeHeight, data.ImagedVolumeWidth = (spacing * length for length in image.shape[:2])
    data.ImagedVolumeDepth = 0.001
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin = pydicom.Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    data.TotalPixelMatrixOriginSequence = [origin]
    measures = pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 0.001
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    path_item = pydicom.Dataset()
    path_item.OpticalPathIdentifier = "0"
    data.OpticalPathSequence = [path_item]
    rows, columns = (-(-length // size) for length in image.shape[:2])
    whole = np.full((rows * size, columns * size, 3), 255, np.uint8)
    whole[: image.shape[0], : image.shape[1]] = image
    frames = whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    data.NumberOfFrames = rows * columns
    data.PixelData = frames.tobytes()
    data.save_as(path, enforce_file_format=True)


def video(name, codec, pixel_format, suffix, **options):
    def make(folder):
        [av] = need("av")
        frames = (
            smooth((48, 64), 0)[None] // 2 + smooth((48, 64), 1)[None] // 40 * np.arange(40)[:, None, None, None] // 10
        )
        path = folder / f"a.{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
            for frame in frames.astype(np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        kind = "gray" if pixel_format == "gray" else "rgb24"
        with av.open(str(path)) as container:
            found = np.stack([frame.to_ndarray(format=kind) for frame in container.decode(video=0)])
        assert len(found) == len(frames)
        return path, {}, [found if found.ndim == 4 else found[..., None]]

    make.__name__ = name
    return make


def audio(name, suffix, subtype, dtype):
    def make(folder):
        [soundfile] = need("soundfile")
        time = np.arange(100_000 if suffix in ("ogg", "mp3") else 5000)[:, None] / 300
        samples = 0.5 * np.sin(time * np.array([1.0, 1.7]))
        soundfile.write(folder / f"a.{suffix}", samples, 16000, subtype=subtype)
        with soundfile.SoundFile(folder / f"a.{suffix}") as file:  # soundfile.read would seek
            return folder / f"a.{suffix}", {}, [file.read(dtype=dtype)]

    make.__name__ = name
    return make


def nifti(name, suffix, dtype="int16", scale=None):
    def make(folder):
        [nibabel] = need("nibabel")
        image = nibabel.Nifti1Image(pixels((19, 22, 25), dtype), np.diag([0.5, 1.0, 2.0, 1.0]))
        image.header.set_xyzt_units("mm")
        if scale is not None:
            image.header.set_slope_inter(*scale)
        image.to_filename(folder / f"a.{suffix}")
        whole = np.asanyarray(nibabel.load(folder / f"a.{suffix}", mmap=False).dataobj)
        return folder / f"a.{suffix}", {}, [whole.transpose(2, 1, 0)[..., None]]

    make.__name__ = name
    return make


RGB = {"photometric": "rgb"}
GRAY = {"photometric": "minisblack"}
MAKERS = [
    array,
    array_channels_first,
    npy,
    npy_fortran,
    tiff("tiff_plain", pixels((61, 47, 3)), **RGB),
    tiff("tiff_strips", pixels((61, 47, 3), "uint16"), compression="zlib", rowsperstrip=9, predictor=True, **RGB),
    tiff("tiff_tiles", pixels((61, 47, 3)), compression="zstd", tile=(16, 32), **RGB),
    tiff(
        "tiff_float",
        pixels((61, 47), "float32"),
        pixels((61, 47, 1), "float32"),
        compression="lzw",
        tile=(32, 32),
        **GRAY,
    ),
    tiff(
        "tiff_planar",
        pixels((3, 61, 47)),
        pixels((3, 61, 47)).transpose(1, 2, 0),
        compression="zlib",
        tile=(16, 32),
        planarconfig="separate",
        **RGB,
    ),
    tiff(
        "tiff_stack",
        pixels((5, 31, 47), "int16"),
        pixels((5, 31, 47), "int16")[..., None],
        compression="zlib",
        tile=(16, 32),
        byteorder=">",
        **GRAY,
    ),
    tiff(
        "tiff_imagej",
        pixels((5, 31, 47), "uint16"),
        pixels((5, 31, 47), "uint16")[..., None],
        imagej=True,
        metadata={"axes": "ZYX"},
    ),
    tiff_pyramid,
    ome_tiff,
    openslide("openslide", halves(smooth((512, 768)), 3)),
    openslide("openslide_odd", fourth(smooth((303, 4607)))),
    zarr("zarr2", 2, chunks=(16, 24, 3)),
    zarr("zarr3", 3, "float64", chunks=(16, 24, 2)),
    zarr("zarr3_shards", 3, "int16", chunks=(16, 24, 3), shards=(32, 48, 3)),
    zarr_url,
    ome_zarr,
    hdf5("hdf5", "float32", compression="gzip", fletcher32=True),
    hdf5("hdf5_shuffle", "uint16", 2, compression="gzip", shuffle=True, fletcher32=True),
    hdf5("hdf5_plain", "uint8"),
    hdf5("hdf5_lzf", "int16", compression="lzf"),
    hdf5_contiguous,
    dicom,
    video("video_h264", "libx264", "yuv420p", "mp4", g="12", bf="3"),
    video("video_mpeg4", "mpeg4", "yuv420p", "avi", g="9"),
    video("video_vp9", "libvpx-vp9", "yuv420p", "webm", g="12"),
    video("video_gray", "ffv1", "gray", "mkv"),
    audio("audio_wav", "wav", "PCM_16", "int16"),
    audio("audio_flac", "flac", "PCM_24", "float32"),
    audio("audio_double", "wav", "DOUBLE", "float64"),
    audio("audio_ogg", "ogg", "VORBIS", "float32"),
    audio("audio_mp3", "mp3", "MPEG_LAYER_III", "float32"),
    nifti("nifti", "nii"),
    nifti("nifti_gz", "nii.gz", "float32"),
    nifti("nifti_scaled", "nii", "int16", (0.5, 3.0)),
]
NAMES = [maker.__name__ for maker in MAKERS]


@pytest.fixture(scope="module", params=MAKERS, ids=NAMES)
def made(request, tmp_path_factory):
    """A file of each format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that write
        return request.param(tmp_path_factory.mktemp(request.param.__name__))
