"""What decoding costs at worst, from the header: for whoever has to decide where and when an image is decoded."""

from pipeline.images.load import Header

# Nanoseconds a pixel of one core, of the costliest content found in images of 16 megapixels (noise, lossless, LZW).
# JPEG 2000 is counted twice: Pillow holds Python's lock while it is decoded, and nothing else runs.
_OF_A_PIXEL = {
    "jpeg": 13, "png": 52, "tiff": 52, "bmp": 20, "gif": 25, "webp": 50, "jp2": 600, "avif": 50, "heic": 50, "pnm": 48,
    "dicom": 300,
}  # fmt: skip
_OF_A_BYTE = 10  # that is no pixel: text, profiles, fill
# Of a JPEG in several scans: its coefficients are kept and passed once more for each, whose bytes may say all of them.
_OF_A_SCANNED_PIXEL, _OF_A_SCANNED_BYTE = 1, 30


def worst_seconds(header: Header, size_bytes: int) -> float:
    """Seconds of one core. `size_bytes`: of the file."""
    of_a_pixel, of_a_byte = _OF_A_PIXEL.get(header.format, 300), _OF_A_BYTE
    if header.scans > 1:
        of_a_pixel, of_a_byte = of_a_pixel + header.scans * _OF_A_SCANNED_PIXEL, _OF_A_SCANNED_BYTE
    return (header.width * header.height * of_a_pixel + size_bytes * of_a_byte) / 1e9
