"""A figure of the page, with what stands beside it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """One figure of the report: SVG, a title and what a reader should see in it."""

    svg: str
    title: str
    caption: str
    wide: bool = False
