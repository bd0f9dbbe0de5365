"""Files made to harm: voxels from elsewhere, memory filled, time spent, processes ended. Each
is refused in one sentence, in little time.
"""

import gzip
import os
import time
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sea_peft.data.cases import ImageFile, VolumeCache
from sea_peft.data.dicom.files import is_dicom
from sea_peft.data.layouts import open_dataset
from sea_peft.data.volumes import Volume, header_grid, read_volume
from sea_peft.errors import DataError

ARRAY = np.random.default_rng(0).integers(-100, 100, (8, 8, 8)).astype("<i2")
RAW = ARRAY.tobytes(order="F")
NRRD = (
    b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 8 8 8\nspace"
    b" directions: (5,0,0) (0,5,0) (0,0,5)\nkinds: domain domain domain\nendian: little\nspace"
    b" origin: (0,0,0)\n"
)
META = (
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB ="
    b" False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 5 5 5\nDimSize"
    b" = 8 8 8\nElementType = MET_SHORT\n"
)
PACKED_META = META + b"CompressedData = True\nElementDataFile = LOCAL\n"
GZIP_NRRD = NRRD + b"encoding: gzip\n\n"
BOMB = zlib.compress(b"\0" * (1 << 28), 9)
GZIP_BOMB = gzip.compress(b"\0" * (1 << 28), 9)


def nifti(**header: object) -> bytes:
    image = nibabel.Nifti1Image(ARRAY, np.diag([5.0, 5, 5, 1]))
    raw = bytearray(image.to_bytes())
    for at, value in ((40, header.get("dim")), (108, header.get("offset"))):
        if value is not None:
            raw[at : at + value.nbytes] = value.tobytes()
    return bytes(raw)


