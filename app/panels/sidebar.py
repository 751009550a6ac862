"""The sidebar: which model, which prompt, how much of the graph. Returns choices; asks the engine nothing but what devices there are."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from app.session import Service
from llm_tt.config import parse_prompts
from llm_tt.engine.messages import ModelFacts, ModelKey
from llm_tt.errors import ConfigError
from llm_tt.flow.graph import DEFAULT_THRESHOLD
from llm_tt.text import visible

_PRECISIONS = ["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Choices:
    """What the user has chosen. `model` is None and `prompt` empty until there is one."""

    model: ModelKey | None
    prompt: str
    threshold: float
    renormalize: bool


def show(service: Service) -> Choices:
    with st.sidebar:
        st.markdown("### llm-tt")
        model = _model(service)
        prompt = _prompt(service)
        threshold = st.slider(
            "Threshold",
            min_value=0.01,
            max_value=0.1,
            value=DEFAULT_THRESHOLD,
            step=0.005,
            format="%.3f",
            key="threshold",
            help="An edge is drawn when it contributes more than this share to the node it leads to. Lower shows more edges.",
        )
        renormalize = st.toggle(
            "Renormalise",
            value=True,
            key="renormalize",
            help="Divide the contributions that were kept at a node by their sum, so that they add up to 1. The same edges are drawn either way.",
        )
        return Choices(model, prompt, threshold, renormalize)


def show_facts(facts: ModelFacts) -> None:
    """The facts of the loaded model, at the end of the sidebar."""
    info = facts.info
    heads = f"{info.n_heads}" if info.n_heads == info.n_kv_heads else f"{info.n_heads} ({info.n_kv_heads} key-value)"
    rows = {
        "family": info.family,
        "parameters": f"{info.n_params:,}",
        "layers": str(info.n_layers),
        "heads": heads,
        "width": str(info.d_model),
        "neurons a layer": str(info.n_neurons),
        "vocabulary": f"{info.d_vocab:,}",
        "context": f"{info.n_ctx:,} tokens",
        "runs in": f"{info.dtype} on {info.device}",
        "attention": info.attention,
        "parts add up to": f"{facts.worst_identity_error:.0e} (relative)",
    }
    with st.sidebar.expander("Model facts", expanded=True):
        st.table(rows, border="horizontal", hide_header=True)


def _model(service: Service) -> ModelKey | None:
    config = service.config
    names = list(config.models)
    name = st.selectbox(
        "Model",
        names,
        index=names.index(config.default_model) if config.default_model else None,
        key="model",
        placeholder="Choose a model",
        accept_new_options=not config.demo_mode,
        help="The models of the configuration."
        + ("" if config.demo_mode else " You may also type the path of a folder or a name on the Hugging Face hub."),
    )
    with st.popover(
        "Device and precision", icon=":material/tune:", width="stretch", help="Where the model runs and in which number format."
    ):
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
    return ModelKey(name, device, dtype) if name else None


def _prompt(service: Service) -> str:
    config = service.config
    try:
        prompts = config.prompts()
    except ConfigError as error:
        prompts = []
        st.warning(str(error), icon=":material/warning:")
    prompts = _loaded_prompts(service, prompts)
    if prompts:
        st.session_state.setdefault("prompt", prompts[0])
        st.selectbox(
            "Examples",
            prompts,
            index=None,
            key="example",
            placeholder=f"{len(prompts)} prompts to choose from",
            format_func=_one_line,
            on_change=_take_example,
            help="Choosing one puts it into the box below.",
        )
    return st.text_area(
        "Prompt",
        key="prompt",
        height=110,
        disabled=config.demo_mode,
        max_chars=config.max_user_string_length,
        help="The model continues this text. Press Ctrl+Enter, or click elsewhere, to run it."
        + (" This server shows prepared prompts only." if config.demo_mode else ""),
        placeholder="The capital of France is",
    )


def _loaded_prompts(service: Service, prompts: list[str]) -> list[str]:
    if service.config.demo_mode or not service.config.allow_loading_dataset_files:
        return prompts
    with st.popover("Open a prompt file", icon=":material/upload_file:", width="stretch", help="A UTF-8 text file with one prompt a line."):
        file = st.file_uploader(
            "Text file with one prompt a line", type=["txt"], key="prompt_file", help="Its lines take the place of the examples."
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
