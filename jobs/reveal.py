"""`leukoray reveal`: the paths behind pseudonyms, for whoever holds the key."""

from pydantic import Field

from jobs.common import job, job_stores, start
from jobs.config import NamingConfig, positional
from pipeline.base.errors import InputError, UsageError
from pipeline.sources.pseudonyms import names_of

EXAMPLES = """examples:
  leukoray reveal hidden-disk:Xk3…/b9Q….jpg --pseudonymize KEYFILE
  leukoray reveal --subjects patient_017 --pseudonymize KEYFILE      the pseudonym of a subject

A subject's pseudonym is a hash: compare it with those of the subjects that may be meant."""


class RevealConfig(NamingConfig):
    """Print the real path or member behind each pseudonym, or the pseudonym of each subject, one a line."""

    has_results = True
    pseudonyms: list[str] = positional([], description="uri and member as outputs have them")
    subjects: list[str] = Field([], description="subjects whose pseudonyms are wanted")


def main(config: RevealConfig) -> None:
    names = names_of(job_stores(config))
    if names.key_id is None:
        raise UsageError("--pseudonymize is missing: name the key file that the pseudonyms were made with")
    if not config.pseudonyms and not config.subjects:
        raise UsageError("name pseudonyms, or --subjects")
    for token in config.pseudonyms:
        real = names.real_path(token)
        if real == token:
            raise InputError(f"{token}: not a pseudonym of a path (hidden-…:…)")
        print(real)
    for subject in config.subjects:
        print(names.subject(subject))


command = job("reveal", RevealConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
