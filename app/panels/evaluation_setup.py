"""What is to be evaluated: models, rows, the prompt made of them, how answers are scored. Gives the question, or says what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import streamlit as st

from app import kept, session
from app.markup import escaped
from app.panels import waiting
from app.session import Service
from llm_tt.analysis.rows import Template, summary
from llm_tt.analysis.scoring import Kind, Label, Scoring, parse_labels
from llm_tt.engine.evaluating import MOST_TOKENS
from llm_tt.engine.messages import Column, DataPreview, DataSource, Evaluate, ModelKey, PreviewData
from llm_tt.errors import LlmTtError

_PLACES = {"set": "Prepared", "upload": "Upload", "path": "On disk"}
_FILE_TYPES = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"]
_TEXT, _CHAT = "Text", "Chat"
_COLUMN, _TEMPLATE = "Column", "Template"
_NO_NAME = frozenset("{}:!")
"""What means something else between the braces of a template"""
_TEXT_COLUMNS = ("question", "prompt", "text", "sentence", "instruction", "input", "review", "content")
_LABEL_COLUMNS = ("label", "labels", "class", "target", "answer", "response", "output")
_POSITIVE_FIRST = (("yes", "no"), ("true", "false"), ("1", "0"), ("positive", "negative"))
_WAYS = {
    "zero-shot": "The prompt as it is.",
    "few-shot": "Some rows with their labels go before it; in a chat as turns of their own.",
    "step-by-step": "The model is told to think step by step, writes up to 64 tokens, and is then asked for the label.",
    "structured": "The model is told to answer with a JSON object; what is none, or has another label, counts as no label.",
}
_METHODS: dict[str, tuple[str, Kind, str]] = {
    "labels": (
        "Label words",
        "labels",
        "How probable is each label word as the beginning of the answer, over all its tokens? The most probable one is the prediction; nothing is "
        "generated.",
    ),
    "calibrated": (
        "Label words, calibrated",
        "labels",
        "As by label words, but each probability is divided by the one after a prompt that says nothing (N/A in the columns' places). That takes "
        "away a liking for one word whatever the row says.",
    ),
    "forced": (
        "Teacher-forced",
        "forced",
        "The row's own answer is put after the prompt, and each of its tokens is right if it is the model's first choice there. Without label "
        "words any column of answers can be scored.",
    ),
    "generate": (
        "Generated text",
        "generate",
        "The model continues the prompt, always with its first choice, and the label is read from the text. A text without a label, or with two, "
        "counts as no label and never as a guess.",
    ),
}


@dataclass
class _Problems:
    """Sentences on what is missing or wrong."""

    found: list[str] = field(default_factory=list)

    @contextmanager
    def said(self) -> Iterator[None]:
        """What is refused in this block is said where it stands."""
        try:
            yield
        except LlmTtError as error:
            self.found.append(str(error))
            st.error(escaped(str(error)), icon=":material/error:")


@dataclass(frozen=True)
class Setup:
    """`question` is None while something is missing, which `missing` says."""

    question: Evaluate | None
    data: DataPreview | None
    missing: str


def show(service: Service) -> Setup:
    problems = _Problems()
    left, middle, right = st.columns(3, gap="medium")
    with left:
        models = _models(service)
        source = _source(service)
        data = None if source is None else waiting.answer(service, session.data_preview(), PreviewData(source))
        if data is not None and data.problems:
            n = len(data.problems)
            cannot = "1 row cannot be read." if n == 1 else f"{n:,} rows cannot be read."
            st.warning(f"{cannot} {escaped(summary(data.problems))}", icon=":material/warning:")
    template = scoring = None
    slices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    ways = _Ways(())
    if data is not None and not data.columns:
        problems.found.append(f"The rows of {data.name} have no column. Choose other data.")
        with left:
            st.error(escaped(problems.found[0]), icon=":material/error:")
    elif data is not None and source is not None:
        with middle:
            template = _template(service, data, source, problems)
            ways = _ways(service, problems)
            if not ways.names:
                problems.found.append("Choose at least one way to ask.")
        with right:
            scoring = _scoring(service, data, template, problems)
            slices, words = _apart(data)
    missing = "Choose a model." if not models else ""
    if source is None:
        missing = missing or "Choose the data: a prepared set, a file, or a path."
    elif data is None:
        missing = missing or "The data cannot be read yet."
    missing = missing or (problems.found[0] if problems.found else "")
    if missing or source is None or template is None or scoring is None:
        return Setup(None, data, missing)
    return Setup(Evaluate(models, source, template, scoring, ways.names, ways.shots, ways.rows, slices, words), data, "")


# --- models and rows


def _models(service: Service) -> tuple[ModelKey, ...]:
    names = list(service.engine.model_names())
    shown = st.session_state.get("trace")
    first = shown.model.name if shown is not None else service.config.default_model
    one, two = st.columns(2)
    with one:
        kept.hold("evaluate_model", first if first in names else (names[0] if names else None), names)
        name = st.selectbox(
            "Model",
            names,
            key="evaluate_model",
            placeholder="Choose a model",
            help="The models of the menu. Others, and adapters, are added on the page Explore.",
        )
    with two:
        others = [other for other in names if other != name]
        kept.hold("evaluate_second", None, [None, *others])
        second = st.selectbox(
            "Against",
            others,
            index=None,
            key="evaluate_second",
            placeholder="none",
            help="A second model on the same rows, as the base of a tuned one: both in one table, the rows on which they differ, and McNemar's test.",
        )
    return tuple(ModelKey(chosen) for chosen in (name, second) if chosen)


def _source(service: Service) -> DataSource | None:
    config = service.config
    places = [
        place for place in _PLACES if place == "set" or (config.data_may_be_uploaded if place == "upload" else config.data_may_be_named)
    ]
    place, rows = "set", st.container()
    if len(places) > 1:
        kept.hold("evaluate_place", "set", places)
        st.segmented_control(
            "Data",
            places,
            required=True,
            key="evaluate_place",
            format_func=_PLACES.__getitem__,
            width="stretch",
            help="Sets that this server offers, a file of yours, or a file or folder of the machine that the app runs on.",
        )
        place, rows = kept.held("evaluate_place"), st.container()
    with rows:
        source = {"set": _prepared, "upload": _upload, "path": _path}[place](service)
    kept.hold("evaluate_limit", None)
    st.number_input(
        "Rows at most",
        1,
        None,
        step=100,
        key="evaluate_limit",
        placeholder="all",
        help="Only the first so many rows are read: for a first look at a large data set. What was answered is kept, so that all of it can follow.",
    )
    limit = kept.held("evaluate_limit")
    return None if source is None else DataSource(source.kind, source.name, source.content, None if limit is None else int(limit))


def _prepared(service: Service) -> DataSource | None:
    names = list(service.engine.data_sets())
    kept.hold("evaluate_set", names[0], names)
    st.selectbox(
        "Data set",
        names,
        key="evaluate_set",
        help="demo/ are payments for the demo pair: mixed as they come in, clean as its makers tested it, conflict with its weak spot, train as "
        "it was tuned. Others are named in the configuration.",
    )
    return DataSource("set", kept.held("evaluate_set"))


def _upload(service: Service) -> DataSource | None:
    del service
    st.file_uploader(
        "A file of rows",
        type=_FILE_TYPES,
        key="evaluate_file",
        on_change=_take_file,
        help="JSONL with an object a line, a JSON list, CSV or TSV with a header, or Parquet. Stays in the memory of this server.",
    )
    taken: DataSource | None = st.session_state.get("evaluate_upload")
    if taken is not None and st.session_state.get("evaluate_file") is None:
        st.caption(f"{escaped(taken.name)}, uploaded before, is used.")
    return taken


def _take_file() -> None:
    file = st.session_state.evaluate_file
    if file is None:
        st.session_state.pop("evaluate_upload", None)
    else:
        st.session_state.evaluate_upload = DataSource("upload", file.name, file.getvalue())


def _path(service: Service) -> DataSource | None:
    del service
    kept.hold("evaluate_path", "")
    st.text_input(
        "File or folder",
        key="evaluate_path",
        placeholder="~/data/reviews.parquet",
        help="On the machine that this app runs on: a .jsonl, .json, .csv, .tsv or .parquet file, or a folder saved by the library datasets.",
    )
    typed = kept.held("evaluate_path").strip()
    return DataSource("path", typed) if typed else None


# --- the prompt


def _template(service: Service, data: DataPreview, source: DataSource, problems: _Problems) -> Template | None:
    demo_mode, limit = service.config.demo_mode, service.config.max_user_string_length
    names = [column.name for column in data.columns]
    one, two = st.columns(2)
    with one:
        kept.hold("evaluate_made_of", _COLUMN, [_COLUMN] if demo_mode else None)
        st.segmented_control(
            "Prompt",
            [_COLUMN] if demo_mode else [_COLUMN, _TEMPLATE],
            required=True,
            key="evaluate_made_of",
            width="stretch",
            help="A column as it is, or a text of yours with columns in it."
            + (" This is a demo, which shows prepared prompts only." if demo_mode else ""),
        )
        made_of = kept.held("evaluate_made_of")
    with two:
        kept.hold("evaluate_form", _CHAT if source.kind == "set" and source.name.startswith("demo/") else _TEXT)
        st.segmented_control(
            "Form",
            [_TEXT, _CHAT],
            required=True,
            key="evaluate_form",
            width="stretch",
            help="Text is continued as it is. Chat makes it the user's turn of the model's own chat template.",
        )
        chat = kept.held("evaluate_form") == _CHAT
    usual = _text_column(data)
    kept.hold("evaluate_column", usual, names)
    column = kept.held("evaluate_column", usual)
    if made_of == _COLUMN:
        st.selectbox("Column", names, key="evaluate_column", help="What the model reads of each row.")
        column = kept.held("evaluate_column")
        text = f"{{{column}}}"
    else:
        kept.hold("evaluate_template", f"{{{column}}}")
        st.text_area(
            "Template",
            key="evaluate_template",
            height=100,
            max_chars=limit,
            help="Columns stand in braces, as in Review: {text} Sentiment: - braces that are meant are doubled. Leave no space at the end: the "
            "answer's first token mostly brings its own.",
        )
        text = kept.held("evaluate_template")
        st.caption("Columns: " + ", ".join(f"`{{{name}}}`" for name in names if "`" not in name))
    system = None
    if chat and not demo_mode:
        kept.hold("evaluate_system", "")
        st.text_input(
            "System prompt",
            key="evaluate_system",
            placeholder="none",
            max_chars=limit,
            help="What the model is told before the user's turn. Not every chat template takes one.",
        )
        system = kept.held("evaluate_system").strip() or None
    with problems.said():
        if made_of == _COLUMN and _NO_NAME & set(column):
            raise LlmTtError(
                f'The column "{column}" cannot stand in a template: its name has one of {{ }} : ! in it. Rename it in the data.'
            )
        made = Template(text, chat, system)
        for name in made.columns:
            if name not in names:
                raise LlmTtError(f'No row of {data.name} has a column "{name}". Its columns: {", ".join(names)}.')
        return made
    return None


@dataclass(frozen=True)
class _Ways:
    """In which ways the models are asked; for few-shot, how many examples of each label, or the rows to take instead."""

    names: tuple[str, ...]
    shots: int = 1
    rows: tuple[int, ...] = ()


def _ways(service: Service, problems: _Problems) -> _Ways:
    if service.config.demo_mode:
        return _Ways(("zero-shot",))
    one, two = st.columns([3, 2])
    with one:
        kept.hold("evaluate_ways", ["zero-shot"])
        st.multiselect(
            "Ways to ask",
            list(_WAYS),
            key="evaluate_ways",
            placeholder="choose one or more",
            help="Several are compared like several models.\n\n" + "\n\n".join(f"**{name}.** {what}" for name, what in _WAYS.items()),
        )
        ways = tuple(name for name in _WAYS if name in kept.held("evaluate_ways"))
    if "few-shot" not in ways:
        return _Ways(ways)
    with two:
        kept.hold("evaluate_shots", 1)
        st.number_input(
            "Examples of each label",
            1,
            64,
            key="evaluate_shots",
            help="Few-shot: drawn from these rows by chance, always the same ones; a row that is an example is not evaluated few-shot.",
        )
    kept.hold("evaluate_shot_rows", "")
    st.text_input(
        "Example rows",
        key="evaluate_shot_rows",
        placeholder="drawn by chance",
        help="Few-shot: the numbers of the rows to show as examples, in this order, as 3, 17. Left empty, they are drawn.",
    )
    parts = [part.strip() for part in kept.held("evaluate_shot_rows").split(",") if part.strip()]
    with problems.said():
        for part in parts:
            if not part.isdecimal():
                raise LlmTtError(f'"{part}" is no number of a row. Write the numbers of the example rows as 3, 17.')
        return _Ways(ways, int(kept.held("evaluate_shots")), tuple(map(int, parts)))
    return _Ways(ways)


def _text_column(data: DataPreview) -> str:
    """The column that most likely holds what the model is to read: one of a usual name, else the one with the longest texts."""
    names = [column.name for column in data.columns]
    lengths = [sum(len(texts[place]) for _, texts in data.rows) for place in range(len(names))]
    usual = [name for wanted in _TEXT_COLUMNS for name in names if name.lower() == wanted]
    return usual[0] if usual else names[lengths.index(max(lengths))]


# --- the answer


def _scoring(service: Service, data: DataPreview, template: Template | None, problems: _Problems) -> Scoring | None:
    names = [column.name for column in data.columns]
    methods = [method for method in _METHODS if method != "generate" or not service.config.demo_mode]
    kept.hold("evaluate_method", "labels", methods)
    st.selectbox(
        "Scored by",
        methods,
        key="evaluate_method",
        format_func=lambda method: _METHODS[method][0],
        help="\n\n".join(f"**{name}.** {what}" for name, _, what in (_METHODS[method] for method in methods)),
    )
    method = kept.held("evaluate_method")
    _, kind, what = _METHODS[method]
    st.caption(what)
    one, two = st.columns(2)
    with one:
        usual = _label_column(data, template)
        kept.hold("evaluate_label_column", usual, names)
        st.selectbox("Right answer", names, key="evaluate_label_column", help="The column that holds the label, or the answer.")
        column = kept.held("evaluate_label_column")
    automatic = _automatic(next(c for c in data.columns if c.name == column))
    with two:
        kept.hold("evaluate_labels", "")
        st.text_input(
            "Label words",
            key="evaluate_labels",
            placeholder=",".join(automatic) or ("any answer" if kind == "forced" else "yes,no"),
            max_chars=service.config.max_user_string_length,
            help="What the model is to say, the positive one first: yes,no. Where the data says 1 and 0: 1=yes,0=no. Left empty, the column's own "
            "values are taken" + ("; where they are many, every answer is scored as it is." if kind == "forced" else ", if they are few."),
        )
        typed = kept.held("evaluate_labels").strip()
    pattern = json_field = schema = None
    n_tokens = 16
    if kind == "generate":
        pattern, json_field, schema, n_tokens = _reading(service)
    with problems.said():
        labels = parse_labels(typed) if typed else tuple(Label(value, value) for value in automatic)
        if not labels and kind != "forced":
            raise LlmTtError(f'The column "{column}" has too many different values to be labels. Type the label words, as yes,no.')
        return Scoring(
            kind,
            labels,
            column,
            calibrated=method == "calibrated",
            n_tokens=n_tokens,
            pattern=pattern or None,
            json_field=json_field or None,
            schema=schema or None,
        )
    return None


def _reading(service: Service) -> tuple[str, str, str, int]:
    """How a label is read from what was generated."""
    first, second, third = st.columns([4, 4, 3])
    with first:
        kept.hold("evaluate_pattern", "")
        st.text_input(
            "Pattern",
            key="evaluate_pattern",
            placeholder="none",
            max_chars=service.config.max_user_string_length,
            help="A regular expression whose first group is the label, as in Answer: (\\w+). Left empty, the label's word may stand anywhere.",
        )
    with second:
        kept.hold("evaluate_field", "")
        st.text_input(
            "JSON field", key="evaluate_field", placeholder="none", help="Read the label from this field of a JSON object in the text."
        )
    with third:
        kept.hold("evaluate_tokens", 16)
        st.number_input("Tokens", 1, MOST_TOKENS, key="evaluate_tokens", help="How many tokens are generated for a row, at most.")
    field = kept.held("evaluate_field").strip()
    schema = ""
    if field:
        kept.hold("evaluate_schema", "")
        st.text_area(
            "JSON schema",
            key="evaluate_schema",
            height=80,
            placeholder="any object",
            max_chars=service.config.max_user_string_length,
            help="What the object must fit, else it counts as no answer: a JSON schema (draft 2020-12) with the field among its properties.",
        )
        schema = kept.held("evaluate_schema").strip()
    return kept.held("evaluate_pattern"), field, schema, int(kept.held("evaluate_tokens"))


def _label_column(data: DataPreview, template: Template | None) -> str:
    """One of a usual name, else the first with few values, else the last."""
    used = () if template is None else template.columns
    names = [column.name for column in data.columns if column.name not in used] or [column.name for column in data.columns]
    usual = [name for wanted in _LABEL_COLUMNS for name in names if name.lower() == wanted]
    few = [column.name for column in data.columns if column.name in names and len(column.values) > 1]
    return (usual or few or names[-1:])[0]


def _automatic(column: Column) -> tuple[str, ...]:
    """A column's values as labels, the positive one first."""
    values = tuple(dict.fromkeys(value.strip() for value in column.values if value.strip()))
    for pair in _POSITIVE_FIRST:
        if sorted(value.lower() for value in values) == sorted(pair):
            return tuple(sorted(values, key=lambda value: pair.index(value.lower())))
    return tuple(sorted(values))


def _apart(data: DataPreview) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """By which columns and words the rows are told apart."""
    names = [column.name for column in data.columns]
    one, two = st.columns(2)
    with one:
        kept.hold("evaluate_slices", [])
        st.session_state.evaluate_slices = [name for name in st.session_state.evaluate_slices if name in names]
        st.multiselect(
            "Slices",
            names,
            key="evaluate_slices",
            placeholder="none",
            help="Columns by whose values the rows are told apart: how many are right for each. The length of the prompt is one by itself.",
        )
        slices = tuple(kept.held("evaluate_slices"))
    with two:
        kept.hold("evaluate_words", "")
        st.text_input(
            "Words",
            key="evaluate_words",
            placeholder="none",
            help="Words whose rows are told from those without them, separated by commas. Suspicious words are found without being asked for.",
        )
        words = tuple(dict.fromkeys(word.strip() for word in kept.held("evaluate_words").split(",") if word.strip()))
    return slices, words


def method_name(scoring: Scoring) -> str:
    """How answers were scored, as the menu calls it."""
    return _METHODS["calibrated" if scoring.calibrated else scoring.kind][0]
