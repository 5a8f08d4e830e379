"""What doctor asks of what lies in stores: the source, the place for results, the model."""

import itertools
from collections.abc import Iterator

from jobs.common import job_stores
from jobs.doctor_config import DoctorConfig
from pipeline.base.errors import LeukorayError
from pipeline.base.finding import Finding
from pipeline.base.node_facts import judge_store_clock
from pipeline.storage.abilities import Abilities, ask
from pipeline.storage.stores import Stores
from pipeline.storage.types import Conditions
from pipeline.storage.uris import absolute, is_s3


def source(config: DoctorConfig) -> Iterator[Finding]:
    stores = job_stores(config)
    if config.source is None:
        if stores.s3.endpoint:
            yield Finding("ok", "s3", f"endpoint {stores.s3.named}; give --source s3://bucket to try it")
        return
    name = "s3" if is_s3(config.source) else "source"
    try:
        yield _read(absolute(config.source), stores, name)
    except LeukorayError as error:
        yield Finding("fail", name, str(error))


def _read(uri: str, stores: Stores, name: str) -> Finding:
    """The first file there is read: who may list a bucket may still not read its objects."""
    store = stores.of(uri)
    info = store.head(uri)
    first = next(itertools.chain([info] if info is not None else [], itertools.islice(store.walk(uri), 1)), None)
    if first is None and not store.is_folder(uri):
        return Finding("fail", name, f"{uri}: nothing there; check the path")
    if first is not None:
        store.read_range(first.uri, 0, min(first.size, 1))
    return Finding("ok", name, f"{uri}: readable")


def out(config: DoctorConfig) -> Iterator[Finding]:
    """What the store of --out heeds, asked with a few small objects that are removed again."""
    if not is_s3(config.out):
        return
    uri, stores = absolute(config.out), job_stores(config)
    try:
        found = ask(stores, uri)
    except LeukorayError as error:
        yield Finding("fail", "--out", str(error))
        return
    yield from _abilities(uri, found)


def _abilities(uri: str, found: Abilities) -> Iterator[Finding]:
    if found.deletes:
        yield Finding("ok", "--out", f"{uri}: objects can be written, read and removed")
    else:
        text = f"{uri}: objects can be written, but not removed: runs keep their parts and locks; allow s3:DeleteObject"
        yield Finding("fail", "--out", text)
    if found.conditions is Conditions.NONE:
        text = "conditional writes are not heeded: two runs are not kept apart; use --single-writer, or another store"
        mend = f"leukoray score SOURCE --model MODEL --out {uri} --single-writer"
        yield Finding("warn", "--out locks", text, mend)
    else:
        spelled = " without quotes" if found.conditions is Conditions.BARE else ""
        text = f"a second create and a wrong ETag are refused, the right ETag{spelled} is taken: one run at a time"
        yield Finding("ok", "--out locks", text)
    yield _ability(found.ranges, "ranges", "parts of objects can be read", "archives cannot be read from this store")
    refused = "uploads that arrive damaged are refused"
    yield _ability(found.checks_digests, "digests", refused, "the store does not notice uploads that arrive damaged")
    keys = "names of 1,024 bytes are taken"
    yield _ability(found.long_keys, "names", keys, "names of 1,024 bytes are refused: keep --out and partitions short")
    not_told = "no ETags: versions of one size and one second are taken for the same"
    yield _ability(found.tells_versions, "etags", "ETags tell versions", not_told)


def _ability(has: bool, name: str, good: str, bad: str) -> Finding:
    return Finding("ok" if has else "warn", f"--out {name}", good if has else bad)


def clock(config: DoctorConfig) -> Iterator[Finding]:
    """The store's clock against this machine's: what is signed at another time is refused."""
    uri = next((uri for uri in (config.out, config.source, config.model) if uri is not None and is_s3(uri)), None)
    if uri is None:
        return
    from pipeline.storage.s3 import s3_store  # boto3 takes 0.4 s to import

    try:
        skew_s = s3_store(job_stores(config).s3).skew_s(absolute(uri))
    except LeukorayError as error:
        yield Finding("fail", "s3 clock", str(error))
        return
    if skew_s is not None:
        yield judge_store_clock(skew_s)


def model(config: DoctorConfig) -> Iterator[Finding]:
    if config.model is None:
        return
    from pipeline.model.registry import resolve

    try:
        bundle = resolve(config.model, job_stores(config)).verify()
    except LeukorayError as error:
        yield Finding("fail", "model", str(error))
        return
    yield Finding("ok", "model", f"{bundle.info.name} {bundle.info.version}, {bundle.info.architecture}: complete")
