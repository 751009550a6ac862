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
from app.views import explore  # noqa: E402
from llm_tt.errors import LlmTtError  # noqa: E402

st.set_page_config(page_title="llm-tt", page_icon=str(ROOT / "app" / "icon.png"), layout="wide", initial_sidebar_state="expanded")


# Streamlit leaves a quarter of a laptop's screen empty above and beside the page. The graph has what is left of the window's height
# below the longest strip of tokens; the column beside it stays in view and scrolls by itself, so that reading never hides the graph.
_STYLE = """<style>
:root { --flow-graph-height: clamp(420px, calc(88vh - 176px), 1200px); }
[data-testid="stMainBlockContainer"] { padding: 2.75rem 2rem 1.5rem; }
[data-testid="stSidebarHeader"] { height: 2.5rem; margin-bottom: 0; }
[data-testid="stSidebarUserContent"] { padding-bottom: 2rem; }
[data-testid="stSidebar"] .st-key-choices { gap: 0.75rem; }
[data-testid="stSidebar"] .st-key-model_tools { gap: 0.25rem; flex-wrap: nowrap; }
[data-testid="stSidebar"] .st-key-model_tools button { min-height: 2rem; padding: 0 0.4rem; font-size: 0.875rem; white-space: nowrap; }
.st-key-page > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] { align-items: stretch; }
.st-key-side {
  position: sticky; top: 2.75rem; max-height: calc(100vh - 3.5rem); overflow: hidden auto; gap: 0.6rem;
  scrollbar-width: thin;
}
/* As high as the column beside it, or there is no way for it to stick. */
.st-key-page > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"]:last-child
  > [data-testid="stVerticalBlock"] > [data-testid="stLayoutWrapper"] { flex: 1 0 auto; align-items: flex-start; }
.st-key-pruning { gap: 0.5rem 1.25rem; }
.st-key-pruning .st-key-threshold { min-width: 7rem; flex: 1 1 7rem; }
.st-key-pruning [data-testid="stSlider"], .st-key-pruning .st-key-mass [data-testid="stButtonGroup"] {
  display: flex; flex-direction: row-reverse; align-items: center; gap: 0.75rem;
}
.st-key-pruning [data-testid="stSlider"] > label, .st-key-pruning .st-key-mass label { flex: none; width: auto; margin: 0; }
/* Said by the control beside it; still read aloud. */
.st-key-pruning :is(.st-key-threshold, .st-key-mass) label [data-testid="stMarkdownContainer"] {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
.st-key-side [data-testid="stVerticalBlock"] { gap: 0.6rem; }
.st-key-predictions_head { flex-wrap: nowrap; }
.st-key-predictions_head [data-testid="stMarkdown"] { min-width: 0; }
.st-key-side [data-testid="stDownloadButton"] button { min-height: 1.5rem; white-space: nowrap; }
.st-key-tour p { line-height: 1.45; }
@media (min-width: 2000px) {
  .st-key-page > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"]:last-child {
    flex: 0 0 36rem;
  }
}
@media (max-width: 1200px) {
  [data-testid="stMainBlockContainer"] { padding-inline: 1.25rem; }
  [data-testid="stSidebar"][data-collapsed="false"] { width: 15rem !important; min-width: 15rem !important; }
  [data-testid="stSidebarContent"], [data-testid="stSidebarHeader"] { padding-inline: 1rem; }
  [data-testid="stSidebarUserContent"] { padding-inline: 0; }
  .st-key-page > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] { gap: 1rem; }
}
@media (max-width: 1200px) {
  [data-testid="stSidebar"] .st-key-files button { padding-inline: 0.4rem; }
  .st-key-pruning { gap: 0.4rem 0.6rem; }
  .st-key-pruning button { padding-inline: 0.5rem; }
  .st-key-model_tools button span:has(> [data-testid="stIconMaterial"]) { display: none; }
}
@media (min-width: 640px) and (max-width: 1200px) {
  .st-key-page > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] { flex-wrap: nowrap; }
  .st-key-page > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"] { min-width: 0; }
  .st-key-page > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"]:last-child {
    flex: 0 0 19rem;
  }
}
@media (max-width: 639px) {
  .st-key-side { position: static; max-height: none; }
}
</style>"""

_PAGES = (navigation.Page("Explore", explore.show),)


def main() -> None:
    st.html(_STYLE)
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "config" / "local.json"
    try:
        service = session.service(file)
    except LlmTtError as error:
        st.error(str(error), icon=":material/error:")
        st.caption("Correct the file and reload this page. The configuration is described in docs/configuration.md.")
        return
    navigation.run(service, _PAGES)


main()
