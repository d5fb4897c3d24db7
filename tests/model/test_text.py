"""Section 3.1: words, tokens, cues and the text encoder."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

import tiny
from dshmp.common.device import to_device
from dshmp.common.errors import UserError
from dshmp.config import EncoderConfig, LanguageConfig, ModelConfig, ReleaseConfig, to_dict
from dshmp.model.parser import Word, load_parser
from dshmp.model.roberta import Roberta
from dshmp.model.text import LanguageEncoder, TextFeatures, pretrained_encoder
from dshmp.model.tokenizer import TextBatch, TextTokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from dshmp.model.words import noun_phrases, split_words, splitting_apart, token_groups

ROBERTA_BPE = Path(__file__).resolve().parents[3] / "shared" / "roberta_bpe"
TINY = EncoderConfig(
    vocab_size=400,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=140,
)
TEXTS = [
    "the red star moving left",
    "moving left",
    "the cat",
    "the blue square on the right that goes up and then left",
    "dog",
]

# expression, static words, motion words of the dependency split
PHRASES = [
    ("the red star going up and then left", "red star", "going up then left"),
    ("moving left", "", "moving left"),
    ("the one that turns back", "one", "turns back"),
    ("drifts to the left", "", "drifts to the left"),
    ("left then up", "", "left then up"),
    ("first left, then back", "", "first left then back"),
    ("bird standing on hand, then flying away", "bird on hand", "standing then flying away"),
    ("the circle heading leftwards", "circle", "heading leftwards"),
    ("spinning clockwise", "", "spinning clockwise"),
    ("moves left slowly", "", "moves left slowly"),
    ("the red one moves right", "red one", "moves right"),
    ("square moves up", "square", "moves up"),
    ("the small square going left", "small square", "going left"),
    ("the square sliding left of the circle", "square of circle", "sliding left"),
    ("swings left to right", "", "swings left to right"),
    ("triangle rotating counter-clockwise", "triangle", "rotating counter - clockwise"),
    ("star spins counterclockwise", "star", "spins counterclockwise"),
    ("the star going back and forth", "star", "going back and forth"),
    ("the star going around in circles", "star", "going around in circles"),
    ("moving in a circle", "", "moving in a circle"),
    ("the circle that moves down then right", "circle", "moves down then right"),
    ("the green triangle that goes right and turns back", "green triangle", "goes right turns back"),
    ("the car turning left at the corner", "car at corner", "turning left"),
    ("cat jumping up and down", "cat", "jumping up and down"),
    ("the panda that fell off the slide and rolled over", "panda slide", "fell off rolled over"),
    ("a man running from left to right", "man", "running from left to right"),
    ("the star that drifts from right to left", "star", "drifts from right to left"),
    (
        "the child moving from the left side to the right side",
        "child",
        "moving from the left side to the right side",
    ),
    ("moves up and to the right", "", "moves up to the right"),
    ("drifting right while spinning", "", "drifting right while spinning"),
    ("find the two striped discs that dash upward", "two striped discs", "dash upward"),
    ("the star going out of view on the left", "star", "going out of view on the left"),
    ("moving right after going down: the plain box", "plain box", "moving right after going down"),
    ("the star that comes toward the camera", "star camera", "comes toward"),
    ("the star moves away from the circle", "star circle", "moves away from"),
    ("the cat climbing up the tree", "cat tree", "climbing up"),
    ("the dog running backwards", "dog", "running backwards"),
    ("lizard moving its tongue in-and-out", "lizard tongue", "moving in - and - out"),
    ("the monkey swinging side to side", "monkey", "swinging side to side"),
    ("hand moving the cup right", "hand cup", "moving right"),
    ("the hand pushing the cup to the left", "hand cup", "pushing to the left"),
    ("the one moving in the opposite direction", "one", "moving in the opposite direction"),
    ("circle going right then left then right", "circle", "going right then left then right"),
    ("triangle moving diagonally up to the right", "triangle", "moving diagonally up to the right"),
    ("the man who walks in and sits down", "man", "walks in sits down"),
    (
        "the big square that first moves right and then stays still",
        "big square",
        "first moves right then stays still",
    ),
    ("the square that goes left before the circle", "square before circle", "goes left"),
    ("two sheep going up the hill", "two sheep hill", "going up"),
    ("the red ball that does not move", "red ball", "not move"),
    ("The LEFT cat turning RIGHT", "LEFT cat", "turning RIGHT"),
    # directions that say where, or which
    ("the left cat", "left cat", ""),
    ("the dog on the left sitting", "dog on left", "sitting"),
    ("the left bird flying to the right", "left bird", "flying to the right"),
    ("the cat on the right moving to the left", "cat on right", "moving to the left"),
    ("the top left circle", "top left circle", ""),
    ("the bottom right square moving upwards", "bottom right square", "moving upwards"),
    (
        "left most giraffe bending its neck down to eat grass",
        "left most giraffe neck grass",
        "bending down eat",
    ),
    ("the square to the left of the circle", "square to left of circle", ""),
    ("the third giraffe from the left", "third giraffe from left", ""),
    ("the dog standing to the left of the man", "dog to left of man", "standing"),
    ("the right hand waving", "right hand", "waving"),
    ("the upside down cat", "upside down cat", ""),
    ("the panda lying on its back", "panda on back", "lying"),
    ("the triangle in a circle", "triangle in circle", ""),
    ("right panda climbing", "right panda", "climbing"),
]


@pytest.fixture(scope="module")
def bpe() -> Any:
    return train_tokenizer(TEXTS * 3, vocab_size=400)


def config(release: ReleaseConfig | None = None, **changes: Any) -> ModelConfig:
    language = LanguageConfig(**{"encoder": TINY, "frozen": False, **changes})
    return ModelConfig(language=language, release=release or ReleaseConfig())


def encoder(hidden_size: int = 16, **changes: Any) -> LanguageEncoder:
    torch.manual_seed(0)
    return LanguageEncoder(config(**changes).language, hidden_size).eval()


def said(words: list[Word], group: str) -> str:
    return " ".join(word.text for word in words if word.group == group)


@pytest.mark.parametrize(("expression", "static", "motion"), PHRASES)
def test_dependency_split_keeps_a_direction_with_its_verb(expression: str, static: str, motion: str) -> None:
    words = list(*split_words([expression], "dependency"))
    assert (said(words, "static"), said(words, "motion")) == (static, motion)


@pytest.mark.parametrize(("how", "static"), [("paper", "cats on sofa"), ("release", "The two cats are on a sofa , !")])
def test_splits_by_part_of_speech(how: Any, static: str) -> None:
    words = list(*split_words(["The two cats are on a sofa, slowly turning!"], how))
    assert said(words, "static") == static
    assert said(words, "motion") == "slowly turning"


def test_a_long_chain_of_directions_is_split_in_no_time() -> None:
    words = list(*split_words(["moving " + "to left left " * 60 + "cats left"], "dependency"))
    assert len(words) == 183
    assert said(words[:7], "motion") == "moving to left left to left left"


def test_a_process_beside_splits_as_this_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text, *_ in PHRASES[:9]]
    expected = list(split_words(texts, "dependency"))
    before = set(multiprocessing.active_children())
    with splitting_apart():
        monkeypatch.setattr("dshmp.model.words.parse", lambda *_: pytest.fail("parsed here"))
        assert list(split_words(texts, "dependency")) == expected
        monkeypatch.undo()
        for process in set(multiprocessing.active_children()) - before:  # as where memory is short
            process.kill()
        assert list(split_words(texts, "dependency")) == expected
    assert set(multiprocessing.active_children()) <= before
    assert list(split_words(texts, "dependency")) == expected


def test_words_carry_their_place_in_the_expression() -> None:
    text = "the  cat, turning left"
    words = list(*split_words([text], "dependency"))
    assert [text[word.start : word.end] for word in words] == ["the", "cat", ",", "turning", "left"]
    assert [word.text for word in words] == ["the", "cat", ",", "turning", "left"]


def test_a_token_belongs_to_the_word_that_contains_all_of_it() -> None:
    words = [Word("do", 0, 2, "motion"), Word("n't", 2, 5, "static"), Word("turn", 6, 10, "motion")]
    #          <s>      turn's  halves            don (across)  't
    offsets = [(0, 0), (6, 8), (8, 10), (0, 3), (3, 5), (5, 7)]
    assert token_groups(words, offsets) == [None, "motion", "motion", None, "static", None]


def test_missing_parser_names_the_remedy() -> None:
    with pytest.raises(UserError, match="pip install en-core-nowhere"):
        load_parser("en_core_nowhere")


def test_trained_tokenizer_has_roberta_ids_and_survives_its_file(bpe: Any, tmp_path: Path) -> None:
    assert [bpe.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 4]
    assert bpe.encode("star").ids[1:-1] == bpe.encode("the star").ids[2:-1], "the first word is like any other"
    save_tokenizer(bpe, tmp_path / "tokenizer.json")
    for source in (tmp_path / "tokenizer.json", tmp_path):
        again = load_tokenizer(source)
        text = "the red Zebra 🙂 moving, left"
        assert again.encode(text).ids == bpe.encode(text).ids
        assert again.decode(again.encode(text).ids, skip_special_tokens=True).strip() == text


def test_offsets_of_the_trained_tokenizer_are_characters_of_the_words(bpe: Any) -> None:
    text = "naïve 🙂 star  moving"
    spans = [text[start:end].strip() for start, end in bpe.encode(text).offsets[1:-1]]
    assert spans[-1] == "moving"
    assert "star" in spans
    assert {piece for piece in spans if piece} <= {"n", "a", "ï", "v", "ve", "e", "🙂", "star", "moving"}


def test_a_broken_or_absent_tokenizer_is_explained(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for source in (tmp_path, tmp_path / "tokenizer.json", tmp_path.parent):
        with pytest.raises(UserError, match=r"cannot load a tokeniser from .*; give a tokenizer\.json"):
            load_tokenizer(source)


def test_absent_encoder_weights_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load the text encoder"):
        pretrained_encoder(tmp_path)


def test_encoder_weights_come_back_from_a_folder(tmp_path: Path) -> None:
    published = RobertaModel(RobertaConfig(**to_dict(TINY))).eval()
    published.save_pretrained(tmp_path)
    ours = Roberta(TINY).eval()
    numbers, state = pretrained_encoder(tmp_path)
    assert numbers == TINY
    ours.load_state_dict(state)  # all of its names
    ids, mask = torch.randint(5, 400, (3, 9)), torch.arange(9) < torch.tensor([[9], [6], [2]])
    ids[~mask] = 1
    with torch.no_grad():
        found, expected = ours(ids, mask), published(ids, mask)
    close(found.last_hidden_state[mask], expected.last_hidden_state[mask])
    close(found.pooler_output, expected.pooler_output)


def test_a_tokenizer_equals_transformers(tmp_path: Path) -> None:
    """With a file of its own and with vocab.json and merges.txt; words of TEXTS, and what is spelt oddly."""
    texts = [*TEXTS, "a <mask> cat", "naïve 🙂 star  moving", " <s> "]
    if not ROBERTA_BPE.exists():
        pytest.skip("RoBERTa's vocabulary is not beside this checkout")
    theirs = RobertaTokenizerFast.from_pretrained(str(ROBERTA_BPE), local_files_only=True)
    save_tokenizer(load_tokenizer(ROBERTA_BPE), tmp_path / "tokenizer.json")
    for source in (ROBERTA_BPE, tmp_path):
        for text in texts:
            found, expected = load_tokenizer(source).encode(text), theirs(text, return_offsets_mapping=True)
            assert (found.ids, found.offsets) == (expected.input_ids, expected.offset_mapping)


def test_batch_is_padded_to_its_longest_expression(bpe: Any) -> None:
    batch = TextTokenizer(config(), bpe)(TEXTS)
    assert batch.input_ids.dtype == torch.int64
    assert {batch.mask.dtype, batch.static.dtype, batch.motion.dtype} == {torch.bool}
    assert batch.mask.sum(1).max() == batch.input_ids.shape[1]
    assert (batch.input_ids[~batch.mask] == bpe.token_to_id("<pad>")).all()
    assert not (batch.static & batch.motion).any()
    assert not ((batch.static | batch.motion) & ~batch.mask).any()
    assert TextTokenizer(config(ReleaseConfig(pad_to_max=True)), bpe)(TEXTS).input_ids.shape == (5, 128)


def test_every_word_of_a_group_reaches_its_tokens(bpe: Any) -> None:
    batch = TextTokenizer(config(), bpe)(["The LEFT cat   moving\tleft"])
    text = bpe.decode(batch.input_ids[batch.motion].tolist())
    assert text.split() == ["moving", "left"]
    assert bpe.decode(batch.input_ids[batch.static].tolist()).split() == ["left", "cat"]


def test_normalising_makes_spellings_equal(bpe: Any) -> None:
    tokenizer = TextTokenizer(config(), bpe)
    batch = tokenizer(["The  Red STAR ", "the red star"])
    assert torch.equal(batch.input_ids[0], batch.input_ids[1])
    raw = TextTokenizer(config(normalise=False), bpe)(["The Red STAR", "the red star"])
    assert not torch.equal(raw.input_ids[0], raw.input_ids[1])


@pytest.mark.parametrize("expression", ["🙂 dog", "!!!", "DOG", "it", "naïve café", "<s> cat <mask>", "左"])
def test_unusual_expressions_are_encoded(bpe: Any, expression: str) -> None:
    batch = TextTokenizer(config(), bpe)([expression])
    features = encoder()(batch)
    assert batch.input_ids[0, 0] == 0
    assert batch.input_ids[0, -1] == 2
    for value in (features.tokens, features.sentence, features.static.features, features.motion.features):
        assert value.isfinite().all()


def test_special_tokens_spelt_in_the_text_are_no_words(bpe: Any) -> None:
    batch = TextTokenizer(config(split="release", normalise=False), bpe)(["a <mask> cat"])
    place = batch.input_ids[0] == 4
    assert place.sum() == 1
    assert not (batch.static[0] | batch.motion[0])[place].any()


@pytest.mark.parametrize("expression", ["", "  \t\n"])
def test_nothing_to_read_is_an_error(bpe: Any, expression: str) -> None:
    with pytest.raises(UserError, match="expression"):
        TextTokenizer(config(), bpe)(["dog", expression])


def test_overlong_expressions(bpe: Any) -> None:
    text = "the cat " * 40
    with pytest.raises(UserError, match=r"has \d+ tokens, the limit is 12"):
        TextTokenizer(config(max_tokens=12), bpe)([text])
    batch = TextTokenizer(config(ReleaseConfig(overlong="cut"), max_tokens=12), bpe)([text])
    assert batch.input_ids.shape == (1, 12)
    assert batch.input_ids[0, -1] != 2, "as in the release, a cut sentence has no </s>"
    assert batch.mask.all()


def test_an_expression_is_parsed_once(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(config(), bpe)
    first = tokenizer(TEXTS)
    no_parser(monkeypatch)
    again = tokenizer([*TEXTS, TEXTS[0]])
    assert torch.equal(again.motion[:5], first.motion)
    assert torch.equal(again.motion[5], first.motion[0])
    assert tokenizer.split(TEXTS[1]) == [Word("moving", 0, 6, "motion"), Word("left", 7, 11, "motion")]


def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dshmp.model.tokenizer.split_words", lambda *_: pytest.fail("parsed again"))


def test_threads_take_turns_at_the_configured_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenising in the loader's threads."""
    parser, asked, inside = load_parser(), set(), []
    tokenizer = TextTokenizer(tiny.config({"language.spacy_model": "another"}), tiny.tokenizer().tokenizer)

    class Watched:
        def pipe(self, texts: list[str]) -> Iterator[Any]:
            inside.append(threading.get_ident())
            time.sleep(0.01)
            documents = list(parser.pipe(texts))
            assert inside == [threading.get_ident()]
            inside.clear()
            yield from documents

    def load(name: str) -> Watched:
        asked.add(name)
        return Watched()

    monkeypatch.setattr("dshmp.model.parser.load_parser", load)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: tokenizer.split(f"the dog number {number}")[-1].text, range(12)))
    assert found == [str(number) for number in range(12)]
    assert asked == {"another"}


