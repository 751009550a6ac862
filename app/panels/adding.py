"""The dialog in which a user adds a model: typed, looked at, loaded and checked in the background, then on the menu."""

from __future__ import annotations

import os

import streamlit as st

from app import session
from app.markup import escaped
from app.session import Adding, Service
from llm_tt.config import ModelSpec
from llm_tt.engine.messages import AddedModel, AddModel, LookAt
from llm_tt.errors import LlmTtError
from llm_tt.models.places import Place, cleaned, name_for

_POLL_SECONDS = 0.4
_PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
_FIELDS = ("path", "adapter", "name", "base", "dtype", "device", "chat_template", "revision")


def _close() -> None:
    """Keep what is typed, the last field too, and forget the widgets: opened again before Streamlit does, they would be empty."""
    adding = session.adding()
    typed = {name: st.session_state.pop(_key(name)) for name in _FIELDS if _key(name) in st.session_state}
    adding.typed = {**adding.typed, **typed}
    session.close_dialog()


@st.dialog("Add a model", width="medium", icon=":material/add:", on_dismiss=_close)
def show(service: Service) -> None:
    adding = session.adding()
    conversation = adding.conversation
    if conversation.phase == "answered" and conversation.answer is not None:
        _added(service, conversation.answer)
        return
    working = conversation.phase == "working"
    _form(service, adding, working)
    if working:
        _watch(service, adding)
        return
    if conversation.phase == "failed":
        st.error(escaped(conversation.message), icon=":material/error:")
        if any(switch in conversation.message for switch in ("trust_remote_code", "allow_pickle")):
            st.caption("This is set in the configuration file only, since it lets files of the model run code on this server.")
    elif conversation.phase == "cancelled":
        st.info("Cancelled. Nothing was added.", icon=":material/block:")
    if st.button(
        "Check and add",
        type="primary",
        icon=":material/check:",
        key="check_and_add",
        help="Loads the model and proves that its parts add up to what it computes; only then is it added.",
    ):
        conversation.again()
        conversation.ask(service.engine, AddModel(_spec(adding.typed)))
        _take(adding)
        st.rerun()


def _form(service: Service, adding: Adding, disabled: bool) -> None:
    # Widgets that are not drawn lose their values; what was typed outlives the dialog.
    for name in _FIELDS:
        st.session_state.setdefault(_key(name), adding.typed.get(name, "auto" if name in ("dtype", "device") else ""))
    path = st.text_input(
        "Model",
        key=_key("path"),
        disabled=disabled,
        placeholder="~/runs/last-night/checkpoint-1200  or  meta-llama/Llama-3.2-1B",
        help="A folder on the machine that this app runs on, with config.json, safetensors and tokenizer; or a name on the Hugging Face hub, "
        "which is downloaded. The folder of an adapter will do too.",
    )
    place = _look(service, path, "path", disabled)
    left, right = st.columns(2)
    with left:
        adapter = st.text_input(
            "Adapter",
            key=_key("adapter"),
            disabled=disabled,
            placeholder="none",
            help="A LoRA or another PEFT adapter that is merged into the model: the folder with adapter_config.json, or a name on the hub.",
        )
        found = _look(service, adapter, "adapter", disabled)
    with right:
        named = found or place
        proposed = name_for(named.path) if named else ""
        st.text_input(
            "Name",
            key=_key("name"),
            disabled=disabled,
            placeholder=proposed,
            help="What the menu calls it. Made of the path if left empty.",
        )
    with st.expander(
        "More settings", icon=":material/tune:", expanded=any(adding.typed.get(name) for name in ("base", "chat_template", "revision"))
    ):
        _more(service, disabled)
    adding.typed = {name: st.session_state[_key(name)] for name in _FIELDS}


def _more(service: Service, disabled: bool) -> None:
    left, right = st.columns(2)
    left.selectbox(
        "Precision",
        _PRECISIONS,
        key=_key("dtype"),
        disabled=disabled,
        help='"auto" is float32 on a CPU and the checkpoint\'s own precision elsewhere. Half precision takes half the memory.',
    )
    right.selectbox(
        "Device", service.engine.devices(), key=_key("device"), disabled=disabled, help='"auto" takes a GPU where there is one.'
    )
    left.text_input(
        "Base of the adapter",
        key=_key("base"),
        disabled=disabled,
        placeholder="the one that it names",
        help="Needed where an adapter names no base, or one that is elsewhere on this machine.",
    )
    right.text_input(
        "Revision", key=_key("revision"), disabled=disabled, placeholder="the latest", help="Branch, tag or commit of a model on the hub."
    )
    st.text_input(
        "Chat template file",
        key=_key("chat_template"),
        disabled=disabled,
        placeholder="the checkpoint's own",
        help="A file with a Jinja template, for a chat model whose tokenizer has none.",
    )


