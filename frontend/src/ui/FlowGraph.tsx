// The component as React sees it: selection, hover, keyboard and search around a stage that draws.

import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState, type KeyboardEvent } from "react";

import { edgeSelection, findEdge, incomingEdges, isOtherTarget, isShown, withoutFirst, type Graph } from "../graph";
import type { Hit } from "../hit";
import { cycle, moveFocus } from "../keyboard";
import type { Point } from "../layout";
import { nodeFromId, nodeId, nodeName, type NodeRef } from "../names";
import type { Format, Scope } from "../picture";
import type { Coloring } from "../scale";
import { initialSelection, reconcile, sameSelection, selectHere, type Selection } from "../selection";
import { nodeSentence, selectionSentence } from "../speech";
import { Stage, type Locatable } from "../stage";
import { findTokens } from "../text";
import type { Theme } from "../theme";
import type { Transform } from "../view";
import { Help } from "./Help";
import { Legend } from "./Legend";
import { Toolbar } from "./Toolbar";
import { Tooltip, type Hover } from "./Tooltip";

const SHORT_HINT = "Click a node, an edge, a triangle.";
const HINT = "Click a node or an edge to inspect it; click a triangle to explain another token.";
const KEYBOARD_HELP =
  "Graph of information flow. Arrow keys move between nodes, Enter selects, E steps through a node's incoming edges, " +
  "T makes the token the target, Escape clears the selection, the question mark lists all keys.";

const ZOOM_STEP = 1.4;
/** Milliseconds that a browser has to begin a download. */
const KEPT_FOR = 60_000;
/** Pixels that Shift and an arrow pan by. */
const PAN_STEP = 60;
const PANS: Record<string, [number, number]> = {
  ArrowLeft: [PAN_STEP, 0],
  ArrowRight: [-PAN_STEP, 0],
  ArrowUp: [0, PAN_STEP],
  ArrowDown: [0, -PAN_STEP],
};

/** For browser tests: where to click, and the zoom and pan. */
export interface RootElement extends HTMLDivElement {
  llmtt?: {
    /** Client coordinates of a node, an edge or a target selector; null when it is not drawn or out of view. */
    locate: (thing: Locatable) => Point | null;
    view: () => Transform;
  };
}

interface Props {
  graph: Graph;
  theme: Theme;
  mounts: number;
  onSelect: (selection: Selection | null) => void;
  onTarget: (position: number) => void;
}

