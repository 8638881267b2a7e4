import hashlib
import os
import random
import socket
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoloop.trainer import hub
from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.sources import _held_out, open_source
from tests.parquet import document, write_parquet


def read(**config):
    return [[*part.read()] for part in open_source(DataConfig(**config)).list_parts()]


def names(**config):
    return [part.name for part in open_source(DataConfig(**config)).list_parts()]


def test_every_row_is_a_document(parquet_folder):
    parts = read(corpus=str(parquet_folder), validation_fraction=0.1)
    texts = [document.text.decode() for part in parts for document in part]
    assert texts == [document(number) for number in range(300)]
    held_out = sum(document.split == "validation" for part in parts for document in part)
    assert 10 < held_out < 55  # binomial, mean 30
    for part, file in zip(parts, ("a.parquet", "b.parquet", "more/c.parquet"), strict=True):
        positions = [document.position for document in part]
        assert positions == sorted(positions)
        assert positions[-1] == (parquet_folder / file).stat().st_size


def test_a_wider_validation_split_holds_the_narrower(parquet_folder):
    def held_out(fraction):
        parts = read(corpus=str(parquet_folder), validation_fraction=fraction)
        return {document.name for part in parts for document in part if document.split == "validation"}

    assert held_out(0.05) < held_out(0.3)


def test_rows_without_text_are_no_documents_but_keep_their_numbers(tmp_path):
    full = write_parquet(tmp_path / "full" / "x.parquet", [f"text {i}" for i in range(60)])
    gaps = write_parquet(tmp_path / "gaps" / "x.parquet", [[f"text {i}", None, ""][i % 3] for i in range(60)])
    splits = {document.text: document.split for document in read(corpus=str(full), validation_fraction=0.5)[0]}
    kept = {document.text: document.split for document in read(corpus=str(gaps), validation_fraction=0.5)[0]}
    assert kept == {text: split for text, split in splits.items() if int(text.split()[1]) % 3 == 0}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_every_kind_of_text_column(tmp_path, kind):
    file = write_parquet(tmp_path / "x.parquet", ["one", "twö"] * 15, column="body", kind=kind)
    assert [document.text.decode() for document in read(corpus=str(file), column="body")[0]] == ["one", "twö"] * 15


def test_ways_to_name_parquet_files(parquet_folder, monkeypatch):
    every = ["a.parquet", "b.parquet", "more/c.parquet"]
    assert names(corpus=str(parquet_folder)) == every
    assert names(corpus=str(parquet_folder), files="more/*.parquet") == ["more/c.parquet"]
    assert names(corpus=str(parquet_folder / "b.parquet")) == ["b.parquet"]
    assert names(corpus=str(parquet_folder / "[ab].parquet")) == ["a.parquet", "b.parquet"]
    assert names(corpus=str(parquet_folder / "**" / "*.parquet")) == every
    monkeypatch.chdir(parquet_folder)
    assert names(corpus="*.parquet") == ["a.parquet", "b.parquet"]
    assert names(corpus="more/c.parquet") == ["c.parquet"]


def test_a_mixed_folder_needs_a_setting(tmp_path):
    write_parquet(tmp_path / "x.parquet", ["a"])
    (tmp_path / "README.md").write_text("words")
    with pytest.raises(ValueError, match="a folder must hold one kind of text"):
        names(corpus=str(tmp_path))
    assert names(corpus=str(tmp_path), files="*.parquet") == ["x.parquet"]
    assert [document.text for document in read(corpus=str(tmp_path), suffixes=(".md",))[0]] == [b"s", b"word"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"twice\.parquet has 2 called 'text'"):
        read(corpus=str(tmp_path))


