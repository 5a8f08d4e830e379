"""What a Zstandard frame needs to be read (RFC 8878, 3.1.1): a window of memory, which `zstd --long` makes large."""

from pipeline.base.errors import Code
from pipeline.sources.archives.damage import Damaged

HEADER_BYTES = 14
_MAGIC = b"\x28\xb5\x2f\xfd"
_MOST_WINDOW_LOG = 27  # of the decoder that PyArrow has: 128 MiB, as `zstd -d` without --long


def refuse_long_window(head: bytes) -> None:
    """Raise Damaged for a frame, by its first HEADER_BYTES, whose window is longer than the decoder allows."""
    if len(head) < 6 or not head.startswith(_MAGIC):
        return
    descriptor = head[4]
    if descriptor & 0x20:  # a single segment: its window is the content, whose size follows
        size_bytes = (1, 2, 4, 8)[descriptor >> 6]
        at = 5 + (0, 1, 2, 4)[descriptor & 3]
        window = int.from_bytes(head[at : at + size_bytes], "little")
    else:
        base = 1 << (10 + (head[5] >> 3))
        window = base + (base >> 3) * (head[5] & 7)
    if window > 1 << _MOST_WINDOW_LOG:
        message = f"zstd with a window of {window >> 20} MiB (--long); pack it anew with zstd --long={_MOST_WINDOW_LOG}"
        raise Damaged(Code.UNSUPPORTED_FORMAT, f"{message} or less")
