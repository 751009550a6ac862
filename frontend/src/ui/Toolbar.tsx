// The row above the graph: what is selected, and the controls of the view.

import type { KeyboardEvent, Ref } from "react";

import type { Format, Scope } from "../picture";
import type { Coloring } from "../scale";
import { Button } from "./Button";
import { SaveMenu } from "./SaveMenu";

const ZOOM_STEP = 1.4;

const COLORING_HELP =
  "What colours say: the kind of an edge, or its direct effect on the logit in question. Widths say the contribution.";
const CHANGE_HELP =
  "What colours say: how an edge's contribution changes from the first graph to the second, or its kind. Widths say the larger contribution.";

interface Props {
  status: string;
  /** Instead of a status: what one can do, in short; the status then says it at length. */
  hint: string | null;
  /** Null when there is no question, and so nothing to choose. */
  coloring: Coloring | null;
  onColoring: (coloring: Coloring) => void;
  /** Two graphs are shown in one: colours say their difference. */
  isComparison: boolean;
  query: string;
  nMatches: number;
  /** Which of the matches the view stands at, counted from 1; 0 before Enter. */
  matchNumber: number;
  onQuery: (query: string) => void;
  onNextMatch: (step: 1 | -1) => void;
  onZoom: (factor: number) => void;
  onFit: () => void;
  hidesFirst: boolean;
  onHideFirst: () => void;
  onSave: (scope: Scope, format: Format) => void;
  onHelp: () => void;
  findBox: Ref<HTMLInputElement>;
}

export function Toolbar(props: Props) {
  const { status, hint, coloring, onColoring, query, nMatches, matchNumber, onQuery, onNextMatch, onZoom, onFit } =
    props;
  const { isComparison, hidesFirst, onHideFirst, onSave, onHelp, findBox } = props;
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter") onNextMatch(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") onQuery("");
    else return;
    event.preventDefault();
  };
  return (
    <div className="toolbar">
      <div
        className={hint === null ? "status" : "status muted"}
        role="status"
        aria-live="polite"
        data-testid="graph-status"
        title={status}
      >
        <bdi>{hint ?? status}</bdi>
      </div>
      <div className="controls">
        {coloring !== null && (
          <label className="coloring" title={isComparison ? CHANGE_HELP : COLORING_HELP}>
            colour
            <select
              value={coloring}
              data-testid="graph-coloring"
              onChange={(event) => {
                onColoring(event.target.value as Coloring);
              }}
            >
              <option value="contribution">{isComparison ? "kind" : "contribution"}</option>
              <option value="effect">{isComparison ? "change" : "effect"}</option>
            </select>
          </label>
        )}
        <span className="find">
          <input
            ref={findBox}
            type="text"
            value={query}
            placeholder="find token"
            spellCheck={false}
            aria-label="Find tokens: Enter goes to the next match, Shift+Enter to the one before, Escape clears"
            title="Find tokens: Enter goes to the next match, Shift+Enter to the one before, Escape clears"
            data-testid="graph-find"
            onChange={(event) => {
              onQuery(event.target.value);
            }}
            onKeyDown={onKeyDown}
          />
          <span className="find-count" aria-live="polite">
            {query !== "" && (nMatches === 0 ? "none" : `${matchNumber || "\u2013"}/${nMatches}`)}
          </span>
        </span>
        <Button
          label="Zoom out"
          testId="graph-zoom-out"
          onClick={() => {
            onZoom(1 / ZOOM_STEP);
          }}
        >
          <path d="M3 8h10" />
        </Button>
        <Button
          label="Zoom in"
          testId="graph-zoom-in"
          onClick={() => {
            onZoom(ZOOM_STEP);
          }}
        >
          <path d="M3 8h10M8 3v10" />
        </Button>
        <Button
          label="Fit the whole graph into view (double click on the background)"
          testId="graph-fit"
          onClick={onFit}
        >
          <path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4" />
        </Button>
        <Button
          label={
            hidesFirst
              ? "Show the edges of the first token again"
              : "Hide the edges of the first token; nothing is renormalised"
          }
          testId="graph-hide-first"
          pressed={hidesFirst}
          onClick={onHideFirst}
        >
          <path d="M2.5 2v12" strokeDasharray="1.6 2" />
          <path d="M8 2v12M13.5 2v12" />
        </Button>
        <SaveMenu onSave={onSave} />
        <Button label="Keys and gestures" testId="graph-keys" onClick={onHelp}>
          <path d="M5.5 6a2.5 2.5 0 1 1 3.6 2.2C8.3 8.6 8 9 8 10M8 12.2v1.4" />
        </Button>
      </div>
    </div>
  );
}
