"""What is an image, or takes the place of one, and is not read here: its name and what to do, by suffix and by bytes.

Whoever lists sources asks by suffix, so that no such file is left out without a word; the decoder asks by bytes.
"""

import re
from collections.abc import Mapping

from pipeline.images.formats.tiff import Page

_TILES = "cut whole slides into tiles of one field first, e.g. with QuPath or vips dzsave --depth one"
_FIELDS = "export its fields as TIFF or PNG, whole slides in tiles, e.g. with QuPath or Fiji"
_DEVELOP = "develop it into TIFF or PNG"
_CONVERT = "save it as PNG or TIFF"
_SAVED = "download it again, and look at what the server says"


def _known(advice: str, names: Mapping[str, str]) -> dict[str, str]:
    """Reasons by suffix."""
    return {suffix: f"{name}; {advice}" for suffixes, name in names.items() for suffix in suffixes.split()}


_UNREAD = {
    **_known(_TILES, {
        ".svs .afi": "a whole slide of Aperio", ".ndpi .ndpis .vms .vmu": "a whole slide of Hamamatsu",
        ".mrxs": "a whole slide of 3DHISTECH", ".scn": "a whole slide of Leica", ".vsi": "a whole slide of Olympus",
        ".bif": "a whole slide of Ventana", ".svslide": "a whole slide of Sakura",
        ".isyntax": "a whole slide of Philips",
        ".qptiff": "a whole slide of Akoya", ".kfb": "a whole slide of KFBIO",
        ".sdpc": "a whole slide of Sqray", ".tmap": "a whole slide of Unic",
    }),
    **_known(_FIELDS, {
        ".czi .lsm .zvi": "a microscope's own format (Zeiss)", ".lif .lof": "a microscope's own format (Leica)",
        ".nd2": "a microscope's own format (Nikon)", ".oib .oif .oir": "a microscope's own format (Olympus)",
        ".ims": "a microscope's own format (Imaris)", ".stk": "a microscope's own format (MetaMorph)",
        ".dv": "a microscope's own format (DeltaVision)", ".flex": "a microscope's own format (Opera)",
    }),
    **_known(_DEVELOP, {
        ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .iiq .kdc .dcr .mrw .erf .mef":
            "raw data of a camera",
    }),
    **_known(_CONVERT, {
        ".psd .psb": "a Photoshop document", ".xcf": "a GIMP document", ".jxl": "JPEG XL", ".jxr .wdp .hdp": "JPEG XR",
        ".jls": "JPEG-LS", ".jpm": "JPEG 2000 in pages", ".bpg": "BPG", ".exr": "OpenEXR",
        ".tga": "Targa", ".pcx": "PCX", ".qoi": "QOI", ".sgi": "SGI", ".pam .pfm": "a kind of PNM that is not read",
        ".fits .fts": "FITS", ".nii .nrrd .mha .mhd": "a volume",
    }),
}  # fmt: skip

