"""What earlier versions left behind (tests/data/), put back onto a store as it was."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.make import BUCKET

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in DATA.glob("*.tar.xz"))
ROOT = f"s3://{BUCKET}"


@dataclass(frozen=True)
class Kept:
    """The objects of one version, and the commands that left two of its jobs unfinished."""

    objects: dict[str, bytes]  # by key
    training: list[str]
    scoring: list[str]

    def restore(self, client: Any) -> None:
        """Make the bucket what it was: other objects go."""
        if BUCKET not in [item["Name"] for item in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=BUCKET)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for item in page.get("Contents", ()):
                client.delete_object(Bucket=BUCKET, Key=item["Key"])
        for key, data in self.objects.items():
            client.put_object(Bucket=BUCKET, Key=key, Body=data)


def read_kept(version: str) -> Kept:
    objects = {}
    with tarfile.open(DATA / f"{version}.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None, member.name
            objects[member.name] = file.read()
    made = json.loads(objects.pop("made.json"))
    return Kept(objects, made["training"], made["scoring"])
