"""`leukoray migrate`: after an upgrade, what older files hold, and a model's version for today's pixel rules."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field

from jobs.common import job, job_stores, start, writing_stores
from jobs.config import JobConfig, positional
from pipeline.base.errors import InputError, UsageError
from pipeline.model import migration
from pipeline.model.bundle import INFO, Bundle, read_bundle
from pipeline.model.registry import version_uris
from pipeline.scoring.history.again import score_again
from pipeline.scoring.run_folder import Output
from pipeline.scoring.schemas import SCHEMA_VERSION
from pipeline.sources.manifest import MANIFEST_VERSION, is_manifest, read_manifest
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

EXAMPLES = """examples:
  leukoray migrate models/leukoray --scores scores --dry-run    what would change, and by how much
  leukoray migrate models/leukoray --scores scores              adds a version for today's pixel rules to the model
  leukoray migrate scores                                       which versions and pixel rules an output holds

Nothing is ever rewritten but best.json. Done twice, the second time changes nothing.
Research software, not a medical device."""


class MigrateConfig(JobConfig):
    """Say of which version a bundle, registry, manifest or output is; add a model's version for today's pixel rules."""

    path: str = positional(description="bundle, model or registry folder, manifest, or output of leukoray score")
    scores: str | None = Field(
        None, description="output that the model has scored: some of its images are scored again and compared"
    )
    dry_run: bool = Field(False, description="say what would change, write nothing")
    single_writer: bool = Field(
        False, description="nobody else moves this best.json: for a store that cannot hold a lock"
    )


def main(config: MigrateConfig) -> None:
    stores, uri = job_stores(config), absolute(config.path)
    bundles = list(_bundles(uri, stores))
    if bundles:
        for bundle in bundles:
            _migrate(bundle, config, stores)
    elif is_manifest(uri, stores):
        images = read_manifest(uri, stores).info.images
        print(f"manifest {uri}: version {MANIFEST_VERSION}, {images} images; nothing to do")
    else:
        _tell_output(Output.at(uri, stores))


def _bundles(uri: str, stores: Stores) -> Iterator[Bundle]:
    """The bundle itself, else what best.json of each model names."""
    if stores.of(uri).head(join(uri, INFO)) is not None:
        yield read_bundle(uri, stores, of_any_pixels=True)
        return
    for folder, is_best in version_uris(uri, stores):
        if is_best:
            yield read_bundle(folder, stores, of_any_pixels=True)


def _migrate(bundle: Bundle, config: MigrateConfig, stores: Stores) -> None:
    old, new = bundle.info, migration.under_todays_rules(bundle).info
    told = f"bundle {bundle.uri}: version {old.bundle_version}, pixel rules {old.preprocessing_digest[:12]}"
    if new == old:
        print(f"{told}; nothing to do")
        return
    print(f"{told}; this leukoray has {new.preprocessing_digest[:12]}")
    done = migration.published(bundle)
    if done is None:
        if config.scores is None:
            raise UsageError(
                f"--scores is missing: name an output that {bundle.uri} has scored, to measure by how much its "
                "probabilities move; or train again"
            )
        change = score_again(bundle.verify(), Output.at(absolute(config.scores), stores), stores)
        print(change)
        if config.dry_run:
            print(f"would write version {new.version} beside it; nothing was written")
            return
        done = migration.publish(bundle, change)
        print(f"wrote {done.uri}: the same weights, threshold and temperature, which were fitted under the old rules")
    else:
        print(f"version {new.version} is there already")
    if not config.dry_run:
        _follow(bundle, done, config)
    print(f"next: leukoray evaluate MANIFEST --model {done.uri}")


def _follow(bundle: Bundle, done: Bundle, config: MigrateConfig) -> None:
    """best.json to the new version, where it names the old one."""
    folder = bundle.uri.rpartition("/")[0]
    writing = replace(bundle, stores=writing_stores(config, folder, single_writer=config.single_writer))
    if migration.move_pointer(writing, done):
        print("best.json points to it")


def _tell_output(output: Output) -> None:
    """Which runs and rows an output holds. Rows are never rewritten: what other rules scored stays beside the new."""
    runs, finished = output.runs(), output.finished()
    if not runs:
        raise InputError(
            f"{output.uri}: neither a bundle, a registry (best.json), a manifest nor an output of leukoray score"
        )
    rules: Counter[str] = Counter()
    for _, record in finished:
        rules[record.model.preprocessing_digest] += record.counts.scored
    rows = ", ".join(f"{count:,} rows of {digest[:12]}" for digest, count in rules.items() if count) or "no rows"
    print(f"output {output.uri}: {len(finished)} finished runs, version {SCHEMA_VERSION}; pixel rules: {rows}")
    for folder in runs:
        if not folder.is_finished:
            print(f"unfinished: {folder.uri}; the command that began it continues it, or delete the folder")
    print("nothing to do")


command = job("migrate", MigrateConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
