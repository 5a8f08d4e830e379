"""Labelled images of another laboratory, for the jobs that measure an existing model on them or adapt it to them."""

from collections.abc import Sequence

from pipeline.base.errors import InputError, UsageError
from pipeline.images.unit import refuse_mismatch
from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.class_rules import ClassRules
from pipeline.ingest.draft import ingest
from pipeline.ingest.hide import hidden
from pipeline.ingest.matching import Matched, match
from pipeline.model.bundle import BundleInfo
from pipeline.sources.manifest import Manifest, ManifestInfo, is_manifest, read_manifest, table_digest
from pipeline.sources.pseudonyms import names_of
from pipeline.sources.tables import text_of
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute


def labelled_elsewhere(
    source: str, info: BundleInfo, stores: Stores, *, labels: str | None, classes: Sequence[str]
) -> tuple[Manifest, Matched]:
    """All labelled images of a manifest or of a source as ingest reads it, in the split 'test' and under the model's
    class names; and which of their classes that took. `classes`: pairs 'theirs=ours' and YAML files of such lines.

    Raises UsageError and InputError for what cannot be read, is what the model was trained on, shows something else
    than it knows, or has no class of it.
    """
    found, name = _manifest(absolute(source), labels, stores)
    if info.manifest_digest and found.info.digest == info.manifest_digest:
        raise InputError(
            f"{found.uri}: is the manifest that the model was trained on, nothing of it is external; evaluate its test "
            "split without --external"
        )
    refuse_mismatch(info.unit, found.info.unit, found.uri)
    table, matched = match(found, info, _rules(classes, stores))
    changed = {"digest": table_digest(table), "split_rule": "test", "images": table.num_rows}
    return Manifest(name, table, found.info.model_copy(update=changed)), matched


def _manifest(uri: str, labels: str | None, stores: Stores) -> tuple[Manifest, str]:
    """And how outputs name it: a source is hidden as its images are. Refusals name it as it is."""
    try:
        is_ready = is_manifest(uri, stores)
    except StoreError as error:
        raise error.refusal() from error
    if is_ready:
        if labels is not None:
            raise UsageError(f"--labels {labels}: {uri} is a manifest, which has its labels; ingest the images with it")
        return read_manifest(uri, stores), uri
    names = names_of(stores)
    options = IngestOptions(labels=labels, use="test", near_copies=False)
    draft = hidden(ingest([uri], options, stores=stores), names)
    info = ManifestInfo(
        source=[names.path(uri)], layout=draft.layout.name, labels_from=draft.labels_from, units=draft.units,
        unit=draft.unit, warnings=draft.warnings, synthetic=draft.is_synthetic, pseudonym_key_id=names.key_id,
        positive=draft.positive, ignored=draft.ignored, digest=table_digest(draft.table),
    )  # fmt: skip
    return Manifest(uri, draft.table, info), names.path(uri)


def _rules(classes: Sequence[str], stores: Stores) -> ClassRules:
    pairs = [said for said in classes if "=" in said]
    rules = ClassRules()
    for file in (said for said in classes if "=" not in said):
        where = absolute(file)
        rules = rules.joined(ClassRules.from_yaml(text_of(stores.of(where).read(where).data), where))
    return rules.joined(ClassRules.from_pairs(pairs, "--classes"))


def record_of(matched: Matched) -> dict[str, object]:
    """For `metrics.json`."""
    return {
        "matched": [{"theirs": p.theirs, "ours": p.ours, "images": p.images, "by": p.by} for p in matched.pairs],
        "unmatched": dict(matched.unmatched),
        "left_out": dict(matched.left_out),
    }
