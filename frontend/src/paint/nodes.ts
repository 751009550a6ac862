// Paints nodes: the pale grid from one prepared tile, those on the routes one by one.

import { COLUMN_WIDTH, FFN_OFFSET, gridBox, layerBand, nodePoint } from "../layout";
import { nodeFromId, type NodeRef } from "../names";
import { columnPixels, toScreen, visibleColumns, type Transform } from "../view";
import { isFar, nodeRadius, type Scene } from "./scene";

const PALE = 0.18;
/** Pale nodes are a little smaller, too. */
const PALE_SIZE = 0.8;
/** Where nodes run together, a ground of pale ones would only dim the page. */
const MIN_PALE_COLUMN = 4;
const STRONG = 0.82;
/** Nodes smaller than this (radius in pixels) are squares: no eye tells them from discs. */
const DISC_RADIUS = 1.3;

/** Every node, pale: they can be selected although no route reaches them. */
export function paintPaleNodes(context: CanvasRenderingContext2D, scene: Scene): void {
  const { grid, transform, plot, theme } = scene;
  if (columnPixels(transform) < MIN_PALE_COLUMN) return;
  const radius = PALE_SIZE * nodeRadius(scene);
  const box = gridBox(grid);
  const origin = toScreen(transform, { x: box.minX, y: layerBand(grid, grid.nLayers - 1).top });
  const end = toScreen(transform, { x: box.maxX, y: layerBand(grid, 0).bottom });
  const pattern = context.createPattern(nodeTile(scene), "repeat");
  if (pattern === null) return;
  pattern.setTransform(
    new DOMMatrix([1 / pixelRatio(), 0, 0, 1 / pixelRatio(), origin.x, origin.y]).multiply(tileStretch(scene)),
  );
  context.fillStyle = pattern;
  context.fillRect(origin.x, origin.y, end.x - origin.x, end.y - origin.y);

  const [first, last] = visibleColumns(transform, grid, plot);
  context.globalAlpha = PALE;
  context.fillStyle = theme.text;
  context.beginPath();
  for (let position = first; position <= last; position++) {
    addNode(context, transform, scene, { kind: "X", layer: 0, position }, radius);
  }
  context.fill();
  context.globalAlpha = 1;
}

function pixelRatio(): number {
  return window.devicePixelRatio || 1;
}

/** Exact size of one layer of one column, in device pixels. */
function tileSize({ grid, transform }: Scene): { width: number; height: number } {
  const { top, bottom } = layerBand(grid, 0);
  const scale = transform.k * pixelRatio();
  return { width: COLUMN_WIDTH * scale, height: (bottom - top) * scale };
}

/** A bitmap has whole pixels; the pattern is stretched by the rest. */
function tileStretch(scene: Scene): DOMMatrix {
  const { width, height } = tileSize(scene);
  return new DOMMatrix().scale(width / Math.max(1, Math.round(width)), height / Math.max(1, Math.round(height)));
}

function nodeTile(scene: Scene): HTMLCanvasElement {
  const { grid, transform, theme } = scene;
  const { width, height } = tileSize(scene);
  const tile = document.createElement("canvas");
  tile.width = Math.max(1, Math.round(width));
  tile.height = Math.max(1, Math.round(height));
  const context = tile.getContext("2d");
  if (context === null) return tile;
  const scale = transform.k * pixelRatio();
  const inTile: Transform = {
    k: scale,
    x: (COLUMN_WIDTH / 2) * scale,
    y: -layerBand(grid, 0).top * scale,
  };
  const radius = PALE_SIZE * nodeRadius(scene) * pixelRatio();
  context.globalAlpha = PALE;
  context.fillStyle = theme.text;
  context.beginPath();
  for (const kind of ["A", "I"] as const) addNode(context, inTile, scene, { kind, layer: 0, position: 0 }, radius);
  context.fill();
  if (isFar(scene)) return tile;
  context.globalAlpha = 2 * PALE;
  context.strokeStyle = theme.edge.ffn;
  context.lineWidth = Math.max(0.5, radius / 4);
  const side = 1.5 * radius;
  const ffn = toScreen(inTile, { x: FFN_OFFSET, y: nodePoint(grid, { kind: "M", layer: 0, position: 0 }).y });
  context.strokeRect(ffn.x - side / 2, ffn.y - side / 2, side, side);
  return tile;
}

/** The nodes that a route reaches. From afar the routes themselves say as much. */
export function paintRouteNodes(context: CanvasRenderingContext2D, scene: Scene): void {
  const { graph, grid, transform, plot } = scene;
  if (isFar(scene)) return;
  const [first, last] = visibleColumns(transform, grid, plot);
  const nodes: NodeRef[] = [];
  for (const id of graph.routeNodes) {
    const node = nodeFromId(id, graph.nLayers);
    if (node.position >= first - 1 && node.position <= last) nodes.push(node);
  }
  paintNodes(context, scene, nodes);
}

/** Paints nodes of the routes: discs of the residual stream, squares of the FFN. */
export function paintNodes(context: CanvasRenderingContext2D, scene: Scene, nodes: readonly NodeRef[]): void {
  const { transform, theme } = scene;
  const radius = nodeRadius(scene);
  context.fillStyle = theme.background;
  context.beginPath();
  for (const node of nodes) if (node.kind !== "M") addNode(context, transform, scene, node, radius);
  // An opaque ground first: edges must not show through the nodes they end at.
  context.fill();
  context.globalAlpha = STRONG;
  context.fillStyle = theme.text;
  context.fill();
  context.globalAlpha = 1;
  context.fillStyle = theme.edge.ffn;
  context.beginPath();
  for (const node of nodes) if (node.kind === "M") addNode(context, transform, scene, node, radius);
  context.fill();
}

/** Adds a node's outline to the current path. */
export function addNode(
  context: CanvasRenderingContext2D,
  transform: Transform,
  scene: Scene,
  node: NodeRef,
  radius: number,
) {
  const { x, y } = toScreen(transform, nodePoint(scene.grid, node));
  if (node.kind === "M" || radius < DISC_RADIUS) {
    context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
  } else {
    context.moveTo(x + radius, y);
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }
}
