"""`flow_graph` in a Streamlit script: it mounts, returns what the browser set, and says what to do when it is not built."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tt.components import graph

streamlit_testing = pytest.importorskip("streamlit.testing.v1")


@pytest.fixture
def unregistered():
    graph._component.cache_clear()
    yield
    graph._component.cache_clear()


@pytest.mark.usefixtures("unregistered")
def test_a_missing_build_is_a_sentence_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_BUILD", tmp_path)
    with pytest.raises(RuntimeError, match=r"The graph component is not built: run `make frontend`"):
        graph.flow_graph(b"", key="g")


def script() -> None:
    import streamlit as st

    from llm_tt.components.graph import flow_graph

    result = flow_graph(b"LTT1", key="g")
    st.write(f"selection={result.selection} target={result.target}")


@pytest.mark.usefixtures("unregistered")
@pytest.mark.skipif(not any(graph._BUILD.glob("index-*.js")), reason="the graph component is not built: run `make frontend`")
def test_the_selection_set_in_the_browser_reaches_the_script() -> None:
    app = streamlit_testing.AppTest.from_function(script, default_timeout=30).run()
    assert not app.exception
    assert app.markdown[0].value == "selection=None target=None"
    app.session_state["g"] = {"selection": {"type": "node", "node": "A2_5"}}
    app.run()
    assert not app.exception
    assert "'node': 'A2_5'" in app.markdown[0].value