export function FlowGraph({ graph: given, theme, mounts, onSelect, onTarget }: Props) {
  const root = useRef<RootElement>(null);
  const base = useRef<HTMLCanvasElement>(null);
  const overlay = useRef<HTMLCanvasElement>(null);
  const stage = useRef<Stage>(null);
  const minimap = useRef<HTMLDivElement>(null);
  const minimapCanvas = useRef<HTMLCanvasElement>(null);
  const minimapFrame = useRef<HTMLDivElement>(null);
  const findBox = useRef<HTMLInputElement>(null);
  const [hidesFirst, setHidesFirst] = useState(false);
  const graph = useMemo(() => (hidesFirst ? withoutFirst(given) : given), [given, hidesFirst]);
  const [shownGraph, setShownGraph] = useState(given);
  const [selected, setSelected] = useState(() => initialSelection(given.header.selection));
  const [hover, setHover] = useState<Hover | null>(null);
  const [focus, setFocus] = useState<NodeRef | null>(null);
  const [hasFocus, setHasFocus] = useState(false);
  const [query, setQuery] = useState("");
  const [match, setMatch] = useState(-1);
  const [wanted, setWanted] = useState<Coloring>(given.header.compared === null ? "contribution" : "effect");
  const [nStrongest, setNStrongest] = useState<number | null>(null);
  const [isHelpOpen, setIsHelpOpen] = useState(false);
  const [note, setNote] = useState<string | null>(null);
  const [failure, setFailure] = useState<unknown>(null);

  // Drawing happens outside of React; its mistakes are for the error boundary all the same.
  if (failure !== null) throw failure instanceof Error ? failure : new Error("unknown mistake while drawing");

  if (given !== shownGraph) {
    const sameTrace = given.header.trace === shownGraph.header.trace;
    setShownGraph(given);
    setSelected(reconcile(selected, given.header.selection, sameTrace));
    setHover(null);
    setNote(null);
    if (!sameTrace) {
      setFocus(null);
      setMatch(-1);
    }
  }

  const { tokens, effect_of: effectOf } = graph.header;
  // The choice is kept while there is no question.
  const coloring = effectOf === null ? "contribution" : wanted;
  const selection = selected.shown;
  const found = useMemo(() => findTokens(tokens, query), [tokens, query]);
  const matches = useMemo(() => new Set(found), [found]);
  const currentMatch = match >= 0 && match < found.length ? found[match] : null;

  const choose = useCallback(
    (chosen: Selection | null) => {
      if (sameSelection(chosen, selected.shown)) return;
      setSelected(selectHere(selected, chosen));
      onSelect(chosen);
    },
    [selected, onSelect],
  );

  const clicked = useCallback(
    (hit: Hit | null) => {
      if (hit?.type === "target") {
        if (isOtherTarget(graph, hit.position)) onTarget(hit.position);
      } else if (hit?.type === "edge") {
        choose(edgeSelection(graph, hit.edge));
      } else if (hit?.type === "node") {
        setFocus(hit.node);
        choose({ type: "node", node: nodeName(hit.node) });
      } else {
        choose(null);
      }
    },
    [choose, graph, onTarget],
  );

  // The stage lives as long as the component; it always calls the latest handler.
  const onClick = useRef(clicked);
  useLayoutEffect(() => {
    onClick.current = clicked;
  }, [clicked]);

  useLayoutEffect(() => {
    const element = root.current;
    if (element === null || base.current === null || overlay.current === null) return undefined;
    if (minimap.current === null || minimapCanvas.current === null || minimapFrame.current === null) return undefined;
    const corner = { element: minimap.current, canvas: minimapCanvas.current, frame: minimapFrame.current };
    let draws = 0;
    let fullDraws = 0;
    const created = new Stage(base.current, overlay.current, corner, {
      onHover: (hit, at) => {
        const { clientWidth: width = 0, clientHeight: height = 0 } = overlay.current ?? {};
        setHover(hit === null ? null : { hit, at, width, height });
      },
      onClick: (hit) => {
        onClick.current(hit);
      },
      onPainted: ({ count, weakest }) => {
        setNStrongest(Object.values(weakest).some((weight) => weight > 0) ? count : null);
      },
      onDraw: (milliseconds, isFull) => {
        draws += 1;
        fullDraws += isFull ? 1 : 0;
        element.dataset.fullFrames = String(fullDraws);
        element.dataset.frames = String(draws);
        element.dataset.drawMs = milliseconds.toFixed(2);
        element.dataset.view = JSON.stringify(created.view());
      },
      onError: setFailure,
    });
    stage.current = created;
    element.llmtt = {
      locate: (thing) => {
        const point = created.locate(thing);
        const box = overlay.current?.getBoundingClientRect();
        return point === null || box === undefined ? null : { x: box.left + point.x, y: box.top + point.y };
      },
      view: () => created.view(),
    };
    return () => {
      created.destroy();
      stage.current = null;
      delete element.llmtt;
    };
  }, []);

  useLayoutEffect(() => {
    stage.current?.setTheme(theme);
  }, [theme]);

  useLayoutEffect(() => {
    stage.current?.setColoring(coloring);
  }, [coloring]);

  const drawnTrace = useRef<string>(null);
  useLayoutEffect(() => {
    stage.current?.setGraph(graph, graph.header.trace !== drawnTrace.current);
    drawnTrace.current = graph.header.trace;
  }, [graph]);

  useLayoutEffect(() => {
    stage.current?.setAttention({ hover: hover?.hit ?? null, selection, focus: hasFocus ? focus : null });
  }, [graph, hover, selection, focus, hasFocus]);

  useLayoutEffect(() => {
    stage.current?.setMatches(matches, currentMatch);
  }, [matches, currentMatch]);

  useEffect(() => {
    if (currentMatch !== null) stage.current?.revealColumn(currentMatch);
  }, [currentMatch]);

  const focused = focus ?? nodeFromId(graph.targetNode, graph.nLayers);

  const selectNextEdge = (step: 1 | -1) => {
    const edges = incomingEdges(graph, nodeId(focused, graph.nLayers)).filter((edge) => isShown(graph, edge));
    if (edges.length === 0) return;
    const current = selection?.type === "edge" ? edges.indexOf(findEdge(graph, selection)) : -1;
    choose(edgeSelection(graph, edges[cycle(edges.length, current, step)]));
  };

  const save = (scope: Scope, format: Format) => {
    setNote("Drawing the picture\u2026");
    // The note is to be seen before a large picture keeps the page busy.
    setTimeout(() => {
      void savePicture(stage.current, scope, format).then(setNote, (error: unknown) => {
        setNote(`The picture could not be saved: ${error instanceof Error ? error.message : String(error)}.`);
      });
    });
  };

  const onKeyDown = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.shiftKey && Object.hasOwn(PANS, event.key)) {
      stage.current?.panBy(...PANS[event.key]);
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    const next = moveFocus(focused, event.key, graph.nLayers, graph.nTokens);
    if (next !== null) {
      setFocus(next);
      setHasFocus(true);
      stage.current?.revealNode(next);
    } else if (event.key === "Enter" || event.key === " ") {
      choose({ type: "node", node: nodeName(focused) });
    } else if (event.key === "Escape") {
      choose(null);
    } else if (event.key.toLowerCase() === "e") {
      selectNextEdge(event.shiftKey ? -1 : 1);
    } else if (event.key.toLowerCase() === "t") {
      if (isOtherTarget(graph, focused.position)) onTarget(focused.position);
    } else if (event.key === "+" || event.key === "=") {
      stage.current?.zoomBy(ZOOM_STEP);
    } else if (event.key === "-") {
      stage.current?.zoomBy(1 / ZOOM_STEP);
    } else if (event.key === "0") {
      stage.current?.fit();
    } else if (event.key.toLowerCase() === "h") {
      setHidesFirst(!hidesFirst);
    } else if (event.key === "/") {
      findBox.current?.focus();
    } else if (event.key === "?") {
      setIsHelpOpen(true);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  return (
    <div
      ref={root}
      className="flow-graph"
      data-testid="flow-graph"
      data-mounts={mounts}
      data-n-edges={graph.nEdges}
      data-target={graph.header.target}
      data-targets={graph.header.targets.join(" ")}
      data-coloring={coloring}
      data-n-highlighted={graph.highlighted?.length}
      data-n-hidden={graph.nHidden ?? undefined}
    >
      <Toolbar
        status={note ?? (selection === null ? HINT : selectionSentence(graph, selection))}
        hint={note === null && selection === null ? SHORT_HINT : null}
        coloring={effectOf === null ? null : coloring}
        onColoring={setWanted}
        isComparison={graph.header.compared !== null}
        query={query}
        nMatches={found.length}
        matchNumber={match + 1}
        onQuery={(text) => {
          setQuery(text);
          setMatch(-1);
        }}
        onNextMatch={(step) => {
          if (found.length > 0) setMatch(cycle(found.length, match, step));
        }}
        onZoom={(factor) => {
          stage.current?.zoomBy(factor);
        }}
        onFit={() => {
          stage.current?.fit();
        }}
        hidesFirst={hidesFirst}
        onHideFirst={() => {
          setHidesFirst(!hidesFirst);
        }}
        onSave={save}
        onHelp={() => {
          setIsHelpOpen(!isHelpOpen);
        }}
        findBox={findBox}
      />
      <div className="canvases">
        <canvas ref={base} aria-hidden="true" />
        <canvas
          ref={overlay}
          className="overlay"
          data-testid="graph-canvas"
          tabIndex={0}
          role="application"
          aria-label={KEYBOARD_HELP}
          onKeyDown={onKeyDown}
          onFocus={(event) => {
            setHasFocus(event.currentTarget.matches(":focus-visible"));
          }}
          onBlur={() => {
            setHasFocus(false);
          }}
        />
        <div ref={minimap} className="minimap" data-testid="graph-minimap" title="Drag to move the view" hidden>
          <canvas ref={minimapCanvas} aria-hidden="true" />
          <div ref={minimapFrame} className="minimap-frame" />
        </div>
        {isHelpOpen && (
          <Help
            onClose={() => {
              setIsHelpOpen(false);
              overlay.current?.focus();
            }}
          />
        )}
        {graph.nEdges === 0 && (
          <p className="empty">
            {graph.header.mass === null
              ? `No edge is above ${String(graph.header.threshold)}: lower the threshold to see routes.`
              : "No flow reaches a token: every route ends at a node to which no part contributes."}
          </p>
        )}
        {hover !== null && <Tooltip graph={graph} theme={theme} coloring={coloring} hover={hover} />}
        <div className="spoken" aria-live="polite" data-testid="graph-focus">
          {hasFocus && focus !== null && nodeSentence(graph, focus)}
        </div>
      </div>
      <Legend graph={graph} theme={theme} coloring={coloring} nStrongest={nStrongest} />
    </div>
  );
}

/** Hands the picture to the browser as a download; returns what there is to say about it, if anything. */
async function savePicture(stage: Stage | null, scope: Scope, format: Format): Promise<string | null> {
  const picture = (await stage?.picture(scope, format)) ?? null;
  if (picture === null) return null;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(picture.file);
  link.download = picture.name;
  link.click();
  setTimeout(() => {
    URL.revokeObjectURL(link.href);
  }, KEPT_FOR);
  const isSmaller = format === "png" && picture.scale < 2;
  return isSmaller
    ? `Saved at ${picture.scale.toFixed(2)} times the page\u2019s size, the most that a PNG of this graph can have here; SVG has no such limit.`
    : `Saved as ${picture.name}.`;
}
