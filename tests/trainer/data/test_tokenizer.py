import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from isoloop.trainer import hub
from isoloop.trainer.config import DataConfig
from isoloop.trainer.data import tokenizer as tokenizer_module
from isoloop.trainer.data.sources import Document
from isoloop.trainer.data.tokenizer import ByteTokenizer, make_tokenizer, request_tokenizer, train_bpe
from tests.parquet import document

SEPARATOR = "<|endoftext|>"
TEXTS = ["Hello, wörld! 世界", "", f"a {SEPARATOR} in a text", "tabs\t\n\n  and 12345 \0 \ufeff"]


def documents(*texts, split="train"):
    return [Document(f"text {i}", text.encode(), split, 0) for i, text in enumerate(texts)]


SAMPLE = documents(*(document(number) for number in range(300)))


@pytest.fixture(scope="module")
def content():
    return train_bpe(SAMPLE, vocabulary=400, sample_bytes=10**6, separator=SEPARATOR)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, content):
    return make_tokenizer(request.param, content if request.param == "bpe" else None, SEPARATOR)


def test_contract(tokenizer):
    tokens, lengths = tokenizer.encode(documents(*TEXTS))
    assert tokens.dtype == tokenizer.dtype
    assert len(tokens) == lengths.sum()
    assert tokenizer.token_bytes.shape == (tokenizer.vocabulary,)
    assert tokenizer.token_bytes.dtype == np.int64
    starts = np.cumsum(lengths) - lengths
    for text, start, length in zip(TEXTS, starts, lengths, strict=True):
        assert tokenizer.token_bytes[tokens[start : start + length]].sum() == len(text.encode()) + 1
        alone, _ = tokenizer.encode(documents(text))
        np.testing.assert_array_equal(alone, tokens[start : start + length])
    closing = tokens[starts + lengths - 1]
    assert len(set(closing.tolist())) == 1  # each document is closed by the same token
    assert tokenizer.token_bytes[closing[0]] == 1


def test_text_comes_back_without_separators(tokenizer):
    for text in TEXTS:
        ids = tokenizer.encode_text(text)
        assert ids.tolist() == tokenizer.encode(documents(text))[0][:-1].tolist()
        kept = text.replace("\0", "") if tokenizer.name == "bytes" else text  # there byte 0 is the separator
        assert tokenizer.decode_bytes([tokenizer.separator, *ids, tokenizer.separator]) == kept.encode()
    assert tokenizer.encode(documents("a"))[0][-1] == tokenizer.separator
    assert tokenizer.decode_bytes([10**6]) == b""  # of a model's padded vocabulary


def test_bytes_of_a_command_line_need_not_be_utf8(content):
    text = b"caf\xe9".decode(errors="surrogateescape")
    assert bytes(ByteTokenizer().encode_text(text)) == b"caf\xe9"
    with pytest.raises(ValueError, match="text must be UTF-8 for a tokenizer other than 'bytes', but the text is not"):
        make_tokenizer("bpe", content, SEPARATOR).encode_text(text)


def test_bytes_are_their_own_ids():
    tokens, _ = ByteTokenizer().encode(documents("aé"))
    assert tokens.tolist() == [97, 0xC3, 0xA9, 0]
    assert (ByteTokenizer().vocabulary, ByteTokenizer().dtype) == (256, np.uint8)


def test_bpe_gives_the_text_back(content):
    ours = make_tokenizer("bpe", content, SEPARATOR)
    assert (ours.vocabulary, ours.dtype) == (400, np.dtype("<u2"))
    theirs = tokenizers.Tokenizer.from_str(content)
    for text in (*TEXTS, document(7)):
        tokens, _ = ours.encode(documents(text))
        assert theirs.decode(tokens[:-1].tolist()) == text
        assert 0 not in tokens[:-1]  # a separator that is written out is text
        assert tokens[-1] == 0
    tokens, _ = ours.encode(SAMPLE[:20])
    assert len(tokens) < 0.6 * sum(len(d.text) for d in SAMPLE[:20])  # it has merged


