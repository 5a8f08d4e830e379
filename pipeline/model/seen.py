"""How much of an image a network sees: all of it, or the middle, where a single cell is what the label says."""


def seen_size(size: int, center: float) -> int:
    """Pixels a side that a network sees of images of `size`, whose share `center` in (0, 1] lies about the middle."""
    return max(1, round(size * center))


def size_to_decode(seen: int, center: float) -> int:
    """Pixels a side of images of which a network sees `seen`; `seen_size` of it is `seen`."""
    return round(seen / center)


def middle_of(size: int, seen: int) -> slice:
    """Of `size` pixels a side the `seen` in the middle; all where there are no more."""
    start = max(0, (size - seen) // 2)
    return slice(start, start + seen)
