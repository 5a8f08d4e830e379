"""Which format the first bytes name, whether a file reaches its own end, and what to call its damage."""

import re
import struct

from pipeline.base.errors import Code, ImageRejected
from pipeline.base.text import first_line
from pipeline.images.formats import boxes, jpeg, jpeg2000, png, tiff

DICOM_HEAD_BYTES = 132
_ADDRESS = re.compile(r" <[\w.]+ object at 0x[0-9a-f]+>")  # in what Pillow says; another one in each process
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM (PS3.10, section 7.1)."""
    return head[DICOM_HEAD_BYTES - 4 : DICOM_HEAD_BYTES] == b"DICM"


def sniff(data: bytes) -> str | None:
    """The format that the magic number names, None if none of ours."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == png.MAGIC[: len(data)] and len(data) >= 4:
        return "png"
    if data[:4] in tiff.MAGICS:
        return "tiff"
    if data[:4] == b"RIFF" and data[8:12] in (b"WEBP"[: len(data) - 8], b"WEBP"):
        return "webp"
    if data[:4] == b"GIF8":
        return "gif"
    if data[:2] == b"BM" and len(data) >= 14 and data[6:10] == b"\x00\x00\x00\x00":
        return "bmp"
    if data[:4] == jpeg2000.CODESTREAM or data[:12] == jpeg2000.FILE:
        return "jp2"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "pnm"
    if data[4:8] == b"ftyp":
        return _brand(data)
    return "dicom" if is_dicom(data) else None


def _brand(data: bytes) -> str | None:
    """Of the ISO base media file format (ISO/IEC 14496-12): AVIF and HEIC share it with films."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[at : at + 4] for at in (8, *range(16, end, 4))]
    if b"avif" in brands or b"avis" in brands:
        return "avif"
    return "heic" if _HEIC.intersection(brands) else None


def is_complete(data: bytes, name: str) -> bool:
    """Whether the file reaches the end that its own header or end marker promises."""
    if name == "jpeg":
        return jpeg.is_complete(data)
    if name == "png":
        return png.is_complete(data)
    if name == "gif":
        return data.rstrip(b"\x00").endswith(b"\x3b")
    if name == "webp":
        return len(data) >= 12 and len(data) >= int.from_bytes(data[4:8], "little") + 8
    if name == "bmp":
        return len(data) >= _bmp_bytes(data)
    if name == "jp2":
        frame = jpeg2000.read_frame(data)
        return frame is not None and frame.is_complete
    if name in ("avif", "heic"):
        return boxes.is_complete(data)
    page = tiff.first_page(data)
    return page is not None and page.end <= len(data)


def _bmp_bytes(data: bytes) -> int:
    """Length by the file header, or by the size of the pixels where some programs leave a 0 there."""
    announced = int.from_bytes(data[2:6], "little")
    if announced or len(data) < 34:
        return announced
    width, height, bits, compression = struct.unpack_from("<iixxHI", data, 18)
    if compression != 0:
        return announced
    return int.from_bytes(data[10:14], "little") + int((width * bits + 31) // 32 * 4 * abs(height))


def damaged(data: bytes, name: str, error: Exception) -> ImageRejected:
    detail = _ADDRESS.sub("", first_line(error))
    if is_complete(data, name):
        return ImageRejected(Code.CORRUPT, f"damaged {name}: {detail}")
    return ImageRejected(Code.TRUNCATED, f"{name} ends too early ({len(data)} bytes): {detail}")
