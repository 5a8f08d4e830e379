"""Sound files of every kind, made by code, that mutation starts from; small, so that much of them is header."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid

from pipeline.images.formats import heic
from tests.dicoms import compressed, dicom, with_jpeg
from tests.images import deep_png, encoded, jpeg_tiff, pages, png_chunk, scene, tiff, with_png_chunk

SMALL = scene(24, 16)
GRAY = SMALL.convert("L")
RGB, DEEP = np.asarray(SMALL), np.asarray(GRAY).astype(np.uint16) * 16


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _film(kind: str, **options: Any) -> bytes:
    return encoded(SMALL, kind, save_all=True, append_images=[Image.new("RGB", SMALL.size, "red")] * 2, **options)


def _heif(image: Image.Image) -> bytes:
    heic.enable()
    return encoded(image, "HEIF")


_OME = (
    b"<OME><Pixels SizeC='3' SizeZ='1' SizeT='1' SignificantBits='12'>"
    b"<Channel Name='R'/><Channel Name='G'/><Channel Name='B'/></Pixels></OME>"
)
_IMAGEJ = b"ImageJ=1.54f\nimages=3\nchannels=3\nmode=composite\n"
_LEVELS, _NONE = bytes(range(256)), bytes(256)
_LUTS = (b"IJIJluts\0\0\0\3" + (_LEVELS + 3 * _NONE) * 2 + _LEVELS, [12, 768, 768, 768])
_XMP = b"<x:xmpmeta><rdf:Description tiff:Orientation='6'/></x:xmpmeta>"


def _stacks() -> list[bytes]:
    planes = [Image.fromarray(RGB[..., channel]) for channel in range(3)]
    return [
        pages(planes, _IMAGEJ, _LUTS), pages(planes, _OME), tiff(RGB, big=True, order=">", description=_OME),
        tiff(np.asarray(RGB).astype(np.uint16) * 16, tags={281: [4095] * 3}), tiff(DEEP, description=_OME),
    ]  # fmt: skip


def _raw_pnm() -> list[bytes]:
    return [b"P2\n# a\n2 2\n9\n1 2 3 4\n", b"P1 3 2 101010", b"P5 2 2 4095\n" + bytes(8), b"P4 9 1\n\xaa\x80"]


IMAGES: dict[str, Callable[[], list[bytes]]] = {
    "jpeg": lambda: [
        encoded(SMALL, "JPEG", exif=_exif()), encoded(SMALL, "JPEG", progressive=True), encoded(GRAY, "JPEG"),
        encoded(SMALL.convert("CMYK"), "JPEG"), encoded(SMALL, "JPEG", restart_marker_blocks=1),
        encoded(SMALL, "JPEG", xmp=_XMP),
    ],
    "png": lambda: [
        encoded(SMALL, "PNG", exif=_exif()), encoded(SMALL.quantize(8), "PNG", transparency=3),
        encoded(Image.fromarray(DEEP), "PNG"), encoded(SMALL.convert("LA"), "PNG"), _film("PNG"),
        with_png_chunk(deep_png(RGB.astype(np.uint16) * 16), png_chunk(b"sBIT", b"\x0c\x0c\x0c")),
        with_png_chunk(encoded(SMALL, "PNG"), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP)),
    ],
    "tiff": lambda: [
        encoded(SMALL, "TIFF", compression="tiff_lzw"), encoded(SMALL, "TIFF", compression="jpeg"), _film("TIFF"),
        jpeg_tiff(SMALL, 16), jpeg_tiff(SMALL, old=True),
        *_stacks(), tiff(DEEP), tiff(RGB, big=True), tiff(RGB, planar=True), tiff(RGB, order=">"),
        encoded(Image.fromarray(DEEP.astype(np.float32) / 4096), "TIFF"),
        encoded(GRAY.convert("1"), "TIFF", compression="group4"),
    ],
    "bmp": lambda: [encoded(SMALL, "BMP"), encoded(SMALL.quantize(8), "BMP")],
    "gif": lambda: [encoded(SMALL, "GIF"), _film("GIF")],
    "webp": lambda: [encoded(SMALL, "WEBP", exif=_exif()), encoded(SMALL, "WEBP", lossless=True), _film("WEBP")],
    "jpeg2000": lambda: [
        encoded(SMALL, "JPEG2000"), encoded(SMALL, "JPEG2000", no_jp2=True), encoded(Image.fromarray(DEEP), "JPEG2000"),
        encoded(SMALL, "JPEG2000", tile_size=(16, 16), irreversible=True),
    ],
    "avif": lambda: [encoded(SMALL, "AVIF", exif=_exif()), _film("AVIF")],
    "heic": lambda: [_heif(SMALL), _heif(GRAY)],
    "pnm": lambda: [encoded(SMALL, "PPM"), *_raw_pnm()],
    "dicom": lambda: [
        dicom(RGB), dicom(DEEP, BitsStored=12), with_jpeg(SMALL), compressed(RGB, uid.RLELossless),
        compressed(RGB, uid.JPEGLSLossless), compressed(np.tile(DEEP, (3, 3)), uid.JPEG2000Lossless, BitsStored=12),
    ],
}  # fmt: skip


def _members() -> list[tuple[str, bytes]]:
    inner = _zip([("y.png", b"image" * 9)], zipfile.ZIP_DEFLATED)
    return [("a/x.jpg", b"image" * 9), ("a/x.json", b'{"subject": 7}'), ("b.txt", b"x"), ("in.zip", inner),
            ("n" * 120 + ".png", b"z"), ("s.svs", b"slide")]  # fmt: skip


def _zip(members: list[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
        archive.comment = b"made by code"
    return buffer.getvalue()


def _tar(format: int, members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in members:
            item = tarfile.TarInfo(name)
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a/x.jpg"
        archive.addfile(link)
    return buffer.getvalue()


def _tars() -> list[bytes]:
    nested = [*_members(), ("in.tar", _tar(tarfile.USTAR_FORMAT, [("w.gif", b"image")]))]
    return [_tar(tarfile.PAX_FORMAT, nested), _tar(tarfile.GNU_FORMAT, nested)]


ARCHIVES: dict[str, Callable[[], list[bytes]]] = {
    "zip": lambda: [_zip(_members(), zipfile.ZIP_STORED), _zip(_members(), zipfile.ZIP_DEFLATED)],
    "tar": _tars,
    "tgz": _tars,  # packed after the mutation: of a gzip stream with flipped bits little is left
}
