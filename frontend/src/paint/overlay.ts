// Paints what follows pointer, selection and keyboard, on a canvas of its own above the graph.

import { findEdge, incomingEdges, isShown, outgoingEdges, type Graph } from "../graph";
import type { Hit } from "../hit";
import { nodeExists, nodeFromId, nodeId, parseNodeName, type NodeRef } from "../names";
import type { Selection } from "../selection";
import { edgeColor, strokeEdge } from "./edges";
import { paintColumn, paintPointedSelector } from "./margins";
import { addNode, paintNodes } from "./nodes";
import type { Pen } from "./pen";
import { nodeRadius, type Scene } from "./scene";

const HOVER_TINT = 0.06;
const HALO = 7;
const LIFT = 1.5;
const MIN_RING = 4;

export interface Attention {
  hover: Hit | null;
  selection: Selection | null;
  focus: NodeRef | null;
}

export function paintOverlay(
  context: Pen,
  scene: Scene,
  { hover, selection, focus }: Attention,
  pointedColumn: number | null,
): void {
  const { plot, theme, graph } = scene;
  if (pointedColumn !== null) paintPointedSelector(context, scene, pointedColumn, hover?.type === "target");
  context.save();
  context.beginPath();
  context.rect(plot.left, plot.top, plot.width, plot.height);
  context.clip();
  const column = hover === null ? null : hoveredColumn(hover);
  if (column !== null) paintColumn(context, scene, column, theme.text, HOVER_TINT);
  if (graph.highlighted !== null) paintHighlighted(context, scene, graph.highlighted);
  if (selection !== null) paintSelection(context, scene, selection);
  if (hover?.type === "edge") {
    emphasiseEdges(context, scene, [hover.edge]);
    for (const node of endsOf(graph, hover.edge)) paintRing(context, scene, node, theme.text, 1.5);
  }
  if (hover?.type === "node") {
    emphasiseEdges(context, scene, edgesOf(graph, hover.node));
    paintRing(context, scene, hover.node, theme.text, 2);
  }
  if (focus !== null) paintFocus(context, scene, focus);
  context.restore();
}

function hoveredColumn(hit: Hit): number | null {
  if (hit.type === "edge") return null;
  return hit.type === "node" ? hit.node.position : hit.position;
}

function paintHighlighted(context: Pen, scene: Scene, edges: readonly number[]): void {
  const { graph, theme } = scene;
  for (const edge of edges) strokeEdge(context, scene, edge, theme.selection, LIFT);
  paintNodes(
    context,
    scene,
    edges.flatMap((edge) => endsOf(graph, edge)),
  );
}

function paintSelection(context: Pen, scene: Scene, selection: Selection): void {
  const { graph, theme } = scene;
  const { nLayers, nTokens } = graph;
  if (selection.type === "node") {
    const node = parseNodeName(selection.node);
    if (!nodeExists(node, nLayers, nTokens)) return;
    emphasiseEdges(context, scene, edgesOf(graph, node));
    context.fillStyle = theme.selection;
    context.beginPath();
    addNode(context, scene.transform, node, Math.max(MIN_RING, 1.15 * nodeRadius(scene)));
    context.fill();
    paintRing(context, scene, node, theme.selection, 2);
    return;
  }
  const edge = findEdge(graph, selection);
  if (edge >= 0 && isShown(graph, edge)) {
    context.globalAlpha = 0.3;
    strokeEdge(context, scene, edge, theme.selection, HALO);
    context.globalAlpha = 1;
    strokeEdge(context, scene, edge, theme.selection, LIFT);
    paintNodes(context, scene, endsOf(graph, edge));
  }
  for (const name of [selection.from, selection.to]) {
    const node = parseNodeName(name);
    if (nodeExists(node, nLayers, nTokens)) paintRing(context, scene, node, theme.selection, 2);
  }
}

function edgesOf(graph: Graph, node: NodeRef): number[] {
  const id = nodeId(node, graph.nLayers);
  return [...incomingEdges(graph, id), ...outgoingEdges(graph, id)].filter((edge) => isShown(graph, edge));
}

function endsOf(graph: Graph, edge: number): NodeRef[] {
  return [graph.from[edge], graph.to[edge]].map((id) => nodeFromId(id, graph.nLayers));
}

/** Edges at full strength, and the nodes at their ends over them. */
function emphasiseEdges(context: Pen, scene: Scene, edges: readonly number[]): void {
  const { graph } = scene;
  for (const edge of edges) strokeEdge(context, scene, edge, edgeColor(scene, edge), LIFT);
  paintNodes(
    context,
    scene,
    edges.flatMap((edge) => endsOf(graph, edge)),
  );
}

function paintRing(context: Pen, scene: Scene, node: NodeRef, color: string, width: number): void {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.beginPath();
  addNode(context, scene.transform, node, Math.max(MIN_RING, nodeRadius(scene)) + 3);
  context.stroke();
}

function paintFocus(context: Pen, scene: Scene, node: NodeRef): void {
  context.setLineDash([3, 2]);
  context.strokeStyle = scene.theme.text;
  context.lineWidth = 1.5;
  context.beginPath();
  addNode(context, scene.transform, node, Math.max(MIN_RING, nodeRadius(scene)) + 6);
  context.stroke();
  context.setLineDash([]);
}
