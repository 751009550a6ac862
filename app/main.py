"""Entry point: `streamlit run app/main.py -- config/local.json`. Chooses configuration and page; what pages show is in `app/views`."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    # Streamlit puts the script's folder on the path; the packages `app` and `llm_tt` lie one above.
    sys.path.insert(0, str(ROOT))

from app import navigation, session  # noqa: E402
from app.views import compare, evaluate, explore  # noqa: E402
from llm_tt.errors import LlmTtError  # noqa: E402

st.set_page_config(page_title="llm-tt", page_icon=str(ROOT / "app" / "icon.png"), layout="wide", initial_sidebar_state="expanded")


_PAGES = (
    navigation.Page("Explore", explore.show),
    navigation.Page("Compare", compare.show),
    navigation.Page("Evaluate", evaluate.show),
)


def main() -> None:
    st.html(ROOT / "app" / "style.css")
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "config" / "local.json"
    try:
        service = session.service(file)
    except LlmTtError as error:
        st.error(str(error), icon=":material/error:")
        st.caption("Correct the file and reload this page. The configuration is described in docs/configuration.md.")
        return
    navigation.run(service, _PAGES)


main()
