"""JSON is read strictly: what is broken, ambiguous or does not fit its schema is no answer, and no schema reaches the network."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_tt.analysis.json_answers import json_answer, require_schema, schema_for
from llm_tt.analysis.scoring import Scoring, parse_label, parse_labels
from llm_tt.errors import RequestError

SCHEMA = schema_for("label", ["yes", "no"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"label": "yes"}', {"label": "yes"}),
        ('Sure:\n```json\n{"label": "no"}\n``` {not json}', {"label": "no"}),
        ('{"label": "Yes"}', "The JSON object does not fit the schema: 'Yes' is not one of ['yes', 'no']."),
        ("{}", "The JSON object does not fit the schema: 'label' is a required property."),
        ('{"label": "yes"} {"label": "no"}', "The text holds several JSON objects."),
        ('{"label": "yes"} {x {"label": "yes"}', "The text holds several JSON objects."),
        ('{"label": "yes", "label": "no"}', 'The JSON object is not valid: "label" is there twice.'),
        ('{"label": NaN}', "The JSON object is not valid: NaN is no JSON."),
        ('{"label": "yes"', "The JSON object is not valid: Expecting ',' delimiter."),
        ("{label: yes}", "The JSON object is not valid: Expecting property name enclosed in double quotes."),
        ('["yes"]', "The text holds no JSON object."),
        ('{"label": ' + "[" * 100000, "The JSON object is nested too deeply."),
    ],
)
def test_an_object_or_the_reason_why_there_is_none(text: str, expected: Any) -> None:
    assert json_answer(text, SCHEMA) == ((expected, None) if isinstance(expected, dict) else (None, expected))


def test_without_a_schema_any_object_is_one() -> None:
    assert json_answer('{"a": [1, {"b": 2}]}') == ({"a": [1, {"b": 2}]}, None)


def test_a_label_is_read_from_a_valid_object_only() -> None:
    scoring = Scoring("generate", parse_labels("1=yes,0=no"), json_field="label", schema=SCHEMA)
    assert parse_label('{"label": "yes"}', scoring) == ("1", None)
    assert parse_label('{"label": "yes", "x": 1}', scoring)[0] is None
    loose = '{"type": "object", "properties": {"label": {"type": "string"}}}'
    other = Scoring("generate", parse_labels("1=yes,0=no"), json_field="label", schema=loose)
    assert parse_label('{"label": "maybe"}', other) == (None, '"label" is "maybe", which is no label.')
    assert parse_label('{"x": 1}', other) == (None, 'The JSON object has no "label".')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "The JSON schema is not valid JSON: line 1, column 2"),
        ('{"type": "thing"}', "The JSON schema is not valid: 'thing' is not valid under any of the given schemas"),
        (
            '{"properties": {"a": {}, "b": {}}}',
            'The JSON schema has no property "label", which is to hold the label. Its properties: a, b.',
        ),
        ('{"$ref": "https://example.org/s"}', 'The JSON schema refers to "https://example.org/s", which is not in it.'),
        ('{"allOf": [{"$ref": "other.json"}]}', 'The JSON schema refers to "other.json", which is not in it.'),
    ],
)
def test_a_schema_that_is_none_gets_a_sentence(schema: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        require_schema(schema, "label")
    with pytest.raises(RequestError, match=re.escape(message)):
        Scoring("generate", parse_labels("yes,no"), json_field="label", schema=schema)
    with pytest.raises(RequestError, match=r"A JSON schema is given, but not which field holds the label."):
        Scoring("generate", parse_labels("yes,no"), schema=SCHEMA)


@pytest.mark.parametrize("schema", ['{"$ref": "#/$defs/none"}', '{"$ref": "#"}'])
def test_a_reference_that_leads_nowhere_is_said_and_no_network_is_asked(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(RequestError, match=r"The JSON schema cannot be followed: .* Check what its \$ref refer to."):
        json_answer('{"label": "yes"}', schema)


def test_a_schema_of_ones_own_definitions_is_followed() -> None:
    schema = json.dumps({"$defs": {"word": {"enum": ["yes"]}}, "properties": {"label": {"$ref": "#/$defs/word"}}})
    assert json_answer('{"label": "yes"}', schema)[0] == {"label": "yes"}
    assert json_answer('{"label": "no"}', schema)[0] is None


def test_strategies_and_their_report_are_free_of_torch() -> None:
    modules = "llm_tt.analysis.strategies, llm_tt.analysis.strategy_report, llm_tt.analysis.charts, llm_tt.analysis.json_answers"
    code = f"import sys; import {modules}; print('torch' in sys.modules, 'jsonschema' in sys.modules, 'sklearn' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False False False"
