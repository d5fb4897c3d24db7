"""Text encoders of transformers other than RoBERTa, and RoBERTa itself, as a folder of published weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

import tiny
from dshmp.checkpoint import build_model, load_config, load_model, save_model
from dshmp.common.errors import UserError
from dshmp.config import AutoEncoderConfig, EncoderConfig, ModelConfig, from_dict, to_dict
from dshmp.interop.graphs import example, export
from dshmp.interop.release import to_release
from dshmp.model.text import LanguageEncoder, pretrained_encoder
from dshmp.model.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from dshmp.training.train import run

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"max_position_embeddings": 140}
KINDS = ("bert", "minilm", "modernbert", "distilbert", "roberta")


def word_piece(special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator([text.lower() for text in tiny.SENTENCES], trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def publish(kind: str, folder: Path) -> Path:
    """A folder with random weights, as the kind's models are published."""
    torch.manual_seed(3)
    if kind == "roberta":
        RobertaModel(RobertaConfig(vocab_size=300, type_vocab_size=1, **SIZES)).save_pretrained(folder)
        tokenizer = train_tokenizer([text.lower() for text in tiny.SENTENCES], 290)
    elif kind == "distilbert":
        config = DistilBertConfig(
            vocab_size=300, dim=32, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=140
        )
        DistilBertModel(config).save_pretrained(folder)
        tokenizer = word_piece()
    elif kind == "modernbert":
        ids = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
        layers = {"local_attention": 4, "global_attn_every_n_layers": 2}
        ModernBertModel(ModernBertConfig(vocab_size=300, **SIZES, **ids, **layers)).save_pretrained(folder)
        tokenizer = word_piece()
    else:
        BertModel(BertConfig(vocab_size=300, **SIZES)).save_pretrained(folder)
        tokenizer = word_piece()
    tokenizer.save(str(folder / "tokenizer.json"))
    if kind == "minilm":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def fresh(folder: Path) -> tuple[LanguageEncoder, TextTokenizer, ModelConfig]:
    encoder, state = pretrained_encoder(folder)
    values = tiny.with_switches(tiny.MODEL, {"language.encoder": to_dict(encoder)})
    config = from_dict(ModelConfig, values)
    language = LanguageEncoder(config.language, config.hidden_size).eval()
    language.encoder.load_state_dict(state)
    return language, TextTokenizer(config, load_tokenizer(folder)), config


def recipe(folder: Path, mini: Path, encoder: Path, *, frozen: bool) -> Path:
    language = {"frozen": frozen, "dropout": 0.0}
    model = tiny.MODEL | {"language": language}
    data = {"mevis": {"root": str(mini)}}
    values = tiny.recipe("whole", mini, data=data, model=model, text_encoder=str(encoder), steps=2)
    return tiny.write_recipe(folder / "recipe-in.yaml", values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [True, False])
def test_trained_saved_and_loaded(
    kind: str, frozen: bool, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(kind, tmp_path / "published")
    folder = run(recipe(tmp_path, mini, published, frozen=frozen), [], tmp_path / "run", "cpu")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asked the network"))
    for path in published.glob("*"):  # nothing is read from there again
        path.rename(tmp_path / path.name)
    model, tokenizer = load_model(folder)
    encoder = model.config.language.encoder
    assert isinstance(encoder, EncoderConfig if kind == "roberta" else AutoEncoderConfig)
    if isinstance(encoder, AutoEncoderConfig):
        assert encoder.pooling == ("pooler" if kind == "bert" else "mean")
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    for path in tmp_path.glob("*"):
        if path.name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling"):
            path.rename(published / path.name)
    _, state = pretrained_encoder(published)
    assert all(torch.equal(value, state[key]) for key, value in model.language.encoder.state_dict().items()) == frozen
    with torch.no_grad():
        before = model.language(tokenizer(tiny.SENTENCES))
        save_model(model, tokenizer, tmp_path / "again")
        again, read = load_model(tmp_path / "again")
        after = again.language(read(tiny.SENTENCES))
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.sentence, after.sentence)
    assert load_config(tmp_path / "again" / "config.json").model == model.config
    if kind != "roberta":
        with pytest.raises(UserError, match=r"no place for .*a text encoder other than RoBERTa"):
            to_release(tmp_path / "again", tmp_path / "back.pth")


