"""Tokenizers beside a model's weights: there and back, and as the tokenizers library itself reads them."""

import json

import pytest
import tokenizers

from isoloop.trainer import hub
from isoloop.trainer.data.sources import Document
from isoloop.trainer.data.stored_tokenizer import read_tokenizer, save_tokenizer
from isoloop.trainer.data.tokenizer import BpeTokenizer, ByteTokenizer, train_bpe
from tests.parquet import document

TEXTS = ["Hello, wörld! 世界", "", "a <|endoftext|> and <eos> in a text", "tabs\t\n  12345 \0\0 Ā \ufeff", document(3)]


@pytest.fixture(scope="module")
def content():
    sample = [Document(f"text {i}", document(i).encode(), "train", 0) for i in range(300)]
    return train_bpe(sample, vocabulary=400, sample_bytes=10**6, separator="<eos>")


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, content):
    return ByteTokenizer() if request.param == "bytes" else BpeTokenizer("bpe", content, "<eos>")


def test_the_library_reads_what_we_wrote_and_so_do_we(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer, 64)
    again = read_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    assert (again.digest, again.separator, again.vocabulary) == (
        tokenizer.digest,
        tokenizer.separator,
        tokenizer.vocabulary,
    )
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["split_special_tokens"], config["model_max_length"]) == (True, 64)
    theirs.encode_special_tokens = True  # what split_special_tokens does
    assert theirs.get_vocab_size() == tokenizer.vocabulary
    assert theirs.token_to_id(config["eos_token"]) == theirs.token_to_id(config["bos_token"]) == tokenizer.separator
    for text in TEXTS:
        ids = tokenizer.encode_text(text).tolist()
        assert theirs.encode(text).ids == again.encode_text(text).tolist() == ids
        if tokenizer.name == "bytes":
            assert ids == list(text.encode())
        assert theirs.decode(ids).encode() == tokenizer.decode_bytes(ids)


def test_what_a_tokenizer_adds_to_every_text_is_left_out(content, tmp_path):
    """The training text was encoded without it."""
    theirs = tokenizers.Tokenizer.from_str(content)
    theirs.post_processor = tokenizers.processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    theirs.enable_truncation(3)
    save_tokenizer(tmp_path, BpeTokenizer("theirs", theirs.to_str(), "<eos>"), 64)
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.encode(TEXTS[0]).ids == tokenizers.Tokenizer.from_str(content).encode(TEXTS[0]).ids


@pytest.mark.parametrize(
    ("config", "argument", "separator"),
    [
        ({"eos_token": "<eos>"}, None, "<eos>"),
        ({"eos_token": {"content": "<eos>"}}, None, "<eos>"),
        ({"bos_token": "<bos>", "eos_token": None}, None, "<bos>"),
        ({"eos_token": "<eos>"}, "<bos>", "<bos>"),
        (None, "<eos>", "<eos>"),
    ],
)
def test_the_separator_is_the_one_named_beside_it(config, argument, separator, content, tmp_path):
    theirs = tokenizers.Tokenizer.from_str(content)
    theirs.add_special_tokens(["<bos>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_tokenizer(tmp_path / "tokenizer.json", argument).separator == theirs.token_to_id(separator)


def test_a_separator_that_nothing_names_is_asked_for(content, tmp_path):
    theirs = tokenizers.Tokenizer.from_str(content)
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).separator == 0  # the only special token
    theirs.add_special_tokens(["<bos>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"must be known, but \S+ has <bos>, <eos>; name it in \S+tokenizer_config"):
        read_tokenizer(tmp_path)
    theirs.add_special_tokens(["<|endoftext|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).separator == theirs.token_to_id("<|endoftext|>")


def test_what_is_no_tokenizer_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no such file; check the path"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"must be a tokenizer\.json that can be read"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be a tokenizer\.json"):
        read_tokenizer(tmp_path)

    def no_answer(*arguments, **options):
        raise hub.HubError("the hub did not answer")

    monkeypatch.setattr(hub, "fetch_file", no_answer)
    with pytest.raises(ValueError, match=r"Hugging Face has no such tokenizer \(the hub did not answer\)"):
        read_tokenizer("owner/name")


def test_a_name_on_the_hub_is_fetched_with_its_configuration(content, tmp_path, monkeypatch):
    """The hub can't be reached from a test: its answer is a folder."""
    save_tokenizer(tmp_path, BpeTokenizer("bpe", content, "<eos>"), 64)
    fetched = []

    def fetch_file(repository, path, *, kind):
        assert (repository, kind) == ("owner/name", "model")
        fetched.append(path)
        return tmp_path / path

    monkeypatch.setattr(hub, "fetch_file", fetch_file)
    assert read_tokenizer("owner/name").digest == BpeTokenizer("bpe", content, "<eos>").digest
    assert fetched == ["tokenizer.json", "tokenizer_config.json"]
