"""The sidebar: which model, which prompt. Returns choices; asks the engine nothing but what devices there are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import streamlit as st

from app import session
from app.link import View
from app.markup import escaped
from app.panels import chat, saved_graph, tour
from app.panels import continuation as continuing
from app.session import Service
from llm_tt.config import parse_prompts
from llm_tt.engine.messages import ModelFacts, ModelKey
from llm_tt.errors import ConfigError
from llm_tt.models.info import FfnShape, ModelInfo, TokenizerInfo
from llm_tt.models.places import cleaned
from llm_tt.text import ChatMessage, visible

_PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
_DEMO_NOTE = (
    "**Demo.** Prepared models and prompts only, since anybody may use this server. Off: writing prompts, opening prompt files, adding and "
    "unloading models. All of it is on when you run llm-tt yourself."
)


@dataclass(frozen=True)
class Choices:
    """What the user has chosen. `model` is None and `prompt` empty until there is one."""

    model: ModelKey | None
    prompt: str | tuple[ChatMessage, ...]
    continuation: tuple[int, ...] = ()
    """ids of what the model has put out after the prompt"""

    @property
    def has_prompt(self) -> bool:
        return _has_text(self.prompt)


def _has_text(prompt: str | tuple[ChatMessage, ...]) -> bool:
    if isinstance(prompt, str):
        return bool(prompt.strip())
    return any(message.content.strip() for message in prompt)


def show(service: Service) -> Choices:
    with st.sidebar:
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.markdown("### llm-tt", width="content")
            tour.button(service)
        if service.config.demo_mode:
            st.info(_DEMO_NOTE, icon=":material/lock:")
        with st.container(key="choices"):
            model = _model(service)
            prompt = _prompt(service, model)
            continuation = continuing.show(service, model, prompt, _has_text(prompt))
        return Choices(model, prompt, continuation)


def restore(service: Service, view: View) -> list[str]:
    """Set model and prompt to a view's, before the sidebar is drawn or in a callback; sentences on what this server does not allow."""
    problems: list[str] = []
    names = service.engine.model_names()
    if view.model in names:
        session.choose_model(str(view.model))
    elif view.model is not None:
        current = st.session_state.get("model", service.config.default_model)
        problems.append(
            f'The model "{view.model}" is not on the menu of this server; '
            + (f'what you see is of "{current}".' if current else "choose another.")
        )
    for key, value, possible in (("device", view.device, service.engine.devices()), ("dtype", view.dtype, _PRECISIONS)):
        st.session_state[key] = value if value in possible else "auto"
        if value not in possible:
            problems.append(f'{key} "{value}" is not one of {", ".join(possible)}; auto is used.')
    problems += _restore_prompt(service, view.prompt)
    return problems


