// Paints edges: many at once in classes of weight, or a single one with emphasis.

import { edgeEffect, edgeKey, RESIDUAL_TO_A, RESIDUAL_TO_I } from "../graph";
import { edgeCurve, newCurve, nodeRow } from "../layout";
import { classWeight, DASH, edgeOpacity, edgeWidth, effectShade, weightClass, WEIGHT_CLASSES } from "../scale";
import type { EdgeKey } from "../selection";
import { effectColor } from "../theme";
import { curveToScreen, toGrid, visibleColumns } from "../view";
import type { Pen } from "./pen";
import { isFar, strokeScale, type Detail, type Scene } from "./scene";

/** How many edges of a kind are painted at most, strongest first, so that a pan stays smooth. */
const MOST_NEAR: Record<Detail, Record<EdgeKey, number>> = {
  still: { attention: 4000, residual: 2500, ffn: 2500 },
  moving: { attention: 400, residual: 400, ffn: 200 },
  picture: { attention: 20_000, residual: 20_000, ffn: 20_000 },
};
const MOST_FAR: Record<Detail, Record<EdgeKey, number>> = {
  still: { attention: 1200, residual: 2000, ffn: 0 },
  moving: { attention: 400, residual: 400, ffn: 0 },
  picture: { attention: 1200, residual: 2000, ffn: 0 },
};
const KEYS: readonly EdgeKey[] = ["residual", "ffn", "attention"];
/** How much of their opacity is left to edges that have no direct effect, where effects are shown. */
const WITHOUT_EFFECT = 0.3;
/** What the other edges keep of their strength while a head is highlighted. */
const DIMMED = 0.3;

export interface PaintedEdges {
  count: number;
  /** Edges of a kind that are weaker than this were left out. */
  weakest: Record<EdgeKey, number>;
}

export const ALL_PAINTED: PaintedEdges = { count: 0, weakest: { attention: 0, residual: 0, ffn: 0 } };

const curve = newCurve();

export function paintEdges(context: Pen, scene: Scene): PaintedEdges {
  const { edges, weakest } = edgesInView(scene, (isFar(scene) ? MOST_FAR : MOST_NEAR)[scene.detail]);
  context.lineCap = "butt";
  const scale = strokeScale(scene);
  const strength = scene.graph.highlighted === null ? 1 : DIMMED;
  for (const { edges: bucket, weight, color, fade, isDashed } of buckets(scene, edges)) {
    context.strokeStyle = color;
    context.globalAlpha = strength * fade * edgeOpacity(weight);
    context.lineWidth = edgeWidth(weight) * scale;
    context.setLineDash(isDashed ? DASH.map((length) => length * scale) : []);
    context.beginPath();
    for (const edge of bucket) tracePath(context, scene, edge);
    context.stroke();
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
  return { count: edges.length, weakest };
}

interface Bucket {
  edges: number[];
  weight: number;
  color: string;
  fade: number;
  isDashed: boolean;
  order: number;
}

/** Edges that one stroke can paint, in the order to paint them: strong over weak, attention over the rest. */
function buckets(scene: Scene, edges: readonly number[]): Bucket[] {
  const { graph, coloring } = scene;
  const found = new Map<number, Bucket>();
  for (const edge of edges) {
    const rank = weightClass(graph.arrays.weight[edge]);
    const effect = coloring === "effect" ? edgeEffect(graph, edge) : 0;
    const fade = effect === null ? WITHOUT_EFFECT : 1;
    const order = ((effect === null ? 0 : WEIGHT_CLASSES) + rank) * KEYS.length + KEYS.indexOf(edgeKey(graph, edge));
    const isDashed = (graph.arrays.side?.[edge] ?? 0) !== 0;
    // The shade, -1 to 1, keeps edges of other colours apart without moving them past the next rank.
    const name = order + effectShade(effect ?? 0, graph.largestEffect) / 4 + (isDashed ? 0.01 : 0);
    const bucket = found.get(name);
    if (bucket !== undefined) bucket.edges.push(edge);
    else {
      const color = edgeColor(scene, edge);
      found.set(name, { edges: [edge], weight: classWeight(rank), color, fade, isDashed, order });
    }
  }
  return [...found.values()].sort((a, b) => a.order - b.order);
}

/** What the colour of an edge says is the reader's choice. */
export function edgeColor({ graph, theme, coloring }: Scene, edge: number): string {
  if (coloring === "contribution") return theme.edge[edgeKey(graph, edge)];
  const effect = edgeEffect(graph, edge);
  return effectColor(theme, effect === null ? 0 : effectShade(effect, graph.largestEffect));
}

/** Paints one edge over the others. */
export function strokeEdge(context: Pen, scene: Scene, edge: number, color: string, extra: number) {
  const { graph } = scene;
  context.strokeStyle = color;
  context.lineWidth = edgeWidth(graph.arrays.weight[edge]) * strokeScale(scene) + extra;
  context.beginPath();
  tracePath(context, scene, edge);
  context.stroke();
}

function isStraight(kind: number): boolean {
  return kind === RESIDUAL_TO_A || kind === RESIDUAL_TO_I;
}

function tracePath(context: Pen, { graph, transform }: Scene, edge: number) {
  edgeCurve(graph, edge, curve);
  curveToScreen(transform, curve);
  context.moveTo(curve[0], curve[1]);
  if (isStraight(graph.arrays.kind[edge])) context.lineTo(curve[6], curve[7]);
  else context.bezierCurveTo(curve[2], curve[3], curve[4], curve[5], curve[6], curve[7]);
}

/** The edges that touch the plot, up to so many of a kind. */
function edgesInView({ graph, transform, plot }: Scene, most: Record<EdgeKey, number>) {
  const { source, destination, layer, weight } = graph.arrays;
  const [first, last] = visibleColumns(transform, graph, plot);
  const topRow = -toGrid(transform, { x: 0, y: plot.top }).y;
  const bottomRow = -toGrid(transform, { x: 0, y: plot.top + plot.height }).y;
  const edges: number[] = [];
  const left = { ...most };
  const weakest = { ...ALL_PAINTED.weakest };
  let room = left.attention + left.residual + left.ffn;
  for (const edge of graph.byWeight) {
    // One column of slack: FFN blocks and self-attention stand out to the side.
    const from = Math.min(source[edge], destination[edge]) - 1;
    const to = Math.max(source[edge], destination[edge]) + 1;
    if (to < first || from > last) continue;
    if (nodeRow("I", layer[edge]) < bottomRow || nodeRow("A", layer[edge]) - 1 > topRow) continue;
    const key = edgeKey(graph, edge);
    if (left[key] > 0) {
      left[key] -= 1;
      edges.push(edge);
      room -= 1;
    } else if (weakest[key] === 0) {
      weakest[key] = most[key] === 0 ? Infinity : weight[edge];
    }
    if (room === 0 && Object.values(weakest).every((value) => value > 0)) break;
  }
  return { edges, weakest };
}
