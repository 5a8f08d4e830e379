"""One source, opened: a folder, an S3 prefix or pattern, an archive, a manifest or a table of URIs, as streams.

A stream gives what it finds piece by piece and may name further streams, which are listed beside it. The only place
that walks anything.

    look      how sources are looked at; what one object gives
    folders   folders on disk, prefixes on S3
    named     images that a manifest or a table names
    opening   which of these a source is
"""

from pipeline.sources.look import Branch, Look, Root, Source, Stream, open_archive
from pipeline.sources.opening import expand, open_named, open_source

__all__ = ["Branch", "Look", "Root", "Source", "Stream", "expand", "open_archive", "open_named", "open_source"]
