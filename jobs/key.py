"""Make a key for a client of the service: the key for the client, once, and its line for the file of keys."""

import sys

from pydantic import Field, field_validator, model_validator

from jobs.common import job, start
from jobs.config import JobConfig, positional
from pipeline.base.errors import InputError
from pipeline.base.log import JSON
from serving.keys.records import NAME, Key, Limits, digest, new_key, read_images, read_rate, written

EPILOG = """examples:
  leukoray key lab-a >> keys                                      the line goes into the file, the key onto the screen
  leukoray key lab-b --rate 600/min --images 5000/day >> keys
  leukoray key ops --admin >> keys                                for /admin alone
  leukoray serve models --keys keys

The key is shown once and kept nowhere: the line holds its SHA-256. A second line of the same name is a second key of
the same client: add it, give it out, then take the old line away. A service that runs follows within seconds."""


class KeyConfig(JobConfig):
    """Make a key: the key goes to stderr, its line for `leukoray serve --keys` to stdout."""

    name: str = positional(description="of the client, as the audit log tells it: 1 to 64 of A-Z a-z 0-9 . _ -")
    rate: str | None = Field(None, description="requests at most, as 10/s or 600/min (default: no limit)")
    images: str | None = Field(None, description="images at most in a day (UTC), as 5000/day (default: no limit)")
    admin: bool = Field(False, description="a key that opens /admin and nothing else")

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("expected 1 to 64 of A-Z a-z 0-9 . _ -")
        return name

    @model_validator(mode="after")
    def _can_be_read(self) -> "KeyConfig":
        if self.log_format == JSON:
            raise ValueError("a key is told once, to a person, and belongs in no log: --log-format text")
        try:
            self.limits()
        except InputError as error:
            raise ValueError(str(error)) from error
        if self.admin and (self.rate or self.images):
            raise ValueError("an administrator's key sends no images: --admin goes without --rate and --images")
        return self

    def limits(self) -> Limits:
        rate = None if self.rate is None else read_rate(self.rate, "--rate")
        return Limits(rate, None if self.images is None else read_images(self.images, "--images"))


def main(config: KeyConfig) -> None:
    """Show the key on stderr, so that `>> keys` takes the line alone."""
    key = new_key()
    print(written(Key(config.name, digest(key), config.limits(), config.admin)), flush=True)
    print(f"key of {config.name}, shown this once: {key}", file=sys.stderr, flush=True)


command = job("key", KeyConfig, main, EPILOG)


if __name__ == "__main__":
    start(command)
