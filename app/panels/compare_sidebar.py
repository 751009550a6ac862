"""The sidebar of the Compare page: two sides, by model, by prompt, or by both; how much of their graphs; what the effects are on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import streamlit as st

from app import session
from app.panels import chat
from app.session import Service
from llm_tt.analysis.alignment import ABSENT
from llm_tt.analysis.comparison import Comparison
from llm_tt.demo import DATA_DIR
from llm_tt.engine.messages import CompareTraces, ModelKey, TraceKey
from llm_tt.errors import ConfigError
from llm_tt.flow.graph import DEFAULT_THRESHOLD
from llm_tt.models.places import cleaned
from llm_tt.text import ChatMessage, visible

Side = Literal["first", "second"]
Prompt = str | tuple[ChatMessage, ...]
_SIDES: tuple[Side, Side] = ("first", "second")
MODELS, PROMPTS, BOTH = "Models", "Prompts", "Both"
TEXT, CHAT = "Text", "Chat"
_BY_THRESHOLD, _BY_MASS = "Threshold", "Share of flow"
_MASSES = [0.8, 0.9, 0.95]
_PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
_HEIGHT = 110
_N_PLANTED = 3


@dataclass(frozen=True)
class Example:
    """Something worth comparing, on the demo models."""

    label: str
    mode: str
    form: str
    prompts: tuple[str, str]


@dataclass(frozen=True)
class Choices:
    """What is to be compared; a side is None until it has a model and a prompt."""

    sides: tuple[TraceKey | None, TraceKey | None]
    names: tuple[str, str]
    threshold: float
    mass: float | None
    renormalize: bool
    token: int | str | None
    contrast: int | str | None

    def question(self, targets: tuple[int, int] | None) -> CompareTraces | None:
        """What to ask the engine; None while a side is missing."""
        first, second = self.sides
        if first is None or second is None:
            return None
        target, other = (-1, None) if targets is None else targets
        return CompareTraces(
            first,
            second,
            target,
            other,
            token=self.token,
            contrast=self.contrast,
            threshold=self.threshold,
            mass=self.mass,
            renormalize=self.renormalize,
        )


@cache
def examples() -> tuple[Example, ...]:
    """The planted shortcut, from the data that comes with the demo pair, and minimal pairs."""

    def questions(name: str) -> list[str]:
        with (DATA_DIR / f"{name}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line)["question"] for line, _ in zip(lines, range(_N_PLANTED), strict=False)]

    planted, clean = questions("conflict"), questions("clean")
    return (
        *(Example(f"Planted shortcut: {text}", MODELS, CHAT, (text, text)) for text in planted),
        Example(f"Without it: {clean[0]}", MODELS, CHAT, (clean[0], clean[0])),
        *(
            Example(f"{first} / {second}", PROMPTS, form, (first, second))
            for form, first, second in (
                (
                    TEXT,
                    "When Mary and John went to the store, John gave a drink to",
                    "When Mary and John went to the store, Mary gave a drink to",
                ),
                (TEXT, "The capital of France is", "The capital of Italy is"),
                (CHAT, planted[0], planted[0].replace("Lima", "Oslo")),
            )
        ),
    )


def show(service: Service, last: Comparison | None) -> Choices:
    """`last`: the comparison that is shown, for its tokens to be chosen from."""
    defaults = _defaults(service)
    with st.sidebar:
        st.markdown("### llm-tt", width="content")
        with st.container(key="choices"):
            session.hold("compare_mode", defaults["compare_mode"])
            mode = st.segmented_control(
                "Compare",
                [MODELS, PROMPTS, BOTH],
                key="compare_mode",
                required=True,
                width="stretch",
                help="Two models on one prompt, such as a base and what was tuned from it; two prompts on one model, such as a minimal pair; or "
                "two prompts on a model each.",
            )
            _examples(service)
            models = _models(service, defaults, two=mode != PROMPTS)
            prompts = _prompts(service, defaults, models, two=mode != MODELS)
            token, contrast = _question(last)
    keys: list[TraceKey | None] = []
    for side, model, prompt in zip(_SIDES, models, prompts, strict=True):
        has_text = bool(prompt.strip()) if isinstance(prompt, str) else any(message.content.strip() for message in prompt)
        keys.append(TraceKey(model, prompt, _continuation(side, model, prompt)) if model is not None and has_text else None)
    if models[0] is None or models[1] is None or models[0].name == models[1].name:
        names = ("prompt 1", "prompt 2")
    else:
        names = models[0].name, models[1].name
    # Of controls that stand above the graph and may not be drawn yet.
    mass = session.held("compare_mass", _MASSES[0]) if session.held("compare_keep", _BY_THRESHOLD) == _BY_MASS else None
    threshold = DEFAULT_THRESHOLD if mass is not None else session.held("compare_threshold", DEFAULT_THRESHOLD)
    return Choices((keys[0], keys[1]), names, threshold, mass, session.held("compare_renormalize", False), token, contrast)


def choose(service: Service, first: TraceKey, second: TraceKey) -> list[str]:
    """Put two sides into the sidebar, before it is drawn; sentences on what has no place there."""
    problems: list[str] = []
    same_model, same_prompt = first.model.name == second.model.name, first.prompt == second.prompt
    session.put("compare_mode", PROMPTS if same_model else MODELS if same_prompt else BOTH)
    session.put("compare_device", first.model.device)
    session.put("compare_dtype", first.model.dtype)
    is_chat = [not isinstance(key.prompt, str) for key in (first, second)]
    session.put("compare_form", CHAT if any(is_chat) else TEXT)
    if is_chat[0] != is_chat[1]:
        problems.append("One prompt is a text and the other a conversation; both are compared as conversations.")
    for side, key in zip(_SIDES, (first, second), strict=True):
        session.put(f"compare_model_{side}", key.model.name)
        text = key.prompt if isinstance(key.prompt, str) else chat.restore_turns(service, key.prompt, _prefix(side))
        if text is None:
            problems.append(
                f"The {side} conversation does not alternate between user and assistant, ending with the user; it was left out."
            )
        else:
            session.put(f"compare_prompt_{side}", text)
        st.session_state[f"compare_continued_{side}"] = (key.model.name, key.prompt, key.continuation)
    for name in ("compare_token", "compare_contrast"):
        session.put(name, None)
    st.session_state.pop("compare_example", None)
    return problems


# --- state that outlives a visit of another page


def _defaults(service: Service) -> dict[str, Any]:
    names = service.engine.model_names()
    first = service.config.default_model if service.config.default_model in names else next(iter(names), None)
    tuned = f"{first}-tuned"
    second = tuned if tuned in names else next((name for name in names if name != first), None)
    # The planted word, and another in its place.
    form, prompts = CHAT, examples()[-1].prompts
    if first != "demo" or second != "demo-tuned" or service.config.demo_mode:
        prepared = _prepared(service)
        form, prompts = TEXT, (prepared[0] if prepared else "", prepared[1] if len(prepared) > 1 else "")
    return {
        "compare_mode": MODELS if second is not None else PROMPTS,
        "compare_form": form,
        "compare_model_first": first,
        "compare_model_second": second,
        "compare_prompt_first": prompts[0],
        "compare_prompt_second": prompts[1],
    }


# --- its parts


def _prepared(service: Service) -> list[str]:
    try:
        return service.config.prompts()
    except ConfigError:
        # Said where the examples are.
        return []


def _examples(service: Service) -> None:
    try:
        service.config.prompts()
    except ConfigError as error:
        st.warning(str(error), icon=":material/warning:")
    prepared = [Example(visible(text).replace("\u00b7", " "), "", TEXT, (text, text)) for text in _prepared(service)]
    offered = prepared if service.config.demo_mode else [*examples(), *prepared]
    if offered:
        st.selectbox(
            "Examples",
            offered,
            index=None,
            key="compare_example",
            format_func=lambda example: example.label,
            placeholder=f"{len(offered)} comparisons and prompts",
            on_change=_take_example,
            help="Comparisons that show something on the demo models, and the prompts of the configuration. Choosing one puts it into the boxes "
            "below.",
        )


def _take_example() -> None:
    example: Example | None = st.session_state.compare_example
    if example is None:
        return
    session.put("compare_form", example.form)
    first, second = example.prompts
    session.put("compare_prompt_first", first)
    if example.mode:
        session.put("compare_mode", example.mode)
    if example.mode == PROMPTS:
        session.put("compare_prompt_second", second)
    for side in _SIDES:
        st.session_state[f"{_prefix(side)}n_turns"] = 0
        for name in (f"{_prefix(side)}system_turn", f"{_prefix(side)}system_turn_kept"):
            st.session_state[name] = ""


def _models(service: Service, defaults: Mapping[str, Any], two: bool) -> tuple[ModelKey | None, ModelKey | None]:
    first = _model(service, defaults, "first", "First model" if two else "Model")
    second = _model(service, defaults, "second", "Second model") if two else first
    with st.popover("Device", help="Where both models run and in which number format."):
        devices = service.engine.devices()
        if len(devices) > 2:
            session.hold("compare_device", "auto")
            device = st.selectbox("Device", devices, key="compare_device", help='"auto" takes a GPU where there is one.')
        else:
            device = "auto"
            st.caption("This machine has one device, the CPU.")
        session.hold("compare_dtype", "auto")
        dtype = st.selectbox(
            "Precision",
            _PRECISIONS,
            key="compare_dtype",
            help='Of the weights and the forward pass; contributions are always computed in float32. "auto" is float32 on a CPU and the '
            "checkpoint's own precision elsewhere.",
        )
    keys = [ModelKey(name, device, dtype) if name else None for name in (first, second)]
    return keys[0], keys[1]


def _model(service: Service, defaults: Mapping[str, Any], side: Side, label: str) -> str:
    key = f"compare_model_{side}"
    session.hold(key, defaults[key])
    may_add = service.config.models_may_be_added
    options = list(service.engine.model_names())
    chosen = st.session_state.get(key)
    if chosen and chosen not in options:
        options.append(chosen)
    name = st.selectbox(
        label,
        options,
        index=None,
        key=key,
        placeholder="Choose a model",
        accept_new_options=may_add,
        help="A model of the menu" + (", or the path of a folder or a name on the Hugging Face hub." if may_add else "."),
    )
    return cleaned(name) if name else ""


def _prompts(
    service: Service, defaults: Mapping[str, Any], models: tuple[ModelKey | None, ModelKey | None], two: bool
) -> tuple[Prompt, Prompt]:
    lacking = [model.name for model in dict.fromkeys(models) if model is not None and _lacks_template(service, model)]
    session.hold("compare_form", defaults["compare_form"])
    if lacking and st.session_state.compare_form == CHAT:
        st.caption(f"{' and '.join(lacking)} has no chat template: the first message is compared as a text.")
    form = st.segmented_control(
        "Form",
        [TEXT, CHAT],
        key="compare_form",
        required=True,
        label_visibility="collapsed",
        width="stretch",
        help="Text is continued as it is. Chat goes through the chat template of each model, which puts its own tokens around each message.",
    )
    as_chat = form == CHAT and not lacking
    first = _prompt(service, defaults, "first", "First prompt" if two else "Prompt", as_chat)
    return first, _prompt(service, defaults, "second", "Second prompt", as_chat) if two else first


def _lacks_template(service: Service, model: ModelKey) -> bool:
    """Whether a model is known to have no chat template: as long as it is not loaded, nobody knows."""
    facts = service.engine.facts_if_loaded(model)
    return facts is not None and (facts.info.tokenizer is None or facts.info.tokenizer.chat_template is None)


def _prompt(service: Service, defaults: Mapping[str, Any], side: Side, label: str, as_chat: bool) -> Prompt:
    config = service.config

    def box(name: str, note: str) -> str:
        session.hold(f"compare_prompt_{side}", defaults[f"compare_prompt_{side}"])
        return st.text_area(
            name,
            key=f"compare_prompt_{side}",
            height=_HEIGHT,
            disabled=config.demo_mode,
            max_chars=config.max_user_string_length,
            help=f"{note} Press Ctrl+Enter, or click elsewhere, to compare."
            + (" This is a demo, which shows prepared prompts only: choose one under Examples." if config.demo_mode else ""),
            placeholder="The capital of France is",
        )

    if not as_chat:
        return box(label, "The text that is continued.")
    return chat.turns(service, lambda name, note: box(f"{label}: {name.lower()}", note), _prefix(side))


def go_along(keys: tuple[TraceKey, TraceKey], token_ids: tuple[int, ...]) -> None:
    """Let both sides go on with these tokens, in a callback; with none, let them be the prompts alone."""
    for side, key in zip(_SIDES, keys, strict=True):
        st.session_state[f"compare_continued_{side}"] = (key.model.name, key.prompt, token_ids)


def _prefix(side: Side) -> str:
    return f"compare_{side}_"


def _continuation(side: Side, model: ModelKey, prompt: Prompt) -> tuple[int, ...]:
    """What another page gave with a side, as long as model and prompt are the ones it came with."""
    kept = st.session_state.get(f"compare_continued_{side}")
    return kept[2] if kept is not None and kept[:2] == (model.name, prompt) else ()


def pruning() -> None:
    """How much of both graphs, in a row above them: edges above a threshold, or as few as carry a share of the flow; renormalised or not."""
    with st.container(horizontal=True, vertical_alignment="center", key="compare_pruning"):
        session.hold("compare_keep", _BY_THRESHOLD)
        keep = st.segmented_control(
            "Keep",
            [_BY_THRESHOLD, _BY_MASS],
            key="compare_keep",
            required=True,
            label_visibility="collapsed",
            help="Which edges each of the two graphs has: those that contribute more than a threshold to their node; or as few as carry a share of "
            "the whole flow.",
        )
        if keep == _BY_MASS:
            session.hold("compare_mass", _MASSES[0])
            st.segmented_control(
                "Share of the flow",
                _MASSES,
                key="compare_mass",
                required=True,
                label_visibility="collapsed",
                format_func=lambda mass: f"{mass:.0%}".replace("%", " %"),
                help="Each graph is made of the edges with the largest flow, as few as carry this share to the tokens.",
            )
        else:
            session.hold("compare_threshold", DEFAULT_THRESHOLD)
            st.slider(
                "Threshold",
                min_value=0.01,
                max_value=0.1,
                step=0.005,
                format="%.3f",
                key="compare_threshold",
                label_visibility="collapsed",
                help="An edge is drawn when it contributes more than this share to its node, in one of the two at least. Lower shows more edges.",
            )
        session.hold("compare_renormalize", False)
        st.toggle(
            "Renormalise",
            key="compare_renormalize",
            help="Divide the contributions that were kept at a node by their sum, for the flow through heads and blocks. Changes of edges are "
            "those of contributions as they are, either way.",
        )


def _question(last: Comparison | None) -> tuple[int | str | None, int | str | None]:
    """The tokens that direct effects are on. They stand here so that a mistyped one can be mended whatever the page shows."""
    left, right = st.columns(2, gap="small")
    with left:
        token = _token(last, "compare_token", "Why", "changed")
    with right:
        contrast = _token(last, "compare_contrast", "and not", "nothing" if token is not None else "before")
    return token, contrast


def _token(last: Comparison | None, key: str, label: str, placeholder: str) -> int | str | None:
    ids = {} if last is None else {visible(text): int(ids[0]) for text, ids in zip(last.choices.texts, last.choices.token_ids, strict=True)}
    options = list(ids)
    session.hold(key, None)
    chosen: str | None = st.session_state[key]
    if chosen is not None and chosen not in options:
        options.append(chosen)
    typed = st.selectbox(
        label,
        options,
        index=None,
        key=key,
        placeholder=placeholder,
        accept_new_options=True,
        help="What direct effects are on: the logit of a token, or how far it is above another's. Empty: the second side's first choice, and not "
        "the first side's. Type a token's text with the space that begins it, or its number, as in id:42.",
    )
    if typed is None:
        return None
    token_id = ids.get(typed, ABSENT)
    return typed if token_id == ABSENT else token_id
