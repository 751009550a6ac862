// Paints nodes: the pale grid from one prepared tile, those on the routes one by one.

import { FFN_OFFSET, gridBox, layerBand, nodePoint } from "../layout";
import { nodeFromId, nodeId, type NodeRef } from "../names";
import { effectShade } from "../scale";
import { effectColor } from "../theme";
import { toScreen, visibleColumns, type Transform } from "../view";
import type { Pen } from "./pen";
import { isFar, nodeRadius, type Scene } from "./scene";
import { SvgPen } from "./svg";

const PALE = 0.18;
/** Pale nodes are a little smaller, too. */
const PALE_SIZE = 0.8;
/** Where nodes run together, a ground of pale ones would only dim the page. */
const MIN_PALE_COLUMN = 4;
const STRONG = 0.82;
/** Nodes smaller than this (radius in pixels) are squares: no eye tells them from discs. */
const DISC_RADIUS = 1.3;

/** Every node, pale: they can be selected although no route reaches them. */
export function paintPaleNodes(context: Pen, scene: Scene): void {
  const { graph, transform, plot, theme } = scene;
  if (transform.kx < MIN_PALE_COLUMN) return;
  const radius = PALE_SIZE * nodeRadius(scene);
  const box = gridBox(graph);
  const origin = toScreen(transform, { x: box.minX, y: layerBand(graph.nLayers - 1).top });
  const end = toScreen(transform, { x: box.maxX, y: layerBand(0).bottom });
  const area = { width: end.x - origin.x, height: end.y - origin.y };
  if (context instanceof SvgPen) {
    context.fillTiles(origin, tileSize(scene, 1), area, (pen) => {
      paintTile(pen, scene, 1);
    });
  } else {
    const pattern = (context as CanvasRenderingContext2D).createPattern(nodeTile(scene), "repeat");
    if (pattern === null) return;
    const ratio = pixelRatio();
    pattern.setTransform(new DOMMatrix([1 / ratio, 0, 0, 1 / ratio, origin.x, origin.y]).multiply(tileStretch(scene)));
    context.fillStyle = pattern;
    context.fillRect(origin.x, origin.y, area.width, area.height);
  }

  const [first, last] = visibleColumns(transform, graph, plot);
  context.globalAlpha = PALE;
  context.fillStyle = theme.text;
  context.beginPath();
  for (let position = first; position <= last; position++) {
    addNode(context, transform, { kind: "X", layer: 0, position }, radius);
  }
  context.fill();
  context.globalAlpha = 1;
}

function pixelRatio(): number {
  return window.devicePixelRatio || 1;
}

/** Exact size of one layer of one column, in pixels of a bitmap that has `ratio` of them for one of the page. */
function tileSize({ transform: { kx, ky } }: Scene, ratio: number): { width: number; height: number } {
  const { top, bottom } = layerBand(0);
  return { width: kx * ratio, height: (bottom - top) * ky * ratio };
}

/** A bitmap has whole pixels; the pattern is stretched by the rest. */
function tileStretch(scene: Scene): DOMMatrix {
  const { width, height } = tileSize(scene, pixelRatio());
  return new DOMMatrix().scale(width / Math.max(1, Math.round(width)), height / Math.max(1, Math.round(height)));
}

function nodeTile(scene: Scene): HTMLCanvasElement {
  const { width, height } = tileSize(scene, pixelRatio());
  const tile = document.createElement("canvas");
  tile.width = Math.max(1, Math.round(width));
  tile.height = Math.max(1, Math.round(height));
  const context = tile.getContext("2d");
  if (context !== null) paintTile(context, scene, pixelRatio());
  return tile;
}

/** The three nodes of one layer of one column. */
function paintTile(context: Pen, scene: Scene, ratio: number): void {
  const { transform, theme } = scene;
  const [kx, ky] = [transform.kx * ratio, transform.ky * ratio];
  const inTile: Transform = { kx, ky, x: kx / 2, y: -layerBand(0).top * ky };
  const radius = PALE_SIZE * nodeRadius(scene) * ratio;
  context.globalAlpha = PALE;
  context.fillStyle = theme.text;
  context.beginPath();
  for (const kind of ["A", "I"] as const) addNode(context, inTile, { kind, layer: 0, position: 0 }, radius);
  context.fill();
  if (!isFar(scene)) {
    context.globalAlpha = 2 * PALE;
    context.strokeStyle = theme.edge.ffn;
    context.lineWidth = Math.max(0.5, radius / 4);
    const side = 1.5 * radius;
    const ffn = toScreen(inTile, { x: FFN_OFFSET, y: nodePoint({ kind: "M", layer: 0, position: 0 }).y });
    context.strokeRect(ffn.x - side / 2, ffn.y - side / 2, side, side);
  }
  context.globalAlpha = 1;
}

/** The nodes that a route reaches. From afar the routes themselves say as much. */
export function paintRouteNodes(context: Pen, scene: Scene): void {
  const { graph, transform, plot } = scene;
  if (isFar(scene)) return;
  const [first, last] = visibleColumns(transform, graph, plot);
  const nodes: NodeRef[] = [];
  for (const id of graph.routeNodes) {
    const node = nodeFromId(id, graph.nLayers);
    if (node.position >= first - 1 && node.position <= last) nodes.push(node);
  }
  paintNodes(context, scene, nodes);
}

/** Paints nodes of the routes: discs of the residual stream, squares of the FFN. */
export function paintNodes(context: Pen, scene: Scene, nodes: readonly NodeRef[]): void {
  const { transform, theme } = scene;
  const radius = nodeRadius(scene);
  context.fillStyle = theme.background;
  context.beginPath();
  for (const node of nodes) if (node.kind !== "M") addNode(context, transform, node, radius);
  // An opaque ground first: edges must not show through the nodes they end at.
  context.fill();
  context.globalAlpha = STRONG;
  context.fillStyle = theme.text;
  context.fill();
  context.globalAlpha = 1;
  if (scene.coloring === "effect") {
    for (const node of nodes) if (node.kind === "M") paintEffect(context, scene, node, radius);
    return;
  }
  context.fillStyle = theme.edge.ffn;
  context.beginPath();
  for (const node of nodes) if (node.kind === "M") addNode(context, transform, node, radius);
  context.fill();
}

/** An FFN block in the colour of its direct effect. */
function paintEffect(context: Pen, scene: Scene, node: NodeRef, radius: number): void {
  const { graph, theme, transform } = scene;
  const effect = graph.ffnEffects.get(nodeId(node, graph.nLayers));
  context.fillStyle = effectColor(theme, effect === undefined ? 0 : effectShade(effect, graph.largestEffect));
  context.beginPath();
  addNode(context, transform, node, radius);
  context.fill();
}

/** Adds a node's outline to the current path. */
export function addNode(context: Pen, transform: Transform, node: NodeRef, radius: number) {
  const { x, y } = toScreen(transform, nodePoint(node));
  if (node.kind === "M" || radius < DISC_RADIUS) {
    context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
  } else {
    context.moveTo(x + radius, y);
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }
}
