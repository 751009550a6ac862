// What is selected, and which of two opinions about it wins. Naming and drawing it happen elsewhere.

export type EdgeKey = "attention" | "residual" | "ffn";

export interface NodeSelection {
  type: "node";
  node: string;
}

export interface EdgeSelection {
  type: "edge";
  key: EdgeKey;
  from: string;
  to: string;
}

export type Selection = NodeSelection | EdgeSelection;

const EDGE_KEYS: readonly unknown[] = ["attention", "residual", "ffn"] satisfies EdgeKey[];

export function isSelection(value: unknown): value is Selection {
  if (typeof value !== "object" || value === null) return false;
  const entry = value as Record<string, unknown>;
  if (entry.type === "node") return typeof entry.node === "string";
  const isEdge = entry.type === "edge" && EDGE_KEYS.includes(entry.key);
  return isEdge && typeof entry.from === "string" && typeof entry.to === "string";
}

export function sameSelection(a: Selection | null, b: Selection | null): boolean {
  if (a === null || b === null) return a === b;
  if (a.type === "node") return b.type === "node" && a.node === b.node;
  return b.type === "edge" && a.key === b.key && a.from === b.from && a.to === b.to;
}

/** The component's view of the selection: what it shows, and what it told Python without having heard back. */
export interface SelectionState {
  shown: Selection | null;
  unanswered: readonly (Selection | null)[];
  fromPython: Selection | null;
}

export function initialSelection(fromPython: Selection | null): SelectionState {
  return { shown: fromPython, unanswered: [], fromPython };
}

export function selectHere(state: SelectionState, selection: Selection | null): SelectionState {
  return { ...state, shown: selection, unanswered: [...state.unanswered, selection] };
}

/**
 * A frame arrived. Python's selection wins, except when the frame was made before Python heard of the user's latest
 * click: then it repeats an older selection, and taking it would make the highlight jump back for a moment.
 */
export function reconcile(state: SelectionState, fromPython: Selection | null, sameTrace: boolean): SelectionState {
  if (!sameTrace || state.unanswered.length === 0) return initialSelection(fromPython);
  const answered = state.unanswered.findLastIndex((sent) => sameSelection(sent, fromPython));
  const unanswered = state.unanswered.slice(answered + 1);
  if (unanswered.length === 0) return initialSelection(fromPython);
  const isOld = answered >= 0 || sameSelection(fromPython, state.fromPython);
  return isOld ? { shown: state.shown, unanswered, fromPython } : initialSelection(fromPython);
}