def test_long_rows_are_read_few_at_a_time(tmp_path, monkeypatch):
    write_parquet(tmp_path / "long.parquet", ["long " * 400 + str(row) for row in range(40)])
    batch_sizes = []
    whole = pq.ParquetFile.iter_batches

    def iter_batches(file, batch_size, columns):
        batch_sizes.append(batch_size)
        return whole(file, batch_size=batch_size, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr("isoloop.trainer.data.sources._BATCH_BYTES", 4000)
    (texts,) = read(corpus=str(tmp_path))
    assert len(texts) == 40
    assert 1 <= batch_sizes[0] < 40


def test_a_name_that_is_no_utf8_is_a_name(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("some text")
    (tmp_path / "other.txt").write_text("more text")
    assert len(read(corpus=str(tmp_path), validation_fraction=0.5)[0]) == 2


def test_parquet_is_streamed(tmp_path):
    """Row groups before a damaged one are read, so the file is not read as a whole first."""
    texts = [hashlib.sha256(str(i).encode()).hexdigest() * 50 for i in range(800)]
    file = write_parquet(tmp_path / "x.parquet", texts)
    column = pq.ParquetFile(file).metadata.row_group(35).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    documents, seen = open_source(DataConfig(corpus=str(file))).list_parts()[0].read(), []
    with pytest.raises(ValueError, match=r"every file must be parquet that can be read, but .*x\.parquet is not"):
        seen.extend(document.text.decode() for document in iter(lambda: next(documents), None))
    assert 0 < len(seen) <= 700
    assert seen == texts[: len(seen)]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"corpus": "no.parquet"}, "data.corpus must be 'stdlib', a file, folder or glob that exists"),
        ({"corpus": "/no/such/folder"}, "nothing is there; relative paths start at"),
        ({"corpus": "no-*.parquet"}, r"no parquet file matches '\*.parquet'"),
        ({"corpus": ".", "files": "z*"}, r"no parquet file matches 'z\*'; check data.corpus and data.files"),
        (
            {"column": "body"},
            r"data.column must be a column of every parquet file, but .* has no 'body'; it has id, t",
        ),
        ({"column": "id"}, "data.column must hold text, but 'id' of .* holds int64"),
        ({"corpus": "spoilt/x.parquet"}, "every file must be parquet that can be read"),
        ({"corpus": "a.parquet", "files": "*"}, "one parquet file has none for data.files="),
        ({"suffixes": (".txt",), "files": "*"}, "a folder of parquet files has none for data.suffixes="),
        ({"revision": "v1"}, "a folder of parquet files has none for data.revision="),
        ({"corpus": "*.parquet", "revision": "v1"}, "a glob has none for data.revision="),
        ({"corpus": "spoilt/words.txt", "column": "body"}, "one text file has none for data.column="),
        ({"corpus": "words", "column": "body"}, "a folder of text files has none for data.column="),
        ({"corpus": "owner/name", "suffixes": (".txt",)}, "a data set on Hugging Face has none for data.suffixes="),
    ],
)
def test_what_cannot_be_read_is_refused(parquet_folder, tmp_path, monkeypatch, change, rule):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes((parquet_folder / "a.parquet").read_bytes())
    for folder in ("spoilt", "words"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.txt").write_text("words")
    (tmp_path / "spoilt/x.parquet").write_bytes(b"PAR1 not really")
    config = {"corpus": str(parquet_folder), **change}
    with pytest.raises(ValueError, match=rule):
        read(**config)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    parquet = write_parquet(tmp_path / "x.parquet", ["a"])
    text = tmp_path / "x.txt"
    text.write_text("before")
    parts = [open_source(DataConfig(corpus=str(file))).list_parts()[0] for file in (parquet, text)]
    write_parquet(parquet, ["b", "c"])
    text.write_text("after!")
    for part in parts:
        with pytest.raises(ValueError, match="must not change while it is tokenised"):
            list(part.read())


class FakeHub:
    """Stands in for Hugging Face: one data set, whose files lie in a folder here."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.listed, self.fetched, self.commit = folder, [], [], "c" * 40
        self.broken = None
        monkeypatch.setattr(hub, "list_files", self.list_files)
        monkeypatch.setattr(hub, "fetch_file", self.fetch_file)

    def list_files(self, repository, revision, waiting):
        self.listed.append(revision)
        if repository != "owner/name":
            raise hub.HubError("404, no such data set")
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()
        found = [(file.relative_to(self.folder).as_posix(), file.stat().st_size, digest(file)) for file in files]
        return self.commit, [hub.HubFile(path=path, size=size, digest=digest) for path, size, digest in found]

    def fetch_file(self, repository, path, *, kind, revision, waiting):
        assert (repository, kind, revision) == ("owner/name", "dataset", self.commit)
        if path == self.broken:
            raise hub.HubError("a reset line")
        self.fetched.append(path)
        return self.folder / path


@pytest.fixture
def fake_hub(parquet_folder, monkeypatch):
    return FakeHub(parquet_folder, monkeypatch)


def test_a_data_set_on_the_hub_reads_as_its_copy_does(fake_hub, parquet_folder):
    parts = open_source(DataConfig(corpus="owner/name")).list_parts()
    assert fake_hub.fetched == []  # shard by shard, when its turn comes
    assert [[*part.read()] for part in parts] == read(corpus=str(parquet_folder))
    assert fake_hub.fetched == ["a.parquet", "b.parquet", "more/c.parquet"]
    assert names(corpus="owner/name", files="more/*") == ["more/c.parquet"]
    with pytest.raises(ValueError, match="under 'owner/name' no parquet file matches 'x'"):
        open_source(DataConfig(corpus="owner/name", files="x"))


def test_what_identifies_a_data_set_on_the_hub_is_its_files(fake_hub):
    before = open_source(DataConfig(corpus="owner/name", revision="main")).identity
    fake_hub.commit = "d" * 40  # a commit that touched none of the files
    assert open_source(DataConfig(corpus="owner/name")).identity == before
    assert open_source(DataConfig(corpus="owner/name", files="[ab]*")).identity != before
    fake_hub.listed.clear()
    open_source(DataConfig(corpus="owner/name", revision="c" * 40))
    assert fake_hub.listed == []  # a commit says it all: a corpus that is prepared needs no network


def test_what_is_neither_here_nor_on_the_hub_names_both(fake_hub):
    with pytest.raises(
        ValueError, match=r"'my/text': nothing is there, nor can it be had from Hugging Face \(404, no such data set\)"
    ):
        open_source(DataConfig(corpus="my/text"))


def test_a_path_that_exists_wins_over_the_hub(fake_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "owner/name/x.parquet", ["a"])
    assert names(corpus="owner/name") == ["x.parquet"]
    assert fake_hub.listed == []


def test_the_hub_that_cannot_be_reached_is_one_error(monkeypatch):
    """The two functions that talk to it, with the client's calls failing."""
    import huggingface_hub

    def fails(*arguments, **options):
        raise RuntimeError("no route\nmore lines")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fails)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    monkeypatch.setattr(hub, "wait_for_answer", hub.no_waiting)
    with pytest.raises(hub.HubError, match=r"^RuntimeError: no route$"):
        hub.list_files("owner/name", None)
    with pytest.raises(hub.HubError, match=r"^RuntimeError: no route$"):
        hub.fetch_file("owner/name", "tokenizer.json", kind="model")


