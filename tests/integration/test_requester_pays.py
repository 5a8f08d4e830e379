"""A bucket whose reader pays refuses requests that do not say so. moto lets all pass: what is sent is looked at."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs import ingest
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings
from tests.bundles import make_bundle
from tests.scoring_sources import contents, mixed_files, score_here
from tests.servers import REGION, Faults, S3Server, faulty_proxy


@pytest.fixture(scope="module")
def source(s3: S3Server) -> str:
    """Loose files, a tar that is read by ranges, archives that are read as a stream, and a table that names objects."""
    table = "\n".join(["uri", *sorted(contents(4, bad=False))])
    files = mixed_files(24) | contents(4, bad=False) | {"named.csv": table.encode()}
    return s3.upload("paid", files)


@pytest.mark.parametrize("pays", [True, False])
def test_every_read_and_listing_says_who_pays_and_only_when_asked(
    s3: S3Server, source: str, tmp_path: Path, pays: bool
) -> None:
    asked: dict[str, str | None] = {}

    def note(request: str, headers: Mapping[str, str]) -> None:
        asked[request] = headers.get("x-amz-request-payer")

    with faulty_proxy(s3.endpoint, Faults(seen=note)) as proxy:
        flags = ["--s3-endpoint", proxy, "--s3-region", REGION, *(["--s3-requester-pays"] if pays else [])]
        for number, given in enumerate((source, f"{source}/named.csv", f"{source}/loose/*.jpg")):
            assert ingest.command([given, "--out", str(tmp_path / str(number)), *flags]) == 0
        stores = Stores(S3Settings(proxy, REGION, requester_pays=pays))
        score_here([source], make_bundle(tmp_path / "model"), tmp_path / "scores", stores=stores)
    kinds = {request.split()[0] + (" listing" if "list-type" in request else "") for request in asked}
    assert kinds == {"GET", "GET listing", "HEAD"}
    assert set(asked.values()) == {"requester" if pays else None}, asked
