// The bytes from Python become a typed frame, or a sentence saying why not. What the graph means is in `graph.ts`.

import { isRole, type Role } from "./roles";
import { isSelection, type Selection } from "./selection";

const MAGIC = "LTT1";
const PREFIX_BYTES = 8;
export const FRAME_VERSION = 1;

/** A head whose edges are to stand out. */
export interface Highlight {
  layer: number;
  head: number;
}

/** Two graphs in one, by what they are called; the array `effect` then holds how contributions change from the first to the second. */
export interface Compared {
  first: string;
  second: string;
}

export interface FrameHeader {
  version: number;
  trace: string;
  n_layers: number;
  tokens: string[];
  target: number;
  /** All positions that the routes lead to, rising; the last is `target`. */
  targets: readonly number[];
  threshold: number;
  renormalized: boolean;
  prediction: string | null;
  probability: number | null;
  selection: Selection | null;
  /** What the array `effect` is about, as in "·Mary − ·John"; null without that array. */
  effect_of: string | null;
  /** The share of the flow that the graph carries, where that decided what is in it; null: the threshold did. */
  mass: number | null;
  highlight: Highlight | null;
  /** Whose message each token belongs to, null for plain text; null as a whole when nobody said. */
  roles: readonly (Role | null)[] | null;
  /** Null for a graph of one trace. */
  compared: Compared | null;
}

export interface FrameArrays {
  kind: Uint8Array;
  layer: Uint16Array;
  source: Uint32Array;
  destination: Uint32Array;
  weight: Float32Array;
  heads_start: Uint32Array;
  head: Uint16Array;
  head_weight: Float32Array;
  /** Direct effects in logits, NaN for edges that have none; null when no question was asked. */
  effect: Float32Array | null;
  /** Of two graphs in one: which has the edge, 0 both, 1 the first, 2 the second. Else null. */
  side: Uint8Array | null;
  /** Of two graphs in one: how each head's contribution changes. Else null. */
  head_effect: Float32Array | null;
}

export interface Frame {
  header: FrameHeader;
  arrays: FrameArrays;
}

/** Its message is shown to the user inside the component. */
export class FrameError extends Error {}

const READERS = {
  u1: (buffer: ArrayBuffer) => new Uint8Array(buffer),
  u2: (buffer: ArrayBuffer) => new Uint16Array(buffer),
  u4: (buffer: ArrayBuffer) => new Uint32Array(buffer),
  f4: (buffer: ArrayBuffer) => new Float32Array(buffer),
};
type Dtype = keyof typeof READERS;
const BYTES: Record<Dtype, number> = { u1: 1, u2: 2, u4: 4, f4: 4 };

const ARRAYS: Record<keyof FrameArrays, Dtype> = {
  kind: "u1",
  layer: "u2",
  source: "u4",
  destination: "u4",
  weight: "f4",
  heads_start: "u4",
  head: "u2",
  head_weight: "f4",
  effect: "f4",
  side: "u1",
  head_effect: "f4",
};

const MAX_KIND = 4;

export function decodeFrame(bytes: Uint8Array): Frame {
  const raw = readHeader(bytes);
  if (raw.version !== FRAME_VERSION) {
    throw new FrameError(
      `This graph is of format version ${String(raw.version)}; the page knows version ${FRAME_VERSION}. ` +
        "Rebuild the front end (make frontend) and reload the page.",
    );
  }
  const header = checkHeader(raw);
  const table = isRecord(raw.arrays) ? raw.arrays : {};
  const start = PREFIX_BYTES + headerLength(bytes);
  const read = (name: keyof FrameArrays) => readArray(bytes, start, name, table[name]);
  const arrays: FrameArrays = {
    kind: read("kind") as Uint8Array,
    layer: read("layer") as Uint16Array,
    source: read("source") as Uint32Array,
    destination: read("destination") as Uint32Array,
    weight: read("weight") as Float32Array,
    heads_start: read("heads_start") as Uint32Array,
    head: read("head") as Uint16Array,
    head_weight: read("head_weight") as Float32Array,
    effect: header.effect_of === null ? null : (read("effect") as Float32Array),
    side: header.compared === null ? null : (read("side") as Uint8Array),
    head_effect: header.compared === null ? null : (read("head_effect") as Float32Array),
  };
  checkArrays(header, arrays);
  return { header, arrays };
}

function headerLength(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(4, true);
}

function readHeader(bytes: Uint8Array): Record<string, unknown> {
  const magic = String.fromCharCode(...bytes.subarray(0, MAGIC.length));
  if (bytes.length < PREFIX_BYTES || magic !== MAGIC) {
    throw new FrameError(`What arrived is not a graph: its ${bytes.length} bytes do not start with ${MAGIC}.`);
  }
  const length = headerLength(bytes);
  if (PREFIX_BYTES + length > bytes.length) {
    throw new FrameError(`The graph arrived cut short: ${bytes.length} bytes, and its header alone needs ${length}.`);
  }
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(PREFIX_BYTES, PREFIX_BYTES + length)));
  } catch {
    throw new FrameError("The graph's header is not valid JSON.");
  }
  if (!isRecord(header)) throw new FrameError("The graph's header is not a JSON object.");
  return header;
}