def test_the_hubs_answer_is_read(monkeypatch):
    """The client's own types, as its documentation has them; no network is used."""
    import huggingface_hub
    from huggingface_hub.hf_api import DatasetInfo, RepoFile, RepoFolder

    lfs = {"size": 7, "oid": "a" * 64, "pointerSize": 1}
    tree = [
        RepoFolder(path="data", oid="t"),
        RepoFile(path="data/x.parquet", size=7, oid="b", lfs=lfs),
        RepoFile(path="README.md", size=3, oid="b" * 40),
    ]
    revisions = []
    monkeypatch.setattr(hub, "wait_for_answer", hub.no_waiting)
    info = lambda self, repository, revision: revisions.append(revision) or DatasetInfo(id=repository, sha="c" * 40)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "list_repo_tree",
        lambda self, repository, **how: revisions.append(how["revision"]) or tree,
    )
    commit, files = hub.list_files("owner/name", "v1")
    assert revisions == ["v1", commit]
    assert [(file.path, file.size, file.digest) for file in files] == [
        ("data/x.parquet", 7, "a" * 64),
        ("README.md", 3, "b" * 40),
    ]


def test_a_hub_that_never_answers_is_waited_for_in_attempts(monkeypatch, tmp_path):
    """It accepts connections and says nothing, for which the client's calls have no time limit."""
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.0)
    waits = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{host}")
        with pytest.raises(ValueError, match=f"{host} did not answer in 3 attempts: timed out; check the network"):
            open_source(DataConfig(corpus="owner/name"), lambda *report: waits.append(report))
    lines = [f"waiting for {host}", *(f"waiting for {host}, try {attempt} of 3" for attempt in (2, 3))]
    assert waits == [(line, 0, 0) for line in lines]
    # Files that were downloaded before are read all the same.
    cached = tmp_path / "cached"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *what, **how: str(cached))
    assert hub.fetch_file("owner/name", "tokenizer.json", kind="model") == cached


