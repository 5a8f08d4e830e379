"""What decoding costs at worst, from the header: for whoever has to decide where and when an image is decoded."""

from pipeline.images.load import Header

# Nanoseconds a pixel of one core, of the costliest content found in images of 16 megapixels (noise, lossless, LZW).
# JPEG 2000 is counted twice: Pillow holds Python's lock while it is decoded, and nothing else runs.
_OF_A_PIXEL = {
    "jpeg": 13, "png": 52, "tiff": 52, "bmp": 20, "gif": 25, "webp": 50, "jp2": 600, "avif": 50, "heic": 50, "pnm": 48,
    "dicom": 300,
}  # fmt: skip
_OF_A_BYTE = 10  # that is no pixel: text, profiles, fill


def worst_seconds(header: Header, size_bytes: int) -> float:
    """Seconds of one core. `size_bytes`: of the file."""
    return (header.width * header.height * _OF_A_PIXEL.get(header.format, 300) + size_bytes * _OF_A_BYTE) / 1e9
