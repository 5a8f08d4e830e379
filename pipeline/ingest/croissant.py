"""`croissant.json` beside a manifest: what its Parquet file holds, for tools that read MLCommons Croissant 1.0.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html. It describes the table of images, not their bytes: these
lie where `uri` says. Checked against the package mlcroissant (docs/ingest.md).
"""

import hashlib
import json
from typing import Any

import pyarrow as pa

from pipeline.images.unit import DESCRIBED
from pipeline.sources.manifest import SPLITS, Manifest, part_uris
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join

CROISSANT = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
_SPLIT_URLS = {"train": "cr:TrainingSplit", "validation": "cr:ValidationSplit", "test": "cr:TestSplit"}
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {
    name: f"cr:{name}"
    for name in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
        "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references",
        "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip


def write_croissant(manifest: Manifest, stores: Stores) -> None:
    """Beside the parts, which are there already."""
    store = stores.of(manifest.uri)
    digests = {
        uri.rpartition("/")[2]: hashlib.sha256(store.read(uri).data).hexdigest()
        for uri in part_uris(manifest.uri, stores)
    }
    text = json.dumps(croissant(manifest, digests), indent=2, ensure_ascii=False)
    store.write(join(manifest.uri, CROISSANT), text.encode())


def croissant(manifest: Manifest, digests: dict[str, str]) -> dict[str, Any]:
    """The description as JSON-LD. `digests`: SHA-256, hex, of each part by its name."""
    info = manifest.info
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest.uri.rpartition("/")[2] or "manifest",
        "description": _description(manifest),
        "license": info.license or "unknown",
        "version": f"1.0.0+{info.digest[:12]}",
        "datePublished": info.created_at,
        "isLiveDataset": False,
        "keywords": ["blood cells", "microscopy", *(["synthetic"] if info.synthetic else [])],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": "application/x-parquet",
                "sha256": digest,
            }
            for name, digest in digests.items()
        ],
        "recordSet": [_splits(), *(_images(manifest.table.schema, name, len(digests) > 1) for name in digests)],
    }


def describes_manifest(told: dict[str, Any]) -> bool:
    """Whether a JSON object is such a description: of our columns, in files that are named as parts of a manifest."""
    try:
        files = [item["contentUrl"] for item in told["distribution"]]
        named = {field["name"] for records in told["recordSet"] for field in records["field"]}
    except (KeyError, TypeError):
        return False
    is_ours = set(map(str, files)) <= {f"part-{number:05d}.parquet" for number in range(len(files))}
    return told.get("conformsTo") == CONFORMS_TO and is_ours and (not files or {"image_id", "uri", "label"} <= named)


def _description(manifest: Manifest) -> str:
    info = manifest.info
    classes = ", ".join(f"{name} {sum(of.values()):,}" for name, of in info.counts.classes.items())
    splits = ", ".join(f"{name} {count:,}" for name, count in info.counts.splits.items())
    synthetic = "Synthetic, drawn by a computer. " if info.synthetic else ""
    shown = DESCRIBED[info.unit] if info.unit else "what nobody said"
    return (
        f"{synthetic}{info.images:,} images; an image shows {shown}. "
        f"By class: {classes or 'none'}. By split: {splits or 'none'}. Split: {info.split_reason or 'none'} "
        f"One row an image: where its bytes lie, class, {info.units}, split. Digest {info.digest}. Not for diagnosis."
    )


def _splits() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [_plain("splits/name", "sc:Text"), _plain("splits/url", "sc:URL")],
        "data": [{"splits/name": name, "splits/url": _SPLIT_URLS[name]} for name in SPLITS],
    }


def _plain(name: str, kind: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name.rpartition("/")[2], "dataType": kind}


def _images(schema: pa.Schema, part: str, is_one_of_many: bool) -> dict[str, Any]:
    """Every column of a part; of several parts each is a record set of its own."""
    name = f"images-{part.removesuffix('.parquet')}" if is_one_of_many else "images"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": {"@id": f"{name}/image_id"},
        "field": [_column(name, field, part) for field in schema],
    }


def _column(records: str, field: pa.Field, part: str) -> dict[str, Any]:
    told = {
        **_plain(f"{records}/{field.name}", data_type(field.type)),
        "name": field.name,
        "source": {"fileObject": {"@id": part}, "extract": {"column": field.name}},
    }
    meaning = (field.metadata or {}).get(b"meaning")
    if meaning:
        told["description"] = meaning.decode()
    return told | ({"references": {"field": {"@id": "splits/name"}}} if field.name == "split" else {})


def data_type(kind: pa.DataType) -> str:
    """Of schema.org, as Croissant names them; text for what it has no name for."""
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_timestamp(kind):
        return "sc:DateTime"
    return "sc:Date" if pa.types.is_date(kind) else "sc:Text"
