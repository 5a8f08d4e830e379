"""The same as HL7 v2 text, for laboratory systems that speak no FHIR: made from the FHIR answer, so both agree."""
