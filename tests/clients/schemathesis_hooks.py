"""What schemathesis sends where the interface asks for an image: whole ones of its own samples, not any bytes.

A schema of OpenAPI can only say 'binary'. See 'String Format Strategies' in https://schemathesis.readthedocs.io
Nor can it say that a report of DICOM wants images of DICOM, of which there are no samples: none is asked for. Of more
files than a request may hold, once in a few thousand, the answer is 413: neither taken nor, to schemathesis, refused.
"""

import os
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis.core.file_samples import MEDIA_TYPE_FILE_SAMPLES
from schemathesis.transport.serialization import Binary

images = strategies.sampled_from(sorted(MEDIA_TYPE_FILE_SAMPLES.values()))
schemathesis.openapi.format("binary", images.map(Binary))


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: Any) -> bool:
    files = case.body.get("files") if isinstance(case.body, dict) else None
    too_many = isinstance(files, list) and len(files) > int(os.environ["MOST_FILES"])
    return not too_many and (case.query or {}).get("format") != "dicom-sr"
