"""What the model says of images as FHIR R4 (4.0.1) resources: pure functions, no I/O.

`codes` is terms and class names, `tally` who is counted and who is not, `resources` one resource each, `bundle` the
answer. Profiles are those of 'AI Transparency on FHIR' (https://hl7.org/fhir/uv/aitransparency/2026Jan/).
"""