@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers_has_it_and_padding_changes_nothing(kind: str, tmp_path: Path) -> None:
    language, tokenizer, config = fresh(publish(kind, tmp_path))
    batch = tokenizer(tiny.SENTENCES)
    with torch.no_grad():
        together = language(batch)
        for row, sentence in enumerate(tiny.SENTENCES):
            alone = language(tokenizer([sentence]))
            length = alone.words.shape[1]
            torch.testing.assert_close(together.words[row, :length], alone.words[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(together.sentence[row], alone.sentence[0], rtol=0, atol=1e-5)
        found = language.encoder(batch.input_ids, batch.mask.long())
        output = AutoModel.from_pretrained(tmp_path).eval()(input_ids=batch.input_ids, attention_mask=batch.mask.long())
    words = output.last_hidden_state
    torch.testing.assert_close(found.last_hidden_state[batch.mask], words[batch.mask], rtol=0, atol=1e-5)
    mean = torch.stack([each[mask].mean(0) for each, mask in zip(words, batch.mask, strict=True)])
    pooled = output.pooler_output if kind in ("bert", "roberta") else mean
    torch.testing.assert_close(found.pooler_output, pooled, rtol=0, atol=1e-5)
    assert example(config, (40, 64), 1, 3, 1)["words"].shape[-1] == words.shape[-1]  # what an exported graph takes


@pytest.mark.slow
def test_export(tmp_path: Path) -> None:
    """A graph begins at the words' features, so any encoder will do."""
    pytest.importorskip("onnxscript")
    language, tokenizer, config = fresh(publish("minilm", tmp_path / "published"))
    model = build_model(config, "here")
    model.language.load_state_dict(language.state_dict())
    save_model(model, tokenizer, tmp_path / "model")
    assert len(export(tmp_path / "model", tmp_path / "graph", "onnx")) == 1


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([text.lower() for text in tiny.SENTENCES], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize("make", [word_piece, unigram])
def test_words_of_other_tokenisers(make: Any, tmp_path: Path) -> None:
    """All pieces of a word belong to its group, an unknown one too; what is spelt like a special token does not."""
    path = tmp_path / "tokenizer.json"
    make().save(str(path))
    tokenizer = TextTokenizer(tiny.config(), load_tokenizer(path))
    text = "the red star that moves left"
    batch = tokenizer([text])
    encoding = tokenizer.tokenizer.encode(text)
    for group, words in ((batch.static, "red star"), (batch.motion, "moves left")):
        spans = [span for span, chosen in zip(encoding.offsets, group[0], strict=True) if chosen]
        assert "".join(text[start:end].replace(" ", "") for start, end in spans) == words.replace(" ", "")
    assert not (batch.static | batch.motion)[0, [0, -1]].any()
    if make is word_piece:
        batch = tokenizer(["the 🙂 star", "the [SEP] star"])
        assert (batch.input_ids[0] == tokenizer.tokenizer.token_to_id("[UNK]")).any()
    assert len(tokenizer.tokenizer.get_vocab()) == len(make().get_vocab())


BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 300, **SIZES}


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"architecture": {}}, "language.encoder: architecture has no model_type"),
        ({"architecture": {"model_type": "bert"}}, "language.encoder: architecture.hidden_size must be a whole number"),
        ({"architecture": 3}, "language.encoder.architecture: must be a mapping, found 3"),
        ({"architecture": BERT, "poling": "mean"}, "language.encoder: unknown key 'poling'; did you mean 'pooling'?"),
        ({"architecture": BERT | {"model_type": "x"}}, "no model can be built from this config (Unrecognized model"),
        ({"architecture": BERT | {"hidden_size": 33}}, "no model can be built from this config (The hidden size"),
        ({"architecture": BERT | {"num_hidden_layers": 10**9}}, "architecture.num_hidden_layers must be at most 256"),
        ({"architecture": BERT | {"model_type": "t5"}}, "t5 is an encoder with a decoder"),
        ({"architecture": BERT | {"max_position_embeddings": 99}}, "must be at least 128, found 99"),
        (
            {"architecture": BERT | {"model_type": "modernbert", "pad_token_id": 0}, "pooling": "pooler"},
            "modernbert has no pooler",
        ),
        ({"hiden_size": 3}, "language.encoder: unknown key 'hiden_size'; did you mean 'hidden_size'?"),
        ({"hidden_size": "a"}, "language.encoder.hidden_size: must be a valid integer, found 'a'"),
    ],
)
def test_wrong_numbers(encoder: Any, message: str) -> None:
    values = {**tiny.MODEL, "language": {"encoder": encoder}}
    with pytest.raises(UserError) as caught:
        build_model(from_dict(ModelConfig, values), "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_taken(mini: Path, tmp_path: Path) -> None:
    published = publish("bert", tmp_path / "published")
    word_piece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"[unused{i}]" for i in range(400)))).save(
        str(published / "tokenizer.json")
    )
    path = recipe(tmp_path, mini, published, frozen=True)
    with pytest.raises(UserError, match="they do not belong together"):
        run(path, [], tmp_path / "run", "cpu")
    state = BertModel.from_pretrained(published).state_dict()
    (published / "model.safetensors").unlink()
    torch.save(state, published / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the text encoder"):  # pickles are not read
        run(path, [], tmp_path / "run", "cpu")


def test_roberta_does_without_transformers() -> None:
    code = "import sys; from dshmp.checkpoint import load_model; load_model(); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