def test_a_very_long_text_is_taken_in_pieces(content, monkeypatch):
    """Cut behind lines, or within a line that is too long; the bytes are all there, in their order."""
    text = "\n".join(document(number) for number in range(40)) + "x" * 900
    bpe = make_tokenizer("bpe", content, SEPARATOR)
    whole, _ = bpe.encode(documents(text, "the next"))
    monkeypatch.setattr(tokenizer_module, "_PIECE", 400)
    monkeypatch.setattr(tokenizer_module, "_BATCH", 1000)
    tokens, lengths = bpe.encode(documents(text, "the next"))
    library = tokenizers.Tokenizer.from_str(content)
    first, second = tokens[: lengths[0] - 1].tolist(), tokens[lengths[0] : -1].tolist()
    assert (library.decode(first), library.decode(second)) == (text, "the next")
    assert bpe.token_bytes[tokens].sum() == len(text.encode()) + len(b"the next") + 2
    assert len(whole) <= len(tokens) < 1.05 * len(whole)
    sample = train_bpe(documents(text), vocabulary=280, sample_bytes=300, separator=SEPARATOR)
    begun = train_bpe(documents(text[:1200]), vocabulary=280, sample_bytes=300, separator=SEPARATOR)
    assert sample == begun  # the sample ends with a piece, not with the document


def test_training_is_deterministic(content):
    code = (
        "from tests.trainer.data.test_tokenizer import SAMPLE, SEPARATOR\n"
        "from isoloop.trainer.data.tokenizer import train_bpe\n"
        "print(train_bpe(SAMPLE, vocabulary=400, sample_bytes=10**6, separator=SEPARATOR), end='')"
    )
    root = Path(__file__).resolve().parents[3]
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
        assert done.stdout == content


def test_training_reads_the_sample_of_the_training_split_alone(content):
    limit = sum(len(d.text) for d in SAMPLE)
    held_out = documents(*["zqzqzqzq " * 500], split="validation")
    for more in (documents("zqzqzqzq " * 500), held_out):
        order = [*SAMPLE, *more] if more is not held_out else [*more, *SAMPLE]
        assert train_bpe(order, vocabulary=400, sample_bytes=limit, separator=SEPARATOR) == content
    assert train_bpe([*SAMPLE, *more], vocabulary=400, sample_bytes=10 * limit, separator=SEPARATOR) == content
    longer = [*SAMPLE, *documents("zqzqzqzq " * 500)]
    assert train_bpe(longer, vocabulary=400, sample_bytes=10 * limit, separator=SEPARATOR) != content


def test_the_digest_is_what_ids_mean(content):
    ours = make_tokenizer("bpe", content, SEPARATOR)
    assert make_tokenizer("another name", json.dumps(json.loads(content)), SEPARATOR).digest == ours.digest
    other = train_bpe(SAMPLE, vocabulary=399, sample_bytes=10**6, separator=SEPARATOR)
    assert make_tokenizer("bpe", other, SEPARATOR).digest != ours.digest
    assert make_tokenizer("bytes", None, SEPARATOR).digest != ours.digest


@pytest.mark.parametrize(("vocabulary", "dtype"), [(256, "u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_the_smallest_type_that_holds_every_id(vocabulary, dtype):
    tokenizer = ByteTokenizer()
    tokenizer.vocabulary = vocabulary
    assert tokenizer.dtype == np.dtype(dtype)


def changed(content, change):
    parts = json.loads(content)
    change(parts)
    return json.dumps(parts)


def whitespace_drops_spaces(parts):
    parts["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, parts["pre_tokenizer"]],
    }


def no_byte_for_a(parts):
    model = parts["model"]
    model["merges"] = [merge for merge in model["merges"] if not any("a" in side for side in merge)]
    model["vocab"] = {token: id_ for token, id_ in model["vocab"].items() if "a" not in token}


def word_level(parts):
    parts["model"] = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}


def a_word_of_letters(parts):
    parts["model"]["vocab"]["世"] = 400


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (word_level, "must be byte-level BPE, .* but 'mine' is not: its model is WordLevel"),
        (lambda parts: parts.update(normalizer={"type": "NFKC"}), "its normalizer NFKC may change the text"),
        (lambda parts: parts["pre_tokenizer"].update(add_prefix_space=True), "must be byte-level BPE"),
        (lambda parts: parts.update(pre_tokenizer={"type": "Whitespace"}), "must be byte-level BPE"),
        (whitespace_drops_spaces, "must be byte-level BPE"),
        (no_byte_for_a, "it has no token for 1 of the 256 bytes"),
        (a_word_of_letters, "its token 400, '世', is not written in bytes"),
        (lambda parts: parts["model"].update(dropout=0.1), "has dropout"),
        (lambda parts: parts.update(added_tokens=[]), "but 'mine' has no '.*'; it has none"),
        (lambda parts: parts["added_tokens"][0].update(special=False), "must be one of the tokenizer's special tokens"),
    ],
)
def test_what_is_not_byte_level_is_refused(content, change, rule):
    with pytest.raises(ValueError, match=rule):
        make_tokenizer("mine", changed(content, change), SEPARATOR)