HOSTILE = {
    # voxels from elsewhere
    "passwd.nrrd": (
        NRRD + b"encoding: raw\ndata file: /etc/passwd\n",
        "names '/etc/passwd' as its data file",
    ),
    "dots.nhdr": (
        NRRD + b"encoding: raw\ndata file: ../../../../etc/passwd\n",
        "as its data file; one file beside it",
    ),
    "alias.nhdr": (NRRD + b"encoding: raw\nDataFile: sub/../../x.raw\n", "as its data file"),
    "zero.nrrd": (NRRD + b"encoding: raw\ndata file: /dev/zero\n", "names '/dev/zero'"),
    "stdin.nrrd": (NRRD + b"encoding: raw\ndata file: -\n", "names '-' as its data file"),
    "list.nhdr": (
        NRRD + b"encoding: raw\ndata file: LIST\n/etc/passwd\n",
        "says nothing|names 'LIST'",
    ),
    "many.nhdr": (NRRD + b"encoding: raw\ndata file: /dev/fd/%d 0 7 1\n", "as its data file"),
    "pipe.nrrd": (NRRD + b"encoding: raw\ndata file: fifo\n", "names 'fifo' as its data file"),
    "link.nrrd": (
        NRRD + b"encoding: raw\ndata file: to_zero\n",
        "names 'to_zero' as its data file",
    ),
    "pipe.mhd": (META + b"ElementDataFile = fifo\n", "names 'fifo' as its data file"),
    "itself.nhdr": (NRRD + b"encoding: raw\n", "names no data file"),
    # memory as it was taken for voxels
    "longer.mha": (
        PACKED_META + zlib.compress(RAW + b"\0" * 1000),
        "promises 1024 bytes of voxels .8×8×8. in its header, but over 1024",
    ),
    "shorter.mha": (PACKED_META + zlib.compress(RAW[:-2]), "but 1022 are stored"),
    "bomb.mha": (PACKED_META + BOMB, "but over 1024 are stored"),
    "sized.mha": (
        PACKED_META.replace(b"CompressedData =", b"CompressedDataSize = 99999999\nCompressedData =")
        + zlib.compress(RAW),
        "'99999999' compressed bytes",
    ),
    "part.mha": (
        PACKED_META.replace(b"CompressedData =", b"CompressedDataSize = 20\nCompressedData =")
        + zlib.compress(RAW),
        "damaged or incomplete compressed voxels",
    ),
    "cut.mha": (
        META + b"ElementDataFile = LOCAL\n" + RAW[:-2],
        "is cut short: its header promises 1024 bytes",
    ),
    "string.mha": (
        META.replace(b"MET_SHORT", b"MET_STRING") + b"ElementDataFile = LOCAL\n" + RAW,
        "stores 'MET_STRING'",
    ),
    "cut.nrrd": (GZIP_NRRD + gzip.compress(RAW[:-2]), "is cut short.*but 1022 are stored"),
    "broken.nrrd": (
        GZIP_NRRD + gzip.compress(RAW)[:-40],
        "damaged or incomplete compressed voxels",
    ),
    # processes ended, time and memory spent
    "comment.nrrd": (
        NRRD + b"encoding: raw\n#" + b"x" * 5_000_000 + b"\n\n" + RAW,
        "a header line of over 65536 characters",
    ),
    "line.nrrd": (
        NRRD + b"encoding: raw\nkey:=" + b"x" * 5_000_000 + b"\n\n" + RAW,
        "a header line of over",
    ),
    "word.nrrd": (
        NRRD + b"encoding: ascii\n\n" + b"1 " * 100 + b"x" * 70_000 + b" 1" * 500,
        "holds no numbers where its voxels",
    ),
    "keys.nrrd": (
        NRRD + b"encoding: raw\n" + b"".join(b"k%d:=v\n" % i for i in range(100_000)) + b"\n" + RAW,
        "over 5000 header lines",
    ),
    "comments.nrrd": (
        NRRD + b"encoding: raw\n" + b"# x\n" * 100_000 + b"\n" + RAW,
        "over 5000 header lines",
    ),
    "huge.nrrd": (
        GZIP_NRRD.replace(b"8 8 8", b"99999 99999 99999") + GZIP_BOMB,
        "is cut short: its header promises 1999940",
    ),
    "axes.nrrd": (
        NRRD.replace(b"dimension: 3", b"dimension: 999999999") + b"encoding: raw\n\n" + RAW,
        "has '999999999' axes",
    ),
    "negative.nrrd": (
        NRRD.replace(b"8 8 8", b"8 -8 8") + b"encoding: raw\n\n" + RAW,
        "3 whole numbers are needed",
    ),
    "bzip2.nrrd": (NRRD + b"encoding: bzip2\n\nBZh9", "is stored as 'bzip2', which is not read"),
    "skips.nrrd": (
        NRRD + b"encoding: gzip\nbyte skip: 999999999\n\n" + GZIP_BOMB,
        "skips lines or bytes before packed voxels",
    ),
    "lies.nii.gz": (
        gzip.compress(nifti(dim=np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2"))),
        "is cut short",
    ),
    "offset.nii.gz": (gzip.compress(nifti(offset=np.array([3e9], "<f4"))), "is cut short"),
    "bomb.nii.gz": (
        gzip.compress(
            nifti(dim=np.array([3, 2048, 2048, 2048, 1, 1, 1, 1], "<i2")) + b"\0" * (1 << 28), 9
        ),
        r"is cut short|promises 16.0 GiB of voxels .2048×2048×2048., more than the 4 GiB",
    ),
}


@pytest.fixture(scope="module")
def pit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pit")
    os.mkfifo(folder / "fifo")
    (folder / "to_zero").symlink_to("/dev/zero")
    for name, (content, _) in HOSTILE.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_each_is_refused_in_one_sentence(pit, name, capfd):
    began = time.process_time()
    with pytest.raises(DataError, match=HOSTILE[name][1]) as caught:
        read_volume(pit / name)
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 20  # some of these took minutes, or for ever
    assert capfd.readouterr() == ("", "")


def test_a_pipe_is_no_volume(pit):
    for name in ("fifo.nii.gz", "fifo.nrrd"):
        os.mkfifo(pit / name)
        with pytest.raises(DataError, match="is a device or a pipe, not a volume"):
            read_volume(pit / name)
        with pytest.raises(DataError, match="is a device or a pipe"):
            header_grid(pit / name)
    assert not is_dicom(pit / "fifo")
    (pit / "sub").mkdir()
    os.mkfifo(pit / "sub" / "dataset.json")
    with pytest.raises(DataError, match="not recognised"):
        open_dataset(pit / "sub")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bomb.nii.gz", gzip.compress(nifti() + b"\0" * (1 << 28), 9)),
        ("bomb.nrrd", GZIP_NRRD + GZIP_BOMB),
        ("bomb.mha", PACKED_META + BOMB),
    ],
)
def test_no_more_is_inflated_than_the_header_promises(tmp_path, name, content):
    """256 MiB lie behind 1 KiB of voxels: neither time nor memory goes into them."""
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    try:
        volume = read_volume(tmp_path / name)
    except DataError:
        assert name == "bomb.mha"
    else:
        assert volume.shape == (8, 8, 8)
        assert any("more bytes than its header promises" in note for note in volume.notes)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 30 << 20


