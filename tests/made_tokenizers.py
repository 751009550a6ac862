"""Small tokenizers of the two kinds that language models have, made in memory."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_SPECIALS = ("<pad>", "<s>", "</s>")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's: every byte is a token, a space is written as the letter G with a dot; a few merges; no BOS in front."""
    vocabulary = {token: index for index, token in enumerate([*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = [("\u0120", "M"), ("\u0120M", "a"), ("\u0120Ma", "r"), ("\u0120Mar", "y"), ("t", "h"), ("th", "e"), ("\u0120", "the")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's sentencepiece: a space is written as a low line, unknown characters fall to `<0xE2>` byte tokens; BOS in front."""
    words = ["\u2581", "\u2581Mary", "\u2581the", "\u2581store", "Mary", "the", "store", ".", ",", *"abcdefghijklmnopqrstuvwxyzM"]
    pieces = [*_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [0.0] * len(_SPECIALS) + [-20.0] * 256 + [-1.0 if len(word) > 1 else -8.0 for word in words]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
