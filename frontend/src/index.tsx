// The entry that Streamlit calls: one React root per place on the page, whatever the number of calls.

import type { FrontendRenderer } from "@streamlit/component-v2-lib";
import { createRoot, type Root } from "react-dom/client";

import { decodeFrame, FrameError } from "./frame";
import { buildGraph, type Graph } from "./graph";
import type { Selection } from "./selection";
import { readTheme, type Theme } from "./theme";
import "./style.css";
import { ErrorBoundary, Problem } from "./ui/ErrorBoundary";
import { FlowGraph } from "./ui/FlowGraph";

type State = Record<string, unknown> & { selection: Selection | null; target: number };

interface Place {
  root: Root;
  container: HTMLElement;
  /** Counts the calls for this place: the clean-up of a superseded call must not unmount. */
  generation: number;
  mounts: number;
  bytes: Uint8Array;
  content: Graph | FrameError;
  theme: Theme;
}

const places = new WeakMap<HTMLElement | ShadowRoot, Place>();
/** How often each component (by Streamlit's key) was mounted: a test sees here that new data does not remount. */
const mountsByKey = new Map<string, number>();

const render: FrontendRenderer<State> = ({ data, key, parentElement, setStateValue, setTriggerValue }) => {
  const place = places.get(parentElement) ?? createPlace(parentElement, key);
  const generation = ++place.generation;
  const bytes = data instanceof Uint8Array ? data : new Uint8Array();
  if (!sameBytes(bytes, place.bytes)) {
    place.bytes = bytes;
    place.content = read(bytes);
  }
  const theme = readTheme(place.container);
  if (JSON.stringify(theme) !== JSON.stringify(place.theme)) place.theme = theme;
  const { content } = place;
  place.root.render(
    content instanceof FrameError ? (
      <Problem>{content.message}</Problem>
    ) : (
      <ErrorBoundary subject={content}>
        <FlowGraph
          graph={content}
          theme={place.theme}
          mounts={place.mounts}
          onSelect={(selection) => {
            setStateValue("selection", selection);
          }}
          onTarget={(position) => {
            setTriggerValue("target", position);
          }}
        />
      </ErrorBoundary>
    ),
  );
  return () => {
    if (place.generation !== generation) return;
    places.delete(parentElement);
    place.root.unmount();
    place.container.remove();
  };
};

function createPlace(parentElement: HTMLElement | ShadowRoot, key: string): Place {
  const container = document.createElement("div");
  container.className = "flow-graph-place";
  parentElement.append(container);
  const mounts = (mountsByKey.get(key) ?? 0) + 1;
  mountsByKey.set(key, mounts);
  const bytes = new Uint8Array();
  const place: Place = {
    root: createRoot(container),
    container,
    generation: 0,
    mounts,
    bytes,
    content: read(bytes),
    theme: readTheme(container),
  };
  places.set(parentElement, place);
  return place;
}

function read(bytes: Uint8Array): Graph | FrameError {
  try {
    return buildGraph(decodeFrame(bytes));
  } catch (error) {
    if (error instanceof FrameError) return error;
    throw error;
  }
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

export default render;