def test_limits_of_a_loaded_tokenizer_do_not_cut_documents(content):
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    loaded = make_tokenizer("mine", changed(content, lambda parts: parts.update(truncation=cut)), SEPARATOR)
    assert len(loaded.encode(documents(document(1)))[0]) > 50


def test_another_separator_of_a_loaded_tokenizer(content):
    def add(parts):
        parts["added_tokens"].append({**parts["added_tokens"][0], "id": 400, "content": "<|bos|>"})

    loaded = make_tokenizer("mine", changed(content, add), "<|bos|>")
    assert loaded.encode(documents("a"))[0].tolist()[-1] == 400
    assert (loaded.vocabulary, loaded.token_bytes[400], loaded.token_bytes[0]) == (401, 1, 0)


def test_not_utf8_is_refused_by_name(content):
    latin = [Document("old.txt", "naïve".encode("latin-1"), "train", 0)]
    for refuse in (
        lambda: make_tokenizer("bpe", content, SEPARATOR).encode(latin),
        lambda: train_bpe(latin, vocabulary=300, sample_bytes=10**6, separator=SEPARATOR),
    ):
        with pytest.raises(ValueError, match=r"but old\.txt is not, at byte 2; convert it"):
            refuse()
    assert ByteTokenizer().encode(latin)[0].tolist() == [*"naïve".encode("latin-1"), 0]


def test_a_sample_too_small_is_refused():
    with pytest.raises(ValueError, match=r"13 bytes of text gave \d+ ids of data.tokenizer_vocabulary=5000"):
        train_bpe(documents("a few words ."), vocabulary=5000, sample_bytes=100, separator=SEPARATOR)


def test_ways_to_name_a_tokenizer(content, tmp_path, monkeypatch):
    def content_of(name):
        return request_tokenizer(DataConfig(tokenizer=name)).content(())

    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    assert content_of(str(file)) == content
    assert content_of("bytes") is None
    requests = []
    monkeypatch.setattr(hub, "fetch_file", lambda *what, **how: requests.append((what, how)) or file)
    assert content_of("owner/name") == content
    assert [(what, how["kind"]) for what, how in requests] == [(("owner/name", "tokenizer.json"), "model")]
    monkeypatch.chdir(tmp_path.parent)
    assert content_of(f"{tmp_path.name}/tokenizer.json") == content  # a path that exists wins
    assert len(requests) == 1


def test_the_same_file_elsewhere_is_the_same_request(content, tmp_path):
    identities = []
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(content)
        identities.append(request_tokenizer(DataConfig(tokenizer=str(tmp_path / name))).identity)
    assert identities[0] == identities[1]


def test_no_such_tokenizer(tmp_path, monkeypatch):
    def fails(*what, **how):
        raise hub.HubError("no network")

    monkeypatch.setattr(hub, "fetch_file", fails)
    with pytest.raises(
        ValueError, match=r"data.tokenizer must be .* but got 'owner/name': .* from Hugging Face \(no network\)"
    ):
        request_tokenizer(DataConfig(tokenizer="owner/name"))
    with pytest.raises(ValueError, match=r"got 'my/tokenizer\.json': no such file; relative paths start at"):
        request_tokenizer(DataConfig(tokenizer="my/tokenizer.json"))
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a tokenizer\.json that can be read"):
        request_tokenizer(DataConfig(tokenizer=str(tmp_path / "x.json")))
    for nonsense in ("{}", "not JSON"):
        with pytest.raises(ValueError, match=r"data\.tokenizer must be a tokenizer\.json, but 'mine' is not"):
            make_tokenizer("mine", nonsense, SEPARATOR)
