"""Archives: which images lie in a tar or zip, and where, so that each can be read by byte range.

    access   where the bytes are                              `offset`
    file     the whole object                                 null
    range    plain bytes inside `uri` (tar)                   first byte of the image
    zip      a zip member, stored or deflated                 its local header
    archive  a compressed tar that is not listed yet: opened    null
             by whoever scores it
    stream   behind a compression that allows no random       ordinal among such members
             access (.tar.gz/.bz2/.xz, also inside another
             archive; an archive deflated inside a zip)

Nothing is ever extracted to disk by name. Archives inside archives are opened one deep. Formats: POSIX.1-2001 pax
and GNU tar; PKWARE APPNOTE 6.3 (zip64 included).
"""

from pipeline.sources.archives.damage import Damaged
from pipeline.sources.archives.members import (
    Entry,
    Found,
    Ignored,
    Problem,
    holds_many,
    is_archive,
    is_compressed_tar,
    is_image,
    readable,
    suffix,
    unread,
)
from pipeline.sources.archives.other_kinds import unread_archive
from pipeline.sources.archives.walk import list_archive, read_archive, stream_members
from pipeline.sources.archives.zips import SLACK_BYTES, read_zip_member

__all__ = [
    "SLACK_BYTES",
    "Damaged",
    "Entry",
    "Found",
    "Ignored",
    "Problem",
    "holds_many",
    "is_archive",
    "is_compressed_tar",
    "is_image",
    "list_archive",
    "read_archive",
    "read_zip_member",
    "readable",
    "stream_members",
    "suffix",
    "unread",
    "unread_archive",
]
