"""HEIC, which Pillow reads with a plug-in that is an extra."""

import functools

from pipeline.base.errors import Code, ImageRejected


@functools.cache
def enable() -> None:
    """Make Pillow read HEIC in this process. Raises ImageRejected where the plug-in is missing."""
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, "HEIC: pip install leukoray[heic]") from error
    pillow_heif.options.DECODE_THREADS = 1  # one worker a core
    pillow_heif.register_heif_opener()