_SIGNS: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, what they say
    (0, b"ZISRAWFILE", _UNREAD[".czi"]),
    (0, b"\x70\x00\x00\x00", _UNREAD[".lif"]),
    (0, b"\xda\xce\xbe\x0a", _UNREAD[".nd2"]),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"an OLE file, as of Zeiss ZVI and Olympus OIB; {_FIELDS}"),
    (0, b"\x89HDF\r\n\x1a\n", f"HDF5, as of Imaris; {_FIELDS}"),
    (0, b"iSyntax", _UNREAD[".isyntax"]),
    (8, b"CR\x02\x00", _UNREAD[".cr2"]),
    (4, b"ftypcrx ", _UNREAD[".cr3"]),
    (0, b"FUJIFILMCCD-RAW", _UNREAD[".raf"]),
    (0, b"IIRO", _UNREAD[".orf"]),
    (0, b"IIRS", _UNREAD[".orf"]),
    (0, b"IIU\x00", _UNREAD[".rw2"]),
    (0, b"FOVb", _UNREAD[".x3f"]),
    (0, b"8BPS", _UNREAD[".psd"]),
    (0, b"gimp xcf", _UNREAD[".xcf"]),
    (0, b"\xff\x0a", _UNREAD[".jxl"]),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", _UNREAD[".jxl"]),
    (0, b"II\xbc\x01", _UNREAD[".jxr"]),
    (0, b"BPG\xfb", _UNREAD[".bpg"]),
    (0, b"\x76\x2f\x31\x01", _UNREAD[".exr"]),
    (0, b"qoif", _UNREAD[".qoi"]),
    (0, b"P7\n", _UNREAD[".pam"]),
    (0, b"PF\n", _UNREAD[".pfm"]),
    (0, b"Pf\n", _UNREAD[".pfm"]),
    (0, b"SIMPLE  =", _UNREAD[".fits"]),
    (0, b"NRRD0", _UNREAD[".nrrd"]),
    (0, b"\x08\x00\x00\x00\x04\x00\x00\x00", "DICOM data without the header of a file; write it as one (Part 10)"),
    (0, b"\x02\x00\x00\x00UL", "DICOM data without the preamble of a file; write it as one (Part 10)"),
    (0, b"\x08\x00\x05\x00", "DICOM data without the header of a file; write it as one (Part 10)"),
    (0, b"version https://git-lfs.github.com/", "a Git LFS pointer, not the image itself; run git lfs pull"),
    (0, b"/annex/objects/", "a git-annex pointer, not the image itself; run git annex get"),
    (0, b"%PDF", f"a PDF; {_CONVERT}"),
    (0, b"%!PS", f"PostScript; {_CONVERT}"),
    (0, b"PK\x03\x04", "a zip, or an Office document; name it by what it is, or unpack it"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it"),
    (0, b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (0, b"\x1a\x45\xdf\xa3", "a film (Matroska); save frames of it as PNG"),
    (8, b"AVI LIST", "a film (AVI); save frames of it as PNG"),
    (4, b"ftypqt  ", "a film (QuickTime); save frames of it as PNG"),
    (4, b"ftypisom", "a film (MP4); save frames of it as PNG"),
    (4, b"ftypmp4", "a film (MP4); save frames of it as PNG"),
)
_TEXT_BYTES = 1024
_TEXTS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), what)
    for pattern, what in (
        (rb"<(?:!doctype html|html|head)\b", f"an HTML page, as of a login or an error; {_SAVED}"),
        (rb"(?:<\?xml.*?)?<error\b.{0,9}<code>", f"a store's error message (XML); {_SAVED}"),
        (rb"(?:<\?xml.*?)?<svg\b", f"a drawing (SVG); {_CONVERT}"),
        (rb"[^\s]{0,400}\.git/annex/objects/", "a git-annex link, not the image itself; run git annex get"),
        (rb"data:image/|/9j/|iVBORw0KGgo", "an image written as text (base64); decode it"),
        (rb"HTTP/[12]", f"an answer of a server with its head; {_SAVED}"),
        (rb"-----BEGIN PGP", "encrypted by PGP; decrypt it"),
        (rb"<\?xml\b", f"XML; {_SAVED}"),
        (rb'[\[{]\s*(?:[\[{\]}"]|$)', f"JSON, as of a server's answer; {_SAVED}"),
    )
)


# Marks of TIFFs that are no plain images: text in the first ImageDescription, and tags of a maker's own.
_SLIDE_TEXTS = (
    (b"Aperio", _UNREAD[".svs"]), (b"leica-microsystems.com/scn", _UNREAD[".scn"]),
    (b"<PerkinElmer-QPI", _UNREAD[".qptiff"]), (b"DPUfsImport", f"a whole slide of Philips; {_TILES}"),
)  # fmt: skip
_SLIDE_TAGS = {65420: _UNREAD[".ndpi"], 65421: _UNREAD[".ndpi"]}
_OTHER_TAGS = {34412: _UNREAD[".lsm"], 33628: _UNREAD[".stk"], 50706: _UNREAD[".dng"]}


def by_suffix(suffix: str) -> str | None:
    """What files of such a suffix (`.svs`, lower case) are and what to do; None of no images, and of those read."""
    return _UNREAD.get(suffix)


def by_tiff(page: Page) -> str | None:
    """What a TIFF with this first page is, and what to do; None for images.

    A slide has several pages; one that its maker's program has cut out of it keeps the marks, and is an image.
    """
    found = next((_OTHER_TAGS[tag] for tag in sorted(page.tags & _OTHER_TAGS.keys())), None)
    if found is not None or not page.has_more:
        return found
    start = page.description[:_TEXT_BYTES]
    by_text = next((what for mark, what in _SLIDE_TEXTS if mark in start), None)
    return by_text or next((_SLIDE_TAGS[tag] for tag in sorted(page.tags & _SLIDE_TAGS.keys())), None)


def by_content(data: bytes) -> str | None:
    """What a file is that no decoder takes, and what to do; None where nobody knows."""
    for offset, sign, what in _SIGNS:
        if data[offset : offset + len(sign)] == sign:
            return what
    start = data[:_TEXT_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        start = start.decode("utf-16", "ignore").encode().lstrip()
    found = next((what for pattern, what in _TEXTS if pattern.match(start)), None)
    if found is None and not data.strip(b"\0"):
        return "only zero bytes, as of a copy that was broken off; copy it again"
    return found