def test_kept_expressions_are_parsed_once_for_all_processes(
    bpe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TextTokenizer(config(), bpe)
    expected, words = plain(TEXTS), [plain.split(text) for text in TEXTS]
    TextTokenizer(config(), bpe).keep([*TEXTS, TEXTS[0].upper()], tmp_path / "new")
    (path,) = (tmp_path / "new").iterdir()
    no_parser(monkeypatch)
    tokenizer = TextTokenizer(config(), bpe)
    tokenizer.keep(TEXTS[::-1], tmp_path / "new")
    batch = tokenizer(TEXTS)
    for name in ("input_ids", "mask", "static", "motion"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))
    assert [tokenizer.split(text) for text in TEXTS] == words
    assert list((tmp_path / "new").iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"3",
        lambda data: b"[" * 100_000,
        lambda data: data[:-9],
        lambda data: data.replace(b"motion", b"static", 1),
        lambda data: data.replace(b"null", b"\xffull", 1),
    ],
)
def test_damaged_parses_are_made_anew(damage: Any, bpe: Any, tmp_path: Path) -> None:
    TextTokenizer(config(), bpe).keep(TEXTS, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    tokenizer = TextTokenizer(config(), bpe)
    tokenizer.keep(TEXTS, tmp_path)
    assert path.read_bytes() == whole
    assert torch.equal(tokenizer(TEXTS).motion, TextTokenizer(config(), bpe)(TEXTS).motion)


def test_parses_are_told_apart_by_what_they_depend_on(
    bpe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, "The CAT"]
    cut = {"release": ReleaseConfig(overlong="cut")}
    for changes in ({}, {"split": "paper"}, {"max_tokens": 100}, cut, {"normalise": False}):
        TextTokenizer(config(**changes), bpe).keep(texts, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    TextTokenizer(config(ReleaseConfig(pad_to_max=True, pad_token_id=0)), bpe).keep(texts, tmp_path)  # these come later
    assert len(list(tmp_path.iterdir())) == 5
    TextTokenizer(config(), bpe).keep(texts[:2], tmp_path)
    TextTokenizer(config(), train_tokenizer(["another"], 290)).keep(texts, tmp_path)
    monkeypatch.setattr("dshmp.model.tokenizer.parser_version", lambda name: "newer")
    TextTokenizer(config(), bpe).keep(texts, tmp_path)
    monkeypatch.setattr("dshmp.model.tokenizer.RULES", 10**6)
    TextTokenizer(config(), bpe).keep(texts, tmp_path)
    assert len(list(tmp_path.iterdir())) == 9


def test_a_comment_in_the_rules_voids_no_parses(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = TextTokenizer(config(), bpe).identity(), Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda *given, **more: read(*given, **more) + "# another comment\n")
    assert TextTokenizer(config(), bpe).identity() == before


def test_parses_that_fail_leave_nothing(bpe: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the limit is 12"):
        TextTokenizer(config(max_tokens=12), bpe).keep(["the cat", "the cat " * 40], tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pad_token_id", [None, 0])
@pytest.mark.parametrize("pad_to_max", [False, True])
def test_padding_and_company_change_nothing(bpe: Any, pad_token_id: int | None, pad_to_max: bool) -> None:
    release = ReleaseConfig(pad_token_id=pad_token_id, pad_to_max=pad_to_max)
    tokenizer, model = TextTokenizer(config(release), bpe), encoder()
    together = model(tokenizer(TEXTS))
    for row, text in enumerate(TEXTS):
        alone = model(TextTokenizer(config(), bpe)([text]))
        size = alone.mask.shape[1]
        close(together.words[row, :size], alone.words[0])
        close(together.tokens[row, :size], alone.tokens[0])
        close(together.sentence[row], alone.sentence[0])
        for cues, own in ((together.static, alone.static), (together.motion, alone.motion)):
            close(cues.features[row][cues.mask[row]], own.features[0])


def test_padded_slots_of_the_release_have_positions(bpe: Any) -> None:
    """Id 0 is not RoBERTa's <pad> (1), so padded slots differ by their positions."""
    release = encoder()(TextTokenizer(config(ReleaseConfig(pad_token_id=0)), bpe)(TEXTS))
    usual = encoder()(TextTokenizer(config(), bpe)(TEXTS))
    padding = ~usual.mask[4]
    assert usual.words[4][padding].std(dim=0).max() < 1e-5
    assert release.words[4][padding].std(dim=0).max() > 1e-3


def test_cues_hold_the_words_of_their_group_then_the_sentence(bpe: Any) -> None:
    batch = TextTokenizer(config(), bpe)(TEXTS)
    features = encoder()(batch)
    for cues, group in ((features.static, batch.static), (features.motion, batch.motion)):
        assert cues.mask.sum(1).tolist() == (group.sum(1) + 1).tolist()
        assert cues.mask.shape[1] == int(group.sum(1).max()) + 1
        assert not cues.features[~cues.mask].any()
        for row in range(len(TEXTS)):
            expected = torch.cat([features.tokens[row][group[row]], features.sentence[row, None]])
            assert torch.equal(cues.features[row][cues.mask[row]], expected)
    assert features.motion.mask[4].tolist().count(True) == 1, "without a verb f_e stands alone"


def test_cues_without_learnable_queries_are_the_same_rows(bpe: Any) -> None:
    batch = TextTokenizer(config(), bpe)(TEXTS)
    full, direct = encoder()(batch), encoder(cues="direct")(batch)
    assert torch.equal(full.motion.features, direct.motion.features)


def test_cues_of_words_only_fall_back_to_the_sentence(bpe: Any) -> None:
    batch = TextTokenizer(config(), bpe)(TEXTS)
    features = encoder(cues="words")(batch)
    assert features.motion.mask.sum(1).tolist() == batch.motion.sum(1).clamp(min=1).tolist()
    assert torch.equal(features.motion.features[0][features.motion.mask[0]], features.tokens[0][batch.motion[0]])
    assert torch.equal(features.motion.features[4, 0], features.sentence[4])


def test_sentence_only_has_one_row_for_both_groups(bpe: Any) -> None:
    features = encoder(cues="sentence")(TextTokenizer(config(), bpe)(TEXTS))
    for cues in (features.static, features.motion):
        assert torch.equal(cues.features, features.sentence[:, None])
        assert cues.mask.all()


def test_repeat_gives_each_frame_its_text(bpe: Any) -> None:
    features = encoder()(TextTokenizer(config(), bpe)(TEXTS[:2]))
    frames = features.repeat(torch.tensor([0, 0, 1]))
    assert isinstance(frames, TextFeatures)
    assert torch.equal(frames.words[1], features.words[0])
    assert torch.equal(frames.tokens[2], features.tokens[1])
    assert torch.equal(frames.mask[2], features.mask[1])
    assert torch.equal(frames.sentence[2], features.sentence[1])
    assert torch.equal(frames.static.features[1], features.static.features[0])
    assert torch.equal(frames.motion.mask[2], features.motion.mask[1])


def test_batch_moves_whole(bpe: Any) -> None:
    moved = to_device(TextTokenizer(config(), bpe)(TEXTS), torch.device("meta"))
    assert isinstance(moved, TextBatch)
    assert {moved.input_ids.device.type, moved.mask.device.type, moved.motion.device.type} == {"meta"}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_neither_learns_nor_drops(bpe: Any, frozen: bool) -> None:
    model = encoder(frozen=frozen, dropout=0.0).train()
    batch = TextTokenizer(config(), bpe)(TEXTS)
    features = model(batch)
    (features.motion.features.sum() + features.tokens.square().sum()).backward()
    learns = [parameter.grad is not None for parameter in model.encoder.parameters()]
    assert any(learns) is not frozen
    assert all(parameter.requires_grad is not frozen for parameter in model.encoder.parameters())
    assert model.resizer.fc.weight.grad is not None
    assert torch.equal(features.tokens, model(batch).tokens) is frozen, "dropout inside the encoder"


def test_the_released_names_are_kept() -> None:
    names = encoder().state_dict().keys()
    assert {
        "resizer.fc.weight",
        "resizer.fc.bias",
        "resizer.layer_norm.weight",
        "resizer.layer_norm.bias",
    } <= names
    assert "encoder.pooler.dense.weight" in names


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


OBJECTS = {
    "a brown dog running after the white cat": ["brown dog", "white cat"],
    "the one that moves left": [],
    "the object moving forward": [],
    "the older one chasing the other one": [],
    "bird standing on hand, then flying away": ["bird", "hand"],
    "Cow shaking head and looking at us": ["cow", "head"],
    "goldfish swimming from left to right": ["goldfish"],
    "two cats jumping over the standing dog": ["cats", "dog"],
    "the second horse from the left": ["horse"],
    "the dog in front of the car": ["dog", "car"],
    "the thing on the right side of the road": ["road"],
    "the sheep to the right of the sheep": ["sheep"],
    "a couple of ducks": ["ducks"],
    "moving car": ["car"],
    "the big white bear-like dog": ["big white bear-like dog"],
    "he is holding its leash": ["leash"],
}


def test_noun_phrases_name_the_objects() -> None:
    assert dict(zip(OBJECTS, noun_phrases(list(OBJECTS)), strict=True)) == OBJECTS
    with splitting_apart():
        assert noun_phrases(["the white cat"]) == [["white cat"]]
