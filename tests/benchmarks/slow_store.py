"""An S3 server that answers each request after a while, and costs next to nothing: a listing and GETs of one prefix.

    python -m tests.benchmarks.slow_store HOST:PORT SECONDS COUNT FOLDER

The bucket `bench` holds COUNT objects `images/NUMBER.jpg`, whose bytes are those of the JPEGs of FOLDER in turn.
"""

import argparse
import asyncio
import hashlib
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET, PREFIX = "bench", "images/"
_PAGE = 1000


class SlowStore:
    def __init__(self, seconds: float, count: int, bodies: list[bytes]) -> None:
        self._seconds, self._bodies = seconds, bodies
        self._tags = [hashlib.md5(body).hexdigest() for body in bodies]
        self._places = {f"{PREFIX}{number:06d}.jpg": number % len(bodies) for number in range(count)}

    async def answer(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self._seconds)
        _, _, key = request.match_info["path"].partition("/")
        if not key:
            return self._listing(request)
        if request.method not in ("GET", "HEAD") or key not in self._places:
            said = "<Error><Code>NoSuchKey</Code></Error>"
            return web.Response(status=404, text=said, content_type="application/xml")
        return self._object(request, self._places[key])

    def _object(self, request: web.Request, place: int) -> web.Response:
        body, tag = self._bodies[place], self._tags[place]
        headers = {"ETag": f'"{tag}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        part = request.http_range
        if part.start is None:
            return web.Response(body=body, headers=headers)
        begin, end = part.start, min(part.stop or len(body), len(body))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(body)}"
        return web.Response(status=206, body=body[begin:end], headers=headers)

    def _listing(self, request: web.Request) -> web.Response:
        asked = request.query
        prefix, after = asked.get("prefix", ""), asked.get("continuation-token", asked.get("start-after", ""))
        room = min(int(asked.get("max-keys", _PAGE)), _PAGE)
        if asked.get("delimiter") and PREFIX.startswith(prefix) and prefix != PREFIX:
            said = f"<CommonPrefixes><Prefix>{PREFIX}</Prefix></CommonPrefixes>"
            return _page(said, False, "", 1)
        found = [key for key in self._places if key.startswith(prefix) and key > after]
        said = "".join(self._entry(key) for key in found[:room])
        return _page(said, len(found) > room, found[room - 1] if len(found) > room else "", len(found[:room]))

    def _entry(self, key: str) -> str:
        place = self._places[key]
        told = {
            "Key": key,
            "LastModified": "2026-01-01T00:00:00.000Z",
            "ETag": f'"{self._tags[place]}"',
            "Size": str(len(self._bodies[place])),
            "StorageClass": "STANDARD",
        }
        return f"<Contents>{''.join(f'<{name}>{escape(value)}</{name}>' for name, value in told.items())}</Contents>"


def _page(said: str, goes_on: bool, token: str, count: int) -> web.Response:
    ends = f"<IsTruncated>{str(goes_on).lower()}</IsTruncated><KeyCount>{count}</KeyCount>"
    if goes_on:
        ends += f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
    text = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{BUCKET}</Name>{ends}{said}'
    return web.Response(text=f"{text}</ListBucketResult>", content_type="application/xml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("seconds", type=float)
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    bodies = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", SlowStore(options.seconds, options.count, bodies).answer)
    host, _, port = options.address.rpartition(":")
    web.run_app(app, host=host, port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main()