def _look(service: Service, typed: str, name: str, disabled: bool) -> Place | None:
    """Say what a typed path leads to, and offer the checkpoints inside; None if nothing is typed or it leads nowhere."""
    if not cleaned(typed):
        return None
    try:
        place = service.engine.answer(LookAt(typed))
    except LlmTtError as error:
        st.error(escaped(str(error)), icon=":material/error:")
        return None
    if place.note:
        icon = "warning" if place.kind == "nothing" and not place.found else "info"
        st.caption(f":material/{icon}: {escaped(place.note)}")
    if place.found:
        above = os.path.commonpath([os.path.dirname(folder) for folder in place.found])
        st.pills(
            "Checkpoints inside",
            place.found,
            key=f"{_key(name)}_found",
            label_visibility="collapsed",
            disabled=disabled,
            format_func=lambda folder: escaped(os.path.relpath(folder, above)),
            on_change=_take_found,
            args=(name,),
        )
    return place if place.path else None


def _take_found(name: str) -> None:
    if (chosen := st.session_state[f"{_key(name)}_found"]) is not None:
        st.session_state[_key(name)] = chosen


def _key(name: str) -> str:
    return f"add_{name}"


def _spec(typed: dict[str, str]) -> ModelSpec:
    """What was typed, as it is; the engine understands it or says why not."""
    optional = {name: typed[name] or None for name in ("path", "adapter", "base", "chat_template", "revision")}
    # Copied and not validated: device and precision come from menus.
    return ModelSpec(name=typed["name"]).model_copy(update={**optional, "dtype": typed["dtype"], "device": typed["device"]})


@st.fragment(run_every=_POLL_SECONDS)
def _watch(service: Service, adding: Adding) -> None:
    conversation = adding.conversation
    conversation.look(service.engine)
    if conversation.phase != "working" or conversation.job is None:
        _take(adding)
        st.rerun()
    status = service.engine.status(conversation.job)
    waiting = f" · {status.position} before you" if status.position else ""
    st.progress(status.fraction, text=f"{escaped(status.stage)}{waiting} · {status.seconds:.0f} s")
    if st.button("Cancel", icon=":material/close:", key="cancel_adding", help="Stop loading. What you typed stays."):
        service.engine.cancel(conversation.job)


def _take(adding: Adding) -> None:
    """A model that was added is selected at once."""
    conversation = adding.conversation
    if conversation.phase == "answered" and conversation.answer is not None:
        session.choose_model(conversation.answer.spec.name)
        adding.typed = {}


def _added(service: Service, added: AddedModel) -> None:
    info = added.facts.info
    st.success(
        f"**{escaped(added.spec.name)}** is on the menu, and chosen: {escaped(info.family)}, {info.n_params:,} parameters, {info.dtype} on "
        f"{info.device}. Its parts add up to {added.facts.worst_identity_error:.0e} (allowed {added.facts.tolerance:.0e}).",
        icon=":material/check_circle:",
    )
    st.markdown("It stays until the app is stopped. To keep it, put this " + where(service) + ":")
    st.code(added.config_lines, language="json", wrap_lines=True)
    left, right = st.columns(2)
    if left.button(
        "Done", type="primary", icon=":material/check:", key="done_adding", width="stretch", help="Close, and look at its graph."
    ):
        session.close_dialog()
        _start_again()
    if right.button("Add another", icon=":material/add:", key="add_another", width="stretch", help="Empty the form for another model."):
        _start_again()


def _start_again() -> None:
    st.session_state.pop("adding", None)
    for name in _FIELDS:
        st.session_state.pop(_key(name), None)
    st.rerun()


def where(service: Service) -> str:
    """Where in the configuration file the lines go."""
    file = f"`{service.file}`"
    if "models" in service.config.model_fields_set:
        return f'line first into `"models"` of {file}'
    return f"first into {file}, after its opening brace"
