"""Pseudonyms: no name of a patient in anything that is written, and the same pseudonym every night."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import ingest, reveal, summary
from pipeline.base.errors import Code, InputError
from pipeline.model.bundle import Bundle
from pipeline.sources.archives import Problem
from pipeline.sources.manifest import read_manifest
from pipeline.sources.pseudonyms import Pseudonyms, _HiddenStore, names_of, with_pseudonyms
from pipeline.storage.local import LocalStore
from pipeline.storage.ranged import RangedFile
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings, StoreError
from tests.bundles import make_bundle
from tests.scoring_sources import contents, picture, rows, score_here, tar, write_files

NAMES = Pseudonyms(b"k" * 32)
OTHER = Pseudonyms(b"o" * 32)
PATIENTS = ("mueller", "smith_john", "okafor")  # in every path below


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text("0f" * 32 + "\n")
    return str(path)


@pytest.fixture
def stores(key_file: str) -> Stores:
    return with_pseudonyms(Stores(), key_file)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files, a tar, a compressed tar, damage in each, and a sidecar that tells a name."""
    files = {f"{name}/{file}": data for name in PATIENTS for file, data in contents(4, bad=False).items()}
    files["okafor/broken_okafor.jpg"] = b"nothing of an image"
    members = {f"mueller/m{n}.jpg": picture(n) for n in range(3)} | {"mueller/bad_mueller.jpg": b"nothing"}
    packed = tar({**members, "mueller/m0.json": json.dumps({"patient": "mueller"}).encode()})
    files["smith_john.tar"] = packed
    files["smith_john_night.tgz"] = tar({f"okafor/o{n}.jpg": picture(n) for n in range(3)}, "w:gz")
    files["cut_smith_john.zip"] = b"PK\x03\x04 smith_john"
    return write_files(tmp_path / "archive_of_mueller", files)


