"""The answer: a Bundle of type transaction, which a FHIR server takes as it is, and the OperationOutcome of a refusal.

A `transaction` (https://hl7.org/fhir/R4/http.html#transaction), because a server then stores each resource, where it is
found by a search, makes references between them its own, and keeps a model, its card and an image once (`ifNoneExist`).
A `collection` is stored as one piece, and contained resources cannot be found, nor be the target of a Provenance.
"""

import uuid
from collections.abc import Sequence
from urllib.parse import quote

from serving.protocols.fhir import counts, resources
from serving.protocols.fhir.resources import Context, Resource
from serving.protocols.fhir.tally import Sent, meaning, tally

_NAMES = uuid.UUID("a84a4361-e658-4f82-9b51-e7c83425fcc9")


class _Entries:
    """Resources by the URL that others refer to them by until a server gives them its own."""

    def __init__(self, context: Context) -> None:
        self._seed = f"{context.request_id} {context.issued} {context.info.sha256}"
        self.entries: list[Resource] = []
        self._once: dict[str, str] = {}

    def add(self, resource: Resource) -> str:
        url = f"urn:uuid:{uuid.uuid5(_NAMES, f'{self._seed} {len(self.entries)}')}"
        request = {"method": "POST", "url": resource["resourceType"]}
        self.entries.append({"fullUrl": url, "resource": resource, "request": request})
        return url

    def add_once(self, resource: Resource) -> str:
        """One that is known by its identifier: a server that has it keeps that, here it is only once."""
        identifier = resource["identifier"][0]
        query = quote(f"{identifier['system']}|{identifier['value']}", safe="")
        if query not in self._once:
            self._once[query] = self.add(resource)
            self.entries[-1]["request"]["ifNoneExist"] = f"identifier={query}"
        return self._once[query]


def bundle(context: Context, files: Sequence[Sent]) -> Resource:
    """What the model says of one image, or of several of one subject, which have a DiagnosticReport as well."""
    found = _Entries(context)
    card_url = found.add_once(resources.model_card(context)) if context.card else None
    device_url = found.add_once(resources.device(context, card_url))
    images, findings = [], []
    for place, sent in enumerate(files, 1):
        image_url = None
        if sent.answer is not None and sent.sha256 is not None:
            image_url = found.add_once(resources.image(sent.answer, sent.sha256))
            images.append(image_url)
        where = f"image {place} of {len(files)}"
        findings.append(found.add(resources.finding(context, device_url, image_url, sent, where)))
    made = [*findings, *(_summary(context, found, device_url, files, findings) if len(files) > 1 else [])]
    found.add(resources.provenance(context, device_url, card_url, list(dict.fromkeys(images)), made))
    return {"resourceType": "Bundle", "type": "transaction", "entry": found.entries}


def _summary(
    context: Context, found: _Entries, device_url: str, files: Sequence[Sent], findings: Sequence[str]
) -> list[str]:
    meant = meaning(context.info, context.unit, context.class_labels)
    told = tally(context.info, meant, files)
    counted = counts.images_counted(context, device_url, meant, told)
    counted_url = found.add(counted | {"derivedFrom": [{"reference": url} for url in findings]})
    shares = [
        found.add(share | {"derivedFrom": [{"reference": counted_url}]})
        for share in counts.shares(context, device_url, meant, told)
    ]
    results = [*shares, counted_url, *findings]
    text = counts.conclusion(meant, told)
    report = resources.report(context, device_url, results, meant.is_differential and told.leukocytes > 0, text)
    return [counted_url, *shares, found.add(report)]