def test_what_is_padded_is_read_with_a_note(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti() + b"\0" * 160)
    (tmp_path / "b.nrrd").write_bytes(NRRD + b"encoding: raw\n\n" + RAW + b"\0" * 160)
    (tmp_path / "c.mha").write_bytes(META + b"ElementDataFile = LOCAL\n" + RAW + b"\0" * 160)
    for name in ("a.nii", "b.nrrd", "c.mha"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array, ARRAY)
        assert len(volume.notes) == 1
        assert "bytes" in volume.notes[0]


def test_voxels_beside_a_header_may_be_linked(tmp_path):
    """As datalad and DVC lay them out."""
    (tmp_path / "store").write_bytes(RAW)
    (tmp_path / "a.raw").symlink_to(tmp_path / "store")
    (tmp_path / "a.nhdr").write_bytes(NRRD + b"encoding: raw\ndata file: a.raw\n")
    (tmp_path / "b.mhd").write_bytes(META + b"ElementDataFile = a.raw\n")
    for name in ("a.nhdr", "b.mhd"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, ARRAY)


def test_gzip_streams_that_are_strung_together(tmp_path):
    """As pigz and bgzip write them."""
    parts = gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])
    (tmp_path / "a.nrrd").write_bytes(GZIP_NRRD + parts)
    whole = nifti()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))
    for name in ("a.nrrd", "a.nii.gz"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array, ARRAY)
        assert volume.notes == ()


def test_a_dicom_bomb_is_not_inflated(tmp_path):
    """A deflated data set holds everything but its first bytes in one packed stream."""
    pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
    import pydicom
    from dicom_scans import write_series

    path, *_ = write_series(tmp_path / "a", np.zeros((8, 8, 3)), np.diag([1.0, 1, 2, 1]))
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file.save_as(path)
    with pytest.raises(DataError, match="is a deflated DICOM file, which is not read"):
        open_dataset(tmp_path)


def test_the_cache_looks_at_one_volume_a_read():
    """However many it holds: 8,000 reads that each summed over everything took 9.5 s."""

    class Seen(np.ndarray):
        @property
        def nbytes(self) -> int:
            looks.append(1)
            return super().nbytes

    class Tiny(ImageFile):
        def read(self) -> Volume:
            return Volume(np.zeros((2, 2, 2)).view(Seen), np.eye(4))

    looks: list[int] = []
    cache = VolumeCache(1 << 30)
    for number in range(200):
        cache.read(Tiny(Path(__file__), number))
    assert 0 < len(looks) <= 2 * 200


def test_the_cache_forgets_the_oldest():
    class Counted(ImageFile):
        def read(self) -> Volume:
            reads.append(self.component)
            return Volume(np.zeros((10, 10, 10), np.uint8), np.eye(4))

    reads: list[int] = []
    cache = VolumeCache(2500)
    here = Path(__file__)
    for number in (0, 1, 0, 2, 0, 1):
        assert cache.read(Counted(here, number)).array.shape == (10, 10, 10)
    assert reads == [0, 1, 2, 1]


def test_a_slice_that_promises_too_much(tmp_path):
    pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
    from dicom_scans import write_series

    from sea_peft.data.dicom.series import read_series

    paths = write_series(
        tmp_path, np.zeros((8, 8, 3)), np.diag([1.0, 1, 2, 1]), Rows=65535, Columns=65535
    )
    with pytest.raises(DataError, match="promises 65535×65535 voxels, which the file cannot hold"):
        read_series(paths)
