"""The demo tokenizer: a word with its leading space, or two digits, is one token; anything else falls to bytes.

Built from training documents and saved in the format of transformers. What the documents say is not decided here.
"""

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, USER, ASSISTANT = SPECIALS = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>")
PIECE = r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]|\s"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('The demo model knows the roles user and assistant, not ' + message['role'] + '.') }}"
    "{% endif %}"
    "{{ '<' + message['role'] + '> ' + message['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _vocabulary(texts: Iterable[str]) -> Iterator[str]:
    """Specials, the 256 bytes, numbers of one and two digits, then the pieces of the texts, each with its space too."""
    yield from SPECIALS
    yield from sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"
    numbers = [str(n) for n in range(10)] + [f"{n:02}" for n in range(100)]
    yield from (prefix + number for number in numbers for prefix in ("", space))
    split = _pre_tokenizer()
    pieces: set[str] = set()
    for text in texts:
        for special in SPECIALS:
            text = text.replace(special, "\n")
        pieces.update(piece for piece, _ in split.pre_tokenize_str(text))
    pieces |= {space + piece for piece in pieces if piece[0] not in (space, "'") and piece.isalpha()}
    yield from sorted(pieces)


def build_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are those of `texts`; it puts <bos> before plain text."""
    vocabulary: dict[str, int] = {}
    for piece in _vocabulary(texts):
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