@pytest.mark.parametrize("sizes", [(40, 9000), (9000, 40), (3000, 3000, 3000), (1, 1, 20_000), (5000,)])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_the_share_held_out_is_the_one_of_the_configuration(tmp_path, sizes, fraction):
    texts = {f"{number}.txt": "".join(f"{i:08d}\n" for i in range(size // 9 + 1)) for number, size in enumerate(sizes)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (documents,) = read(corpus=str(tmp_path), validation_fraction=fraction)
    held_out = b"".join(document.text for document in documents if document.split == "validation")
    trained = b"".join(document.text for document in documents if document.split == "train")
    assert len(held_out) / (len(held_out) + len(trained)) == pytest.approx(fraction, rel=0.1)
    for name, text in texts.items():  # every file is there once: whole, or in two parts that are cut after a line
        parts = [document.text.decode() for document in documents if document.name.endswith(name)]
        assert "".join(reversed(parts)) == text
        assert len(sizes) == 1 or all(part.endswith("\n") for part in parts)


def test_files_of_any_sizes_hold_out_the_share_within_a_tenth_or_a_byte():
    draw = random.Random(0)
    for _ in range(2000):
        sizes = [int(draw.choice([0, 1, 10, 1000]) * draw.lognormvariate(0, 2)) for _ in range(draw.randrange(1, 30))]
        wanted = sum(sizes) * (fraction := draw.choice([0.001, 0.05, 0.5, 0.999]))
        if sum(sizes) > 1:
            files, cut = _held_out(sizes, fraction, whole=False)
            assert abs(sum(sizes[:files]) + cut - wanted) <= max(0.1 * wanted, 1.5), (sizes, fraction)


def test_hidden_files_are_left_out_and_counted(tmp_path):
    folder = tmp_path / ".cache" / "corpus"  # itself in a hidden folder
    hidden = [".git/a.txt", "sub/.ipynb_checkpoints/b.txt", "sub/._c.txt", "__MACOSX/d.txt"]
    for number, name in enumerate(("a.txt", "sub/b.txt", *hidden)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text {number}" * 10)
    source = open_source(DataConfig(corpus=str(folder), validation_fraction=0.5))
    assert sorted(document.name for document in source.list_parts()[0].read()) == [
        str(folder / "a.txt"), str(folder / "sub" / "b.txt"),
    ]  # fmt: skip
    assert source.notes == [
        "4 hidden files (or in hidden folders, or __MACOSX) were left out; data.files may name them"
    ]
    assert {document.name for document in read(corpus=str(folder / hidden[2]))[0]} == {str(folder / hidden[2])}


def test_links_that_lead_nowhere_or_to_folders_are_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("other text")
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("some text")
    (folder / "linked.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")  # a file like any other
    (folder / "broken.txt").symlink_to("absent.txt")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    source = open_source(DataConfig(corpus=str(folder), validation_fraction=0.5))
    texts = b"".join(document.text for document in source.list_parts()[0].read())
    assert len(texts) == len("some textother text")
    assert source.notes == [
        "2 broken links were left out: broken.txt, loop.txt",
        "2 linked folders were not read: more, round; if that text belongs to the corpus, move it there",
    ]


def test_files_that_are_perhaps_no_text_are_named(tmp_path):
    contents = {
        "a.txt": "ä text\n" * 20, "b.txt": "", "c.txt": b"PK\0\1\2", "d.txt": "wörter".encode("latin-1"),
        "e.txt": "words".encode("utf-16"), "f.csv": "1,2", "g": "words",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    source = open_source(DataConfig(corpus=str(tmp_path)))
    assert source.notes == [
        "2 files with other suffixes (.csv, no suffix) were left out; data.suffixes names those that are read",
        "1 empty file was read as text without a character",
        "2 files with NUL bytes, as binary files and UTF-16 have them, were read as text: c.txt, e.txt; convert or "
        "remove such files",
        "1 file that is not UTF-8 was read byte by byte: d.txt; convert or remove such files",
    ]
    assert open_source(DataConfig(corpus=str(tmp_path / "a.txt"))).notes == []


def test_text_is_checked_in_pieces_that_may_end_within_a_character(tmp_path, monkeypatch):
    monkeypatch.setattr("isoloop.trainer.data.sources._DECODED_BYTES", 5)
    (tmp_path / "a.txt").write_text("aäöü€" * 9)
    assert open_source(DataConfig(corpus=str(tmp_path / "a.txt"))).notes == []
    (tmp_path / "a.txt").write_bytes("aäöü€".encode()[:-1])
    assert len(open_source(DataConfig(corpus=str(tmp_path / "a.txt"))).notes) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="the superuser alone can become another user")
def test_folders_and_files_that_cannot_be_read_are_refused(tmp_path):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.txt").write_text("some text")
        (folder / "closed").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(ValueError, match=r"every folder of a corpus must be readable, but .*closed is not: P"):
                open_source(DataConfig(corpus=name))
            os.seteuid(0)
            (folder / "closed").rmdir()
            (folder / "a.txt").chmod(0o600)
            os.seteuid(65534)
            with pytest.raises(ValueError, match=r"every file of a corpus must be readable, but .*a\.txt is not: Perm"):
                open_source(DataConfig(corpus=name))
        finally:
            os.seteuid(0)


def test_hidden_files_of_a_data_set_on_the_hub_are_left_out_and_counted(fake_hub, parquet_folder, tmp_path):
    fake_hub.folder = tmp_path
    for name in ("a.parquet", ".cache/b.parquet"):
        write_parquet(tmp_path / name, ["text"])
    source = open_source(DataConfig(corpus="owner/name"))
    assert [part.name for part in source.list_parts()] == ["a.parquet"]
    assert source.notes[0].startswith("1 hidden file ")
    assert names(corpus="owner/name", files=".cache/*") == [".cache/b.parquet"]
    pinned = open_source(DataConfig(corpus="owner/name", revision="c" * 40))
    assert [part.name for part in pinned.list_parts()] == ["a.parquet"]
    assert len(pinned.notes) == 1


def test_copies_of_text_that_is_held_out_are_named(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n" * 99)
    (part,) = open_source(DataConfig(corpus=str(tmp_path), validation_fraction=0.25)).list_parts()
    held_out, trained = ([d.name for d in part.read() if d.split == split] for split in ("validation", "train"))
    (tmp_path / trained[0]).write_bytes((tmp_path / held_out[0]).read_bytes())
    (note,) = open_source(DataConfig(corpus=str(tmp_path), validation_fraction=0.25)).notes
    assert note.startswith("1 file was kept for training although the same text is held out under another name: ")
    assert f": {os.path.basename(trained[0])}; remove" in note


@pytest.mark.parametrize("pinned", [{}, {"revision": "c" * 40}])
def test_files_may_be_held_out_whole(fake_hub, parquet_folder, pinned):
    """They come first, so that no limit of the training text cuts them; on the hub as here."""
    for corpus in (str(parquet_folder), "owner/name"):
        config = {"corpus": corpus, "validation_files": "more/*", **(pinned if corpus == "owner/name" else {})}
        assert names(**config) == ["more/c.parquet", "a.parquet", "b.parquet"]
        held_out, *trained = read(**config)
        assert [document.split for document in held_out] == ["validation"] * 100
        assert {document.split for part in trained for document in part} == {"train"}
        assert names(**config, files="b*") == ["more/c.parquet", "b.parquet"]
        other = open_source(DataConfig(**{**config, "validation_files": "b*"})).identity
        assert open_source(DataConfig(**config)).identity != other
        with pytest.raises(
            ValueError, match=r"no parquet file matches 'x\*'; check data.corpus and data.validation_files"
        ):
            names(**{**config, "validation_files": "x*"})
        with pytest.raises(ValueError, match=r"must have files to train on, but all 3 .* data.validation_files='\*'"):
            names(**{**config, "validation_files": "*"})


def test_a_split_into_files_is_refused_where_there_are_none(parquet_folder, text_folder):
    for corpus in ("stdlib", str(text_folder), str(parquet_folder / "a.parquet"), str(parquet_folder / "*.parquet")):
        with pytest.raises(ValueError, match=r"has none for data.validation_files='a\*'"):
            names(corpus=corpus, validation_files="a*")
    with pytest.raises(
        ValueError, match=r"a split into files \(data.validation_files\) has none for data.validation_frac"
    ):
        DataConfig(corpus=str(parquet_folder), validation_files="a*", validation_fraction=0.2)