def written(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, what it says) of everything below a folder."""
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        data = path.read_bytes()
        text = str(pq.ParquetFile(path).read().to_pylist()) if path.suffix == ".parquet" else data.decode("latin-1")
        yield str(path.relative_to(folder)), str(path.relative_to(folder)) + text


def assert_no_patient(folder: Path) -> None:
    for name, text in written(folder):
        for patient in PATIENTS:
            assert patient not in text, f"{name} tells {patient}: {text[:2000]}"


def test_names_come_back_with_the_key_alone() -> None:
    for uri in ("/data/müller/a.tar.gz", "s3://bucket/x y/ä.jpg", "relative.jpg", "/"):
        token = NAMES.path(uri)
        assert token == NAMES.path(uri) == NAMES.path(token)
        assert NAMES.real_path(token) == uri
        with pytest.raises(InputError, match="another key"):
            OTHER.real_path(token)
        assert OTHER.path(uri) != token


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs",)), min_size=1))
def test_every_member_name_is_hidden_and_found_again(member: str) -> None:
    token = NAMES.member(member)
    assert token is not None and token != member and NAMES.real_member(token) == member


def test_a_file_name_that_is_no_text_is_hidden_too() -> None:
    assert NAMES.real_path(NAMES.path("/data/\udce9.jpg")) == "/data/\udce9.jpg"


def test_subjects_are_told_apart_but_not_told() -> None:
    subject = NAMES.subject("mueller")
    assert subject == NAMES.subject("Mueller ") == NAMES.subject(subject)
    assert subject != NAMES.subject("mueller2")
    assert subject is not None and len(subject) == 19 and subject != OTHER.subject("mueller")
    assert NAMES.subject(None) is None


def test_the_key_is_not_shown() -> None:
    assert "kkkk" not in repr(NAMES)


def test_messages_lose_the_names_that_they_hold() -> None:
    problem = Problem("/a/mueller.zip", "x/smith.jpg", "corrupt", "/a/mueller.zip: smith.jpg of mueller.zip is cut")
    shown = NAMES.found(problem)
    assert "mueller" not in str(shown) and "smith" not in str(shown) and "is cut" in shown.message


@pytest.mark.parametrize(
    "text",
    [
        's3://lab/Hans Müller/raw/1.jpg (endpoint http://h): no such object; check the URI',
        'Could not connect to the endpoint URL: "http://h/lab/Hans%20M%C3%BCller/raw/(hidden)"; 8 attempts',
        "http://h/lab?list-type=2&prefix=Hans+M%C3%BCller%2Fraw%2F&delimiter=%2F",
        "prefix cannot be listed: s3://lab/Hans Müller/ (endpoint http://h): access denied",
        r"File name in directory 'Hans M\xfcller' and header b'Hans M\xc3\xbcller' differ",
        "lab/HANS MÜLLER/raw of patient Hans Müller",
    ],
)  # fmt: skip
def test_no_spelling_of_a_part_of_a_path_is_left_of_a_failure(text: str) -> None:
    shown = NAMES.failure(text, ["s3://lab/Hans Müller/raw/1.jpg", "raw/Hans M\xfcller.jpg"])
    assert "ller" not in shown.lower() and "hans" not in shown.lower(), shown
    assert "hidden" in shown


def test_words_of_a_failure_stay_where_a_folder_is_called_so() -> None:
    text = "/a/in/x.zip: ends in a member of a zip"
    assert NAMES.failure(text, ["/a/in/x.zip"]) == "(hidden): ends in a member of a zip"


def test_targets_of_links_are_in_no_message(bundle: Bundle, stores: Stores, tmp_path: Path) -> None:
    linked = {"a.jpg": "mueller/raw", "b.jpg": "okafor/c.bin"}
    packed = io.BytesIO()
    for mode, name in (("w", "x.tar"), ("w:gz", "x.tgz")):
        with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
            for file, data in (("sound.jpg", picture(1)), ("okafor/c.bin", b"no image")):
                archive.addfile(_file(file, len(data)), io.BytesIO(data))
            for link, target in linked.items():
                info = tarfile.TarInfo(link)
                info.type, info.linkname = tarfile.LNKTYPE, target
                archive.addfile(info)
        write_files(tmp_path / "in", {name: packed.getvalue()})
        packed = io.BytesIO()
    out = tmp_path / "out"
    score_here([tmp_path / "in"], bundle, out, stores=stores, pseudonym_key_id=names_of(stores).key_id)
    messages = rows(out / "run-1", "quarantine")["message"].to_pylist()
    assert sum("link to" in message for message in messages) == 3
    assert_no_patient(out)


def _file(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def test_members_that_a_damaged_zip_confuses_are_in_no_message(bundle: Bundle, stores: Stores, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("night_A.tgz", tar({"a.jpg": picture(1)}, "w:gz"))
        archive.writestr("sound.jpg", picture(2))
    data = packed.getvalue().replace(b"night_A.tgz", b"mueller.tgz", 1)  # in the member's own header
    source, out = write_files(tmp_path / "in", {"x.zip": data}), tmp_path / "out"
    score_here([source], bundle, out, stores=stores, pseudonym_key_id=names_of(stores).key_id)
    [message] = rows(out / "run-1", "quarantine")["message"].to_pylist()
    assert "differ" in message
    assert_no_patient(out)


@pytest.mark.parametrize("uri", ["s3://lab/Hans Mueller/raw/a.jpg", "s3://lab/Mueller-Hans.jpg"])
def test_a_store_that_is_out_names_nobody(uri: str, key_file: str) -> None:
    nowhere = S3Settings("http://127.0.0.1:9", "eu-west-1", anonymous=True, max_attempts=1)
    stores = with_pseudonyms(Stores(nowhere), key_file)
    token = names_of(stores).path(uri)
    with pytest.raises(StoreError) as failed:
        stores.of(token).read(token)
    said = str(failed.value)
    assert "mueller" not in said.lower() and said.startswith(
        "(hidden) (endpoint http://127.0.0.1:9): Could not connect"
    )
    with pytest.raises(StoreError) as failed:
        Stores(nowhere).of(uri).read(uri)
    assert str(failed.value).count("ueller") == 1, "told once, and not as an address"


def test_spellings_of_a_subject_are_one_in_files_and_archives(bundle: Bundle, stores: Stores, tmp_path: Path) -> None:
    files = {"Patient_01_a.jpg": picture(1), "patient-01_b.jpg": picture(2), "Patient_02_a.jpg": picture(3)}
    files["night.tgz"] = tar({"PATIENT 01_c.jpg": picture(4)}, "w:gz")
    pattern = r"([^/]*)_[abc]\.jpg"
    _, hidden = score_here(
        [write_files(tmp_path / "in", files)], bundle, tmp_path / "out", stores=stores,
        pseudonym_key_id=names_of(stores).key_id, subject_pattern=pattern,
    )  # fmt: skip
    subjects = pq.read_table(tmp_path / "out" / "run-1" / "subjects.parquet")
    found = dict(zip(subjects["subject_id"].to_pylist(), subjects["n_images"].to_pylist(), strict=True))
    names = names_of(stores)
    assert found == {names.subject("patient 01"): 3, names.subject("patient-02"): 1}
    assert len(set(rows(tmp_path / "out" / "run-1")["subject_id"].to_pylist())) == 2 and hidden["counts"]["scored"] == 4


def test_what_fails_while_a_hidden_file_is_read_names_its_token() -> None:
    """A file is opened whole, and the store fails later, piece by piece."""

    class Failing(LocalStore):
        def open(self, uri: str, on_failure: object = None) -> io.BufferedReader:
            def fail(offset: int, size: int) -> bytes:
                raise StoreError(Code.IO_ERROR, f"{uri}: reset")

            return io.BufferedReader(RangedFile(9, fail))

    plain = Stores(mounts=(("/mueller/", Failing()),))
    token = NAMES.path("/mueller/night.tgz")
    file = _HiddenStore(NAMES, plain, False).open(token)
    assert file.seek(3) == 3 and file.tell() == 3
    with pytest.raises(StoreError) as failed:
        file.read(2)
    assert str(failed.value) == "(hidden): reset"


@pytest.mark.parametrize("text", [None, "", "abc", "zz" * 32, "0f" * 31])
def test_a_key_file_that_is_none_is_refused_with_the_way_to_make_one(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="openssl rand -hex 32"):
        with_pseudonyms(Stores(), str(path))


def test_a_pseudonym_without_its_key_says_so() -> None:
    with pytest.raises(InputError, match="--pseudonymize"):
        Stores().of(NAMES.path("/a/b.jpg"))


def score(source: Path, bundle: Bundle, out: Path, name: str, stores: Stores, **options: object) -> dict[str, int]:
    names = names_of(stores)
    sources = [names.path(str(source))]
    _, run = score_here(sources, bundle, out, name, stores=stores, pseudonym_key_id=names.key_id, **options)
    return dict(run["counts"])


def test_a_scored_night_names_nobody_and_the_next_night_knows_what_was_done(
    source: Path, bundle: Bundle, tmp_path: Path, stores: Stores
) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    first = score(source, bundle, out, "run-1", stores)
    bare = score(source, bundle, plain, "run-1", Stores())
    assert first == bare and (first["quarantined"], first["uncounted"]) == (2, 1)
    assert_no_patient(out)
    hidden, open_rows = rows(out / "run-1"), rows(plain / "run-1")
    names = names_of(stores)
    real = sorted((names.real_path(uri), names.real_member(member)) for uri, member in zip(
        hidden["uri"].to_pylist(), hidden["member"].to_pylist(), strict=True))  # fmt: skip
    assert real == sorted(zip(open_rows["uri"].to_pylist(), open_rows["member"].to_pylist(), strict=True), key=str)
    assert not set(hidden["image_id"].to_pylist()) & set(open_rows["image_id"].to_pylist())

    (source / "okafor" / "new_okafor.jpg").write_bytes(picture(99))
    next((source / "mueller").iterdir()).unlink()
    second = score(source, bundle, out, "run-2", stores)
    assert (second["scored"], second["skipped"], second["deleted_at_source"]) == (1, first["listed"] - 1, 1)
    assert_no_patient(out)


def test_a_retry_finds_hidden_images_again(source: Path, bundle: Bundle, tmp_path: Path, stores: Stores) -> None:
    out = tmp_path / "out"
    score(source, bundle, out, "run-1", stores)
    (source / "okafor" / "broken_okafor.jpg").write_bytes(picture(5))
    again = score(source, bundle, out, "run-2", stores, retry_of=str(out / "run-1"))
    assert again["scored"] == 1
    assert_no_patient(out)


def test_one_output_holds_names_of_one_kind(source: Path, bundle: Bundle, tmp_path: Path, stores: Stores) -> None:
    score(source, bundle, tmp_path / "out", "run-1", stores)
    with pytest.raises(InputError, match="the same --pseudonymize"):
        score(source, bundle, tmp_path / "out", "run-2", Stores())


def test_a_summary_shows_hidden_images_to_who_has_the_key(
    source: Path, bundle: Bundle, tmp_path: Path, stores: Stores, key_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    score(source, bundle, out, "run-1", stores)
    assert summary.command([str(out), "--out", str(tmp_path / "blind.html")]) == 0
    assert summary.command([str(out), "--pseudonymize", key_file]) == 0
    blind, seen = (tmp_path / "blind.html").read_text(), (out / "run-1" / "summary.html").read_text()
    assert "data:image" in seen and "--pseudonymize" in blind
    assert seen.count("data:image") > blind.count("data:image")
    assert_no_patient(out)
    assert not any(patient in capsys.readouterr().out for patient in PATIENTS)


def test_a_hidden_manifest_names_nobody_and_gives_its_images_with_the_key(
    tmp_path: Path, key_file: str, stores: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        f"{kind}/{name}/{name}_{n}.jpg": picture(7 * n + k)
        for k, name in enumerate(PATIENTS) for kind in ("blast", "healthy") for n in range(4)
    }  # fmt: skip
    files["healthy/okafor/okafor_copy.jpg"] = files["blast/mueller/mueller_0.jpg"]
    source = write_files(tmp_path / "data", files)
    out = tmp_path / "manifest"
    code = ingest.command([str(source), "--out", str(out), "--pseudonymize", key_file, "--positive", "blast",
                           "--negative", "healthy", "--subject-pattern", "(?:blast|healthy)/([^/]+)/"])  # fmt: skip
    told = capsys.readouterr()
    assert code == 0, told.err
    assert_no_patient(out)
    assert not any(patient in told.out + told.err for patient in PATIENTS), told.out
    with pytest.raises(InputError, match="--pseudonymize"):
        read_manifest(str(out))
    table = read_manifest(str(out), stores).table
    assert table.num_rows == 25 and len(set(table["subject_id"].to_pylist())) == 3
    uri = table["uri"][0].as_py()
    assert stores.of(uri).read(uri).data[:2] == b"\xff\xd8"


def test_who_has_the_key_can_ask_for_names(key_file: str, stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    names = names_of(stores)
    token, subject = names.path("/data/mueller/a.jpg"), names.subject("mueller")
    assert reveal.command([token, str(names.member("m/b.jpg")), "--pseudonymize", key_file]) == 0
    assert capsys.readouterr().out == "/data/mueller/a.jpg\nm/b.jpg\n"
    assert reveal.command(["--subjects", "mueller", "--pseudonymize", key_file]) == 0
    assert capsys.readouterr().out == f"{subject}\n"
    assert reveal.command([str(subject), "--pseudonymize", key_file]) == 3
    assert reveal.command([token]) == 2


def test_what_follows_the_last_dot_of_a_name_may_be_a_name(bundle: Bundle, stores: Stores, tmp_path: Path) -> None:
    files = {
        "a/findings.mueller": b"text",
        "a/c.okafor": picture(1),
        "a/1.2.3.4.5.6.7.19450101": picture(2),
        "b.txt": b"",
    }
    files["a.tar"] = tar({"a/findings.smith_john": b"text", "a/x.jpg": picture(3)})
    files["a.tgz"] = tar({"a/findings.mueller": b"text", "a/x.jpg": picture(4)}, "w:gz")
    source = write_files(tmp_path / "in", files)
    _, record = score_here([source], bundle, tmp_path / "out", stores=stores, pseudonym_key_id=names_of(stores).key_id)
    assert_no_patient(tmp_path / "out")
    assert not any("19450101" in text for _, text in written(tmp_path / "out"))
    assert record["counts"]["scored"] == 3 and record["counts"]["left_out"] == {"another suffix": 3, ".txt": 1}


def test_paths_of_tables_given_beside_a_source_are_hidden_as_it_is(
    tmp_path: Path, key_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("blast", "healthy")
    files = {f"{kind}/P{n}/{n}.jpg": picture(n + 10 * kinds.index(kind)) for kind in kinds for n in range(4)}
    source = write_files(tmp_path / "data", files)
    beside = tmp_path / "mueller"
    beside.mkdir()
    (beside / "patients.csv").write_text("subject_id,sex\n" + "".join(f"P{n},f\n" for n in range(4)))
    (beside / "classes.yaml").write_text("blast: positive\nhealthy: negative\n")
    tables = ["--subjects", str(beside / "patients.csv"), "--classes", str(beside / "classes.yaml")]
    assert ingest.command([str(source), "--out", str(tmp_path / "m"), "--pseudonymize", key_file, *tables]) == 0
    assert_no_patient(tmp_path / "m")
    told = capsys.readouterr()
    assert "mueller" not in told.out + told.err