function checkHeader(raw: Record<string, unknown>): FrameHeader {
  const {
    trace,
    n_layers,
    tokens,
    target,
    targets,
    threshold,
    renormalized,
    prediction,
    probability,
    selection,
    mass,
    highlight,
    effect_of,
    roles,
    compared,
  } = raw;
  if (typeof trace !== "string") throw badHeader("trace", "a string");
  if (!isCount(n_layers) || n_layers === 0) throw badHeader("n_layers", "a positive whole number");
  if (!Array.isArray(tokens) || tokens.length === 0 || !tokens.every((t) => typeof t === "string")) {
    throw badHeader("tokens", "a list of at least one string");
  }
  if (!isCount(target) || target >= tokens.length) throw badHeader("target", `a position below ${tokens.length}`);
  const several = targets ?? [target];
  if (!isRising(several, tokens.length) || several.at(-1) !== target) {
    throw badHeader("targets", `a list of rising positions that ends with ${target}`);
  }
  if (typeof threshold !== "number") throw badHeader("threshold", "a number");
  const given: unknown[] | null = Array.isArray(roles) ? roles : null;
  if (roles !== undefined && roles !== null && !(given?.length === tokens.length && given.every(isRoleOrNull))) {
    throw badHeader("roles", `a list of ${tokens.length} roles, one for each token`);
  }
  const sides = compared ?? null;
  if (sides !== null && !(isCompared(sides) && typeof effect_of === "string")) {
    throw badHeader("compared", 'the names of two graphs, with what the array "effect" is about');
  }
  return {
    version: FRAME_VERSION,
    trace,
    n_layers,
    tokens,
    target,
    targets: several,
    threshold,
    renormalized: renormalized === true,
    prediction: typeof prediction === "string" ? prediction : null,
    probability: typeof probability === "number" ? probability : null,
    selection: isSelection(selection) ? selection : null,
    effect_of: typeof effect_of === "string" ? effect_of : null,
    mass: typeof mass === "number" ? mass : null,
    highlight: isHighlight(highlight) ? highlight : null,
    roles: given as (Role | null)[] | null,
    compared: sides,
  };
}

/** Whole numbers below `end`, each larger than the one before. */
function isRising(value: unknown, end: number): value is number[] {
  if (!Array.isArray(value) || !value.every(isCount)) return false;
  return value.every((number, index) => number < (value.at(index + 1) ?? end));
}

function isRoleOrNull(value: unknown): value is Role | null {
  return value === null || isRole(value);
}

function isCompared(value: unknown): value is Compared {
  return isRecord(value) && typeof value.first === "string" && typeof value.second === "string";
}

function isHighlight(value: unknown): value is Highlight {
  return isRecord(value) && isCount(value.layer) && isCount(value.head);
}

function readArray(bytes: Uint8Array, start: number, name: keyof FrameArrays, spec: unknown) {
  const dtype = ARRAYS[name];
  if (!isRecord(spec) || spec.dtype !== dtype || !isCount(spec.offset) || !isCount(spec.length)) {
    throw new FrameError(`The graph's array "${name}" is missing or is not of type ${dtype}.`);
  }
  const from = start + spec.offset;
  const to = from + spec.length * BYTES[dtype];
  if (to > bytes.length) throw new FrameError(`The graph arrived cut short: its array "${name}" is incomplete.`);
  // The slice is a copy: a typed array over the message itself would need an aligned offset.
  return READERS[dtype](bytes.slice(from, to).buffer);
}

function checkArrays(header: FrameHeader, arrays: FrameArrays): void {
  const edges = arrays.kind.length;
  for (const name of ["layer", "source", "destination", "weight", "effect", "side"] as const) {
    const length = arrays[name]?.length ?? edges;
    if (length !== edges) throw new FrameError(`The graph's array "${name}" has ${length} entries for ${edges} edges.`);
  }
  if (arrays.heads_start.length !== edges + 1 || arrays.heads_start[edges] !== arrays.head.length) {
    throw new FrameError('The graph\'s array "heads_start" does not fit its edges and heads.');
  }
  for (const name of ["head_weight", "head_effect"] as const) {
    if ((arrays[name]?.length ?? arrays.head.length) !== arrays.head.length) {
      throw new FrameError(`The graph's arrays "head" and "${name}" differ in length.`);
    }
  }
  for (let edge = 0; edge < edges; edge++) {
    if (
      arrays.kind[edge] > MAX_KIND ||
      arrays.layer[edge] >= header.n_layers ||
      arrays.source[edge] >= header.tokens.length ||
      arrays.destination[edge] >= header.tokens.length
    ) {
      throw new FrameError(`The graph's edge ${edge} lies outside of its ${header.n_layers} layers and tokens.`);
    }
  }
}

function badHeader(name: string, expected: string): FrameError {
  return new FrameError(`The graph's header entry "${name}" is not ${expected}.`);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0;
}
