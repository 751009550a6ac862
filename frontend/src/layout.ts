// Where nodes and edges lie on the grid: x counts columns (tokens, from left to right), y counts rows, and layers grow upwards,
// towards negative y. Pixels are in `view.ts`.

import { ATTENTION, INTO_FFN, OUT_OF_FFN, type Graph } from "./graph";
import type { NodeKind, NodeRef } from "./names";

const ROWS_PER_LAYER = 2;
/** How far to the right of its column an FFN block stands. */
export const FFN_OFFSET = 0.32;
/** How far to the left the attention edge of a token to itself bends, so that it is not its residual edge. */
const SELF_BEND = 0.4;
/** Attention edges leave and arrive steeply (in rows), and lean towards the other end (share of the distance). */
const STEEPNESS = 0.45;
const LEAN = 0.2;

/** Rows above the embedding of a node in layer 0. */
const ROW_IN_LAYER: Record<Exclude<NodeKind, "X">, number> = { A: 1, M: 1.5, I: 2 };

export interface Grid {
  nTokens: number;
  nLayers: number;
}

export interface Point {
  x: number;
  y: number;
}

export interface Box {
  minX: number;
  minY: number;
  maxX: number;
  maxY: number;
}

export function rowCount(nLayers: number): number {
  return 1 + ROWS_PER_LAYER * nLayers;
}

/** Rows above the embeddings. */
export function nodeRow(kind: NodeKind, layer: number): number {
  return kind === "X" ? 0 : ROWS_PER_LAYER * layer + ROW_IN_LAYER[kind];
}

export function nodePoint(node: NodeRef): Point {
  return { x: node.position + (node.kind === "M" ? FFN_OFFSET : 0), y: -nodeRow(node.kind, node.layer) };
}

/** All nodes with half a cell around them. */
export function gridBox(grid: Grid): Box {
  return { minX: -0.5, maxX: grid.nTokens - 0.5, minY: 0.5 - rowCount(grid.nLayers), maxY: 0.5 };
}

/** A layer's band: from half a row below its A nodes to half a row above its I nodes. */
export function layerBand(layer: number): { top: number; bottom: number } {
  return { top: -nodeRow("I", layer) - 0.5, bottom: -nodeRow("A", layer) + 0.5 };
}

/** The column nearest to x, or null beside the graph. */
export function columnAt(grid: Grid, x: number): number | null {
  const position = Math.round(x) + 0; // never -0
  return position >= 0 && position < grid.nTokens ? position : null;
}

/** The node of the residual stream (they stand on the grid's crossings) and the FFN block that are nearest to a point. */
export function nearestNodes(grid: Grid, point: Point): [NodeRef, NodeRef] {
  const clamp = (value: number, max: number) => Math.min(max, Math.max(0, Math.round(value) + 0));
  const row = clamp(-point.y, rowCount(grid.nLayers) - 1);
  const position = clamp(point.x, grid.nTokens - 1);
  const residual: NodeRef =
    row === 0
      ? { kind: "X", layer: 0, position }
      : { kind: row % ROWS_PER_LAYER === 1 ? "A" : "I", layer: Math.floor((row - 1) / ROWS_PER_LAYER), position };
  const ffn: NodeRef = {
    kind: "M",
    layer: clamp((-point.y - ROW_IN_LAYER.M) / ROWS_PER_LAYER, grid.nLayers - 1),
    position: clamp(point.x - FFN_OFFSET, grid.nTokens - 1),
  };
  return [residual, ffn];
}

export function distance(a: Point, b: Point): number {
  return Math.hypot(a.x - b.x, a.y - b.y);
}

/** A cubic Bezier curve: x0, y0, x1, y1, x2, y2, x3, y3. */
export type Curve = Float64Array;

export function newCurve(): Curve {
  return new Float64Array(8);
}

/** Writes an edge's curve into `curve`: painting many edges should allocate nothing. */
export function edgeCurve(graph: Graph, edge: number, curve: Curve): void {
  const { kind, layer, source, destination } = graph.arrays;
  const l = layer[edge];
  const sourceX = source[edge];
  const targetX = destination[edge];
  const yA = -nodeRow("A", l);
  const yM = -nodeRow("M", l);
  const yI = -nodeRow("I", l);
  const yBelow = yA + 1;
  const xM = targetX + FFN_OFFSET;
  switch (kind[edge]) {
    case INTO_FFN:
      write(curve, targetX, yA, targetX + FFN_OFFSET / 2, yA, xM, yA, xM, yM);
      return;
    case OUT_OF_FFN:
      write(curve, xM, yM, xM, yI, targetX + FFN_OFFSET / 2, yI, targetX, yI);
      return;
    case ATTENTION: {
      if (sourceX === targetX) {
        const x = targetX - SELF_BEND;
        write(curve, targetX, yBelow, x, yBelow - 0.2, x, yA + 0.2, targetX, yA);
        return;
      }
      const lean = LEAN * (targetX - sourceX);
      write(curve, sourceX, yBelow, sourceX + lean, yBelow - STEEPNESS, targetX - lean, yA + STEEPNESS, targetX, yA);
      return;
    }
    default: {
      const bottom = isIntoA(kind[edge]) ? yBelow : yA;
      const top = isIntoA(kind[edge]) ? yA : yI;
      const step = (top - bottom) / 3;
      write(curve, targetX, bottom, targetX, bottom + step, targetX, top - step, targetX, top);
    }
  }
}

function isIntoA(kind: number): boolean {
  return kind < INTO_FFN;
}

function write(
  c: Curve,
  x0: number,
  y0: number,
  x1: number,
  y1: number,
  x2: number,
  y2: number,
  x3: number,
  y3: number,
) {
  c[0] = x0;
  c[1] = y0;
  c[2] = x1;
  c[3] = y1;
  c[4] = x2;
  c[5] = y2;
  c[6] = x3;
  c[7] = y3;
}

export function curvePoint(c: Curve, t: number): Point {
  const s = 1 - t;
  const a = s * s * s;
  const b = 3 * s * s * t;
  const d = 3 * s * t * t;
  const e = t * t * t;
  return { x: a * c[0] + b * c[2] + d * c[4] + e * c[6], y: a * c[1] + b * c[3] + d * c[5] + e * c[7] };
}

/** The box of the control points: it contains the curve. */
export function curveBox(c: Curve): Box {
  return {
    minX: Math.min(c[0], c[2], c[4], c[6]),
    minY: Math.min(c[1], c[3], c[5], c[7]),
    maxX: Math.max(c[0], c[2], c[4], c[6]),
    maxY: Math.max(c[1], c[3], c[5], c[7]),
  };
}

const DISTANCE_STEPS = 24;

/** Distance from a point to the curve, taken as a chain of short segments. */
export function curveDistance(c: Curve, point: Point): number {
  let nearest = Infinity;
  let previous = curvePoint(c, 0);
  for (let step = 1; step <= DISTANCE_STEPS; step++) {
    const next = curvePoint(c, step / DISTANCE_STEPS);
    nearest = Math.min(nearest, segmentDistance(previous, next, point));
    previous = next;
  }
  return nearest;
}

function segmentDistance(a: Point, b: Point, point: Point): number {
  const dx = b.x - a.x;
  const dy = b.y - a.y;
  const length2 = dx * dx + dy * dy;
  const along = length2 === 0 ? 0 : ((point.x - a.x) * dx + (point.y - a.y) * dy) / length2;
  const t = Math.min(1, Math.max(0, along));
  return Math.hypot(point.x - a.x - t * dx, point.y - a.y - t * dy);
}
