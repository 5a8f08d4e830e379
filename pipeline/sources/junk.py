"""What desktops, network disks and programs leave beside images: left out and counted, wherever it lies."""

import functools
import re

OF_A_PROGRAM = "a program's own"  # why a file is left out
# Whole names of folders, in any case. By maker: Synology, QNAP, Samba and further network disks, NetApp and ZFS,
# Windows, macOS, Linux, programs.
_FOLDERS = re.compile(
    r"@eadir|#recycle|#snapshot|@tmp|@sharebin|@recently-snapshot"
    r"|@recycle|\.@__thumb|\.@__qini|@recycle_bin|\.@upload_cache|\.synologyworkingdirectory"
    r"|\.recycle(?:\.bin)?|trashbox|\.purge|\.wdmc|\.wdcache|\.timemachine|\.glusterfs|\.snap"
    r"|\.snapshots?|~snapshot|\.zfs|\.ckpt"
    r"|\$recycle\.bin|recycler|system volume information|dfsrprivate|_gsdata_"
    r"|__macosx|\.spotlight-v100|\.fseventsd|\.temporaryitems|\.trashes|\.documentrevisions-v100|\.apple(?:double|db|desktop)"
    r"|network trash folder|temporary items|lost\+found|\.trash[^/]*|\.thumb(?:nail)?s?|\.tmb|\.xvpics|\.cache"
    r"|\.stversions|\.stfolder|\.sync|\.dropbox\.cache|\.tmp\.drive(?:down|up)load|\.rsync-partial|\.~tmp~|[^/]+\.lrdata|\.picasaoriginals|\.comments"
    r"|\.ipynb_checkpoints|__pycache__|\.git|\.svn|\.hg|\.dvc|node_modules|\.venv",
    re.IGNORECASE,
)
_FILES = re.compile(
    r"\._.*|\.ds_.*|thumbs\.db|ehthumbs(?:_vista)?\.db|desktop\.ini|\.nfs[0-9a-f]+|\.fuse_hidden.*|~\$.*|\.~lock\..*"
    r"|[.~]syncthing[.~].*|.*@syno(?:eastream|resource)|icon\r|dicomdir"  # the last: the index of a medium
    r"|.*~|.*\.\w+_original",  # copies that editors and exiftool keep beside what they have changed
    re.IGNORECASE,
)


def is_junk(path: str) -> bool:
    """Whether a file, or one of the folders above it, is a program's own."""
    folder, _, name = path.rpartition("/")
    return is_junk_folder(folder) or _FILES.fullmatch(name) is not None


@functools.lru_cache(maxsize=65_536)  # a folder holds many files
def is_junk_folder(path: str) -> bool:
    """Whether one of the folders of a path is a program's own."""
    return any(_FOLDERS.fullmatch(name) for name in path.split("/"))
