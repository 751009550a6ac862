"""A view goes into a URL and comes out again; what is no view gets a sentence, and the rest of it is kept."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import zlib
from typing import Any
from urllib.parse import parse_qsl

import pytest

from app import link
from app.link import Selected, View, decode, encode, fits, query
from llm_tt.text import ChatMessage

ODD = [
    "",
    " ",
    "The capital of France is",
    " leading and trailing ",
    "ends with a full stop.",
    "a\nb\tc",
    "a\r\nb",
    "\x00\x01\x1b\x7f",
    "<script>alert(1)</script>",
    "a&b=c;d#e?f+g%20h%",
    "\U0001f600\u200d\U0001f680 \u0645\u0631\u062d\u0628\u0627 \u202e",
    "e\u0301 \u00e9 \ufeff \u2028",
    '[["user","hi"]]',
    "x" * 601,
    "\u4e2d" * 500,
    "the quick brown fox " * 400,
]


def through_a_url(view: View) -> tuple[View, tuple[str, ...]]:
    """As a browser and Streamlit pass it on."""
    return decode(dict(parse_qsl(query(view), keep_blank_values=True, strict_parsing=True)))


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_prompt_comes_back_exactly(text: str) -> None:
    assert through_a_url(View(model="demo", prompt=text)) == (View(model="demo", prompt=text), ())


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_conversation_comes_back_exactly(text: str) -> None:
    view = View(prompt=(ChatMessage("system", text), ChatMessage("user", "Hi"), ChatMessage("assistant", text), ChatMessage("tool", text)))
    assert through_a_url(view) == (view, ())


def test_any_view_comes_back() -> None:
    """A thousand views made of odd parts."""
    chance = random.Random(4)
    names = [text for text in ODD if text and len(text) <= 500]
    nodes = ["X0_3", "A2_5", "M0_0", "I11_400"]
    edges = [Selected("X0_1", "A0_3", "attention"), Selected("A2_5", "I2_5", "residual"), Selected("A2_5", "M2_5", "ffn")]
    for _ in range(1000):
        mass = chance.choice([None, 0.8, 0.9, 0.95])
        target = chance.choice([None, 0, 7, 4095])
        view = View(
            model=chance.choice([None, "demo", "/a folder/b", "Qwen/Qwen3-0.6B", chance.choice(names)]),
            device=chance.choice(["auto", "cpu", "cuda:1"]),
            dtype=chance.choice(["auto", "bfloat16"]),
            prompt=chance.choice([None, chance.choice(ODD), "".join(chr(chance.randrange(1, 0xD800)) for _ in range(50))]),
            continuation=tuple(chance.randrange(200_000) for _ in range(chance.choice([0, 1, 20]))),
            target=target,
            first=None if target is None else chance.choice([None, *range(max(0, target - 2), target)]),
            threshold=chance.choice([0.04, 0.01, 0.045000000000000005, chance.random()]) if mass is None else 0.04,
            mass=mass,
            renormalize=chance.random() < 0.5,
            selected=chance.choice([None, *map(Selected, nodes), *edges]),
            token=chance.choice([None, "\u00b7Mary", *names]),
            contrast=chance.choice([None, "id:42", *names]),
            normalize=chance.random() < 0.5,
        )
        assert through_a_url(view) == (view, ())


def test_the_url_of_a_short_prompt_can_be_read_and_defaults_are_left_out() -> None:
    assert query(View(model="demo", prompt="The capital of France is")) == "model=demo&prompt=The+capital+of+France+is&v=1"
    assert encode(View()) == {"v": "1"}
    view = View(model="demo", target=3, threshold=0.02, selected=Selected("I1_2", "A2_3", "attention"), renormalize=False)
    assert query(view) == "model=demo&target=3&threshold=0.02&renormalize=0&select=I1_2.A2_3.attention&v=1"


def test_a_long_prompt_is_compressed_and_one_that_is_too_long_is_left_out() -> None:
    long = "When Mary and John went to the store, " * 100
    assert encode(View(prompt=long)).keys() == {"z", "v"}
    assert len(query(View(prompt=long))) < 300
    chance = random.Random(1)
    noise = "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(5000))
    assert not fits(noise)
    assert fits(long)
    assert encode(View(model="demo", prompt=noise)) == {"model": "demo", "v": "1"}
    longest = max((query(View(prompt=noise[:n])) for n in range(1000, 5000, 50)), key=len)
    assert len(longest) <= link.LONGEST + 10


def test_half_a_surrogate_pair_is_no_text_and_is_left_out() -> None:
    assert encode(View(prompt="\ud800")) == {"v": "1"}
    assert encode(View(prompt=(ChatMessage("user", "\ud800"),))) == {"v": "1"}


def packed(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(zlib.compress(data)).decode().rstrip("=")


BOMB = packed(b'"' + b"a" * 40_000_000 + b'"')


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"z": "not base64!"}, "prompt cannot be unpacked; the link was cut off or changed on its way"),
        ({"z": "AAAA"}, "cannot be unpacked"),
        ({"z": packed("a text")[:-6]}, "cannot be unpacked"),
        ({"z": packed(5)}, "cannot be unpacked"),
        ({"z": packed("\ud800")}, "cannot be unpacked"),
        ({"z": packed([["user", "\ud800"]])}, "cannot be unpacked"),
        ({"z": packed(b"[" * 100_000)}, "cannot be unpacked"),
        ({"z": BOMB}, "cannot be unpacked"),
        ({"z": "A" * 100_000}, "cannot be unpacked"),
        ({"chat": "hello"}, "chat is not a list of roles and messages"),
        ({"chat": "[]"}, "chat is not a list"),
        ({"chat": '[["owner","hi"]]'}, "chat is not a list"),
        ({"chat": '[["user"]]'}, "chat is not a list"),
        ({"chat": '{"user":"hi"}'}, "chat is not a list"),
        ({"continue": "1,2"}, 'continuation "1,2" is not a list of token numbers'),
        ({"continue": ".".join("1" * 5000)}, "is not a list of token numbers"),
        ({"target": "-1"}, 'target "-1" is not the number of a token; the last token is explained'),
        ({"target": "9" * 40}, "is not the number of a token"),
        ({"target": "\u0663"}, "is not the number of a token"),
        ({"threshold": "abc"}, 'threshold "abc" is not a number from 0 to 1; the usual one is used'),
        ({"threshold": "nan"}, "is not a number from 0 to 1"),
        ({"threshold": "1e9"}, "is not a number from 0 to 1"),
        ({"mass": "-3"}, 'mass "-3" is not a number from 0 to 1'),
        ({"renormalize": "maybe"}, 'renormalize "maybe" is neither 0 nor 1'),
        ({"normalize": ""}, 'normalize "" is neither 0 nor 1'),
        ({"select": "<script>"}, 'selects "<script>", which is neither a node such as A2_5 nor an edge'),
        ({"select": "A2_5.I0_1.attention"}, "neither a node"),
        ({"select": "I1_3.A2_5.magic"}, "neither a node"),
        ({"select": "I1_3.A2_5"}, "neither a node"),
        ({"select": ""}, "neither a node"),
        ({"why": "x" * 501}, '"why" is no text of at most 500 characters'),
        ({"model": "x" * 501}, '"model" is no text'),
        ({"v": "2"}, 'of version "2", this page reads version 1'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_part_is_one_sentence_and_the_rest_is_kept(parameters: dict[str, str], sentence: str) -> None:
    view, problems = decode({"dtype": "float16", "utm_source": "elsewhere", **parameters})
    assert view == View(dtype="float16")
    (problem,) = problems
    assert sentence in problem
    assert len(problem) < 200


def test_compressed_text_is_never_unfolded_beyond_the_bound() -> None:
    assert len(BOMB) > 2 * link.LONGEST
    small = packed(b'"' + b"a" * 3_000_000 + b'"')
    assert len(small) <= 2 * link.LONGEST, "short enough to be looked into"
    assert decode({"z": small})[0].prompt is None
    assert decode({"z": packed("a" * 500_000)})[0].prompt == "a" * 500_000


def test_every_kind_of_selection_comes_back() -> None:
    for selection in (
        None,
        {"type": "node", "node": "A2_5"},
        {"type": "edge", "key": "attention", "from": "I1_3", "to": "A2_5"},
    ):
        selected = Selected.of(selection)
        assert (None if selected is None else selected.selection()) == selection


def test_parameters_of_others_make_no_link() -> None:
    assert not link.is_link({"utm_source": "x", "embed": "true", "v": "1"})
    assert all(link.is_link({name: ""}) for name in link._NAMES)
    everything = View("m", "cpu", "float16", "p", (1,), 2, 0.02, None, False, Selected("A0_0"), "a", "b", False)
    with_mass = dataclasses.replace(everything, mass=0.9, prompt=(ChatMessage("user", "x"),))
    with_more = dataclasses.replace(everything, prompt="x" * 700)
    assert {*encode(everything), *encode(with_mass), *encode(with_more)} - {"v"} == link._NAMES