def _restore_prompt(service: Service, prompt: str | tuple[ChatMessage, ...] | None) -> list[str]:
    config = service.config
    contents = [] if prompt is None else [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    length = sum(map(len, contents))
    try:
        prepared = service.engine.is_prepared(contents)
    except ConfigError:
        # Said where the examples are.
        prepared = False
    if prompt is None:
        return []
    if config.demo_mode and not prepared:
        return ["This server shows prepared prompts only, and the prompt is none of them."]
    if config.max_user_string_length is not None and length > config.max_user_string_length and not prepared:
        return [f"The prompt has {length} characters, but this server allows {config.max_user_string_length}; it was left out."]
    if isinstance(prompt, str):
        st.session_state.prompt, st.session_state.prompt_form = prompt, "Text"
    elif chat.restore(service, prompt):
        session.expect_chat_template()
    else:
        return ["The conversation does not alternate between user and assistant, beginning and ending with the user; it was left out."]
    return []


def show_facts(service: Service, key: ModelKey, facts: ModelFacts) -> None:
    """The facts of the loaded model, at the end of the sidebar."""
    info = facts.info
    heads = f"{info.n_heads}" if info.n_heads == info.n_kv_heads else f"{info.n_heads} ({info.n_kv_heads} key-value)"
    rows = {
        "family": info.family,
        "parameters": f"{info.n_params:,}",
        "layers": str(info.n_layers),
        "heads": heads,
        "width": str(info.d_model),
        "FFN": _ffn(info),
        "vocabulary": f"{info.d_vocab:,}",
        "context": f"{info.n_ctx:,} tokens",
        "runs in": f"{info.dtype} on {info.device}",
        "attention": info.attention,
    }
    if info.adapter:
        rows["adapter"] = info.adapter
    if info.tokenizer is not None:
        rows |= _tokenizer(info.tokenizer)
    rows["parts add up to"] = f"{facts.worst_identity_error:.0e} (relative)"
    if info.logits_error is not None:
        rows["logits equal to"] = f"{info.logits_error:.0e} (relative)"
    with st.sidebar.expander("Model facts", expanded=True):
        # A table reads its cells as Markdown, in which names of tokens such as <s> or paths with underscores would be something else.
        st.table({name: escaped(value) for name, value in rows.items()}, border="horizontal", hide_header=True)
        if info.not_shown:
            st.caption("**What is not shown**\n\n" + "\n".join(f"- {escaped(sentence)}" for sentence in info.not_shown))
        for note in info.notes:
            st.caption(escaped(note))
        if service.engine.is_tuned(key):
            st.button(
                "Did the tuning take?",
                icon=":material/compare:",
                key="tuning_dialog",
                width="stretch",
                on_click=session.open_dialog,
                args=("tuning",),
                help="What the adapter, or the tuning of this checkpoint, changed in the weights of its base: how much, where, in how many "
                "directions, and whether it has any effect.",
            )


def _ffn(info: ModelInfo) -> str:
    if not info.ffn:
        return f"{info.n_neurons} neurons"
    counts = Counter(info.ffn)
    if len(counts) == 1:
        return _ffn_shape(info.ffn[0])
    return "; ".join(f"{_ffn_shape(shape)} in {n} layer{'s' if n != 1 else ''}" for shape, n in counts.items())


def _ffn_shape(shape: FfnShape) -> str:
    if not shape.n_neurons:
        return "no neurons shown"
    if not shape.n_experts:
        return f"{shape.per_expert} neurons"
    routed = f", {shape.experts_per_token} for a token" if shape.experts_per_token else ""
    shared = f", {shape.n_shared} shared" if shape.n_shared else ""
    return f"{shape.n_experts} experts of {shape.per_expert} neurons{routed}{shared}"


def _tokenizer(tokenizer: TokenizerInfo) -> dict[str, str]:
    templates = {"checkpoint": "its own", "config": "from the configuration", None: "none"}
    return {
        "tokens": f"{tokenizer.n_tokens:,}",
        "put in front": " ".join(tokenizer.prefix) or "nothing",
        "chat template": templates[tokenizer.chat_template],
    }


def _model(service: Service) -> ModelKey | None:
    may_add = service.config.models_may_be_added
    # Set in every run: when somebody adds a model the menu is another widget, which would begin with its default.
    chosen = st.session_state.get("model", service.config.default_model)
    chosen = st.session_state.pop("chosen_model", chosen) or None
    st.session_state.model = chosen
    name = st.selectbox(
        "Model",
        list(service.engine.model_names()),
        index=None if chosen is None else 0,
        key="model",
        placeholder="Choose a model",
        accept_new_options=may_add,
        help="The models of the configuration"
        + (", and those that were added. You may also type the path of a folder or a name on the Hugging Face hub." if may_add else ".")
        + (" This is a demo: others cannot be added." if service.config.demo_mode else ""),
    )
    with st.container(horizontal=True, horizontal_alignment="distribute", key="model_tools"):
        if may_add:
            st.button(
                "Add",
                icon=":material/add:",
                key="add_model",
                on_click=session.open_dialog,
                args=("adding",),
                help="Add a model: a folder or a name on the hub, with an adapter if you like. It is checked before it is added.",
            )
        st.button(
            "Memory",
            icon=":material/memory:",
            key="memory",
            on_click=session.open_dialog,
            args=("memory",),
            help="Which models are loaded, what memory they take and what is free"
            + ("." if service.config.demo_mode else "; unload them."),
        )
        with st.popover("Device", help="Where the model runs and in which number format."):
            device, dtype = _device(service)
    return ModelKey(cleaned(name), device, dtype) if name and cleaned(name) else None


def _device(service: Service) -> tuple[str, str]:
    devices = service.engine.devices()
    device = "auto"
    if len(devices) > 2:
        device = st.selectbox("Device", devices, key="device", help='"auto" takes a GPU where there is one.')
    else:
        st.caption("This machine has one device, the CPU.")
    dtype = st.selectbox(
        "Precision",
        _PRECISIONS,
        key="dtype",
        help="Of the weights and the forward pass; contributions are always computed in float32. "
        '"auto" is float32 on a CPU and the checkpoint\'s own precision elsewhere. Half precision takes half the memory.',
    )
    return device, dtype


def _prompt(service: Service, model: ModelKey | None) -> str | tuple[ChatMessage, ...]:
    config = service.config
    try:
        prompts = config.prompts()
    except ConfigError as error:
        prompts = []
        st.warning(str(error), icon=":material/warning:")
    if config.demo_mode and not prompts:
        st.warning(
            "This demo has no prompts. Name a file of them in the configuration: preloaded_dataset_filename.", icon=":material/warning:"
        )
    examples, files = st.container(), None
    if not config.demo_mode and config.allow_loading_dataset_files:
        examples, files = st.columns([8, 5], gap="small", vertical_alignment="bottom")
    if files is not None:
        with files, st.popover("Files", width="stretch", key="files", help="A file of prompts, or a graph that was saved as JSON."):
            prompts = _loaded_prompts(prompts)
            saved_graph.choose()
    if prompts:
        st.session_state.setdefault("prompt", prompts[0])
        examples.selectbox(
            "Examples",
            prompts,
            index=None,
            key="example",
            placeholder=f"{len(prompts)} prompts",
            format_func=_one_line,
            on_change=_take_example,
            help="Prompts to choose from. Choosing one puts it into the box below.",
        )
    if model is None or not session.has_chat_template(service, model) or not _as_chat():
        return _text(service, "Prompt", "The model continues this text.")
    return chat.turns(service, lambda label, note: _text(service, label, note))


def _as_chat() -> bool:
    st.session_state.setdefault("prompt_form", "Text")
    form = st.segmented_control(
        "Form",
        ["Text", "Chat"],
        required=True,
        key="prompt_form",
        label_visibility="collapsed",
        width="stretch",
        help="Text is continued as it is. Chat goes through the chat template of the model, which puts its own tokens around each message.",
    )
    return form == "Chat"


def _text(service: Service, label: str, note: str) -> str:
    """The box that holds the prompt, or in a chat the user's first message: switching between them keeps it."""
    config = service.config
    return st.text_area(
        label,
        key="prompt",
        height=110,
        disabled=config.demo_mode,
        max_chars=config.max_user_string_length,
        help=f"{note} Press Ctrl+Enter, or click elsewhere, to run it."
        + (" This is a demo, which shows prepared prompts only: choose one under Examples." if config.demo_mode else ""),
        placeholder="The capital of France is",
    )


def _loaded_prompts(prompts: list[str]) -> list[str]:
    """Let the user open a prompt file: its prompts, or else those there are."""
    file = st.file_uploader(
        "A prompt file: UTF-8 text, one prompt a line", type=["txt"], key="prompt_file", help="Its lines take the place of the examples."
    )
    if file is None:
        return prompts
    try:
        loaded = parse_prompts(file.getvalue(), file.name)
    except ConfigError as error:
        st.error(str(error), icon=":material/error:")
        return prompts
    if not loaded:
        st.error(f'Prompt file "{file.name}" has no lines with text.', icon=":material/error:")
    return loaded or prompts


def _take_example() -> None:
    if st.session_state.example is not None:
        st.session_state.prompt = st.session_state.example


def _one_line(prompt: str) -> str:
    return visible(prompt).replace("\u00b7", " ")
