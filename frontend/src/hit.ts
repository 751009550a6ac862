// What lies under a point of the screen: nodes by arithmetic on the grid, edges by a spatial index on the grid and the distance
// to their curve on the screen.

import Flatbush from "flatbush";

import type { Graph } from "./graph";
import {
  curveBox,
  curveDistance,
  distance,
  edgeCurve,
  nearestNodes,
  newCurve,
  nodePoint,
  type Grid,
  type Point,
} from "./layout";
import type { NodeRef } from "./names";
import { curveToScreen, toGrid, toScreen, type Transform } from "./view";

export type Hit =
  { type: "node"; node: NodeRef } | { type: "edge"; edge: number } | { type: "target"; position: number };

export function sameHit(a: Hit | null, b: Hit | null): boolean {
  if (a === null || b === null) return a === b;
  if (a.type === "node") {
    return (
      b.type === "node" &&
      a.node.kind === b.node.kind &&
      a.node.layer === b.node.layer &&
      a.node.position === b.node.position
    );
  }
  if (a.type === "edge") return b.type === "edge" && a.edge === b.edge;
  return b.type === "target" && a.position === b.position;
}

/** Of edges nearly as near as the nearest (share of the tolerance), the strongest is meant: it is drawn on top. */
const TIE = 0.25;

/** The node within `radius` pixels of the point. */
export function hitNode(grid: Grid, transform: Transform, point: Point, radius: number): NodeRef | null {
  const away = (node: NodeRef) => distance(point, toScreen(transform, nodePoint(node)));
  const [residual, ffn] = nearestNodes(grid, toGrid(transform, point));
  const node = away(ffn) < away(residual) ? ffn : residual;
  return away(node) <= radius ? node : null;
}

export class EdgeIndex {
  private readonly boxes: Flatbush | null;
  private readonly curve = newCurve();

  constructor(private readonly graph: Graph) {
    this.boxes = graph.nEdges === 0 ? null : new Flatbush(graph.nEdges);
    if (this.boxes === null) return;
    for (let edge = 0; edge < graph.nEdges; edge++) {
      edgeCurve(graph, edge, this.curve);
      const box = curveBox(this.curve);
      this.boxes.add(box.minX, box.minY, box.maxX, box.maxY);
    }
    this.boxes.finish();
  }

  /** The edge within `tolerance` pixels of the point, among those for which `isDrawn`; null when there is none. */
  hit(transform: Transform, point: Point, tolerance: number, isDrawn: (edge: number) => boolean): number | null {
    if (this.boxes === null) return null;
    const { x, y } = toGrid(transform, point);
    const [dx, dy] = [tolerance / transform.kx, tolerance / transform.ky];
    const found = this.boxes
      .search(x - dx, y - dy, x + dx, y + dy, isDrawn)
      .map((edge) => ({ edge, distance: this.distance(edge, transform, point) }))
      .filter((candidate) => candidate.distance <= tolerance);
    const nearest = Math.min(...found.map((candidate) => candidate.distance));
    const { weight } = this.graph.arrays;
    const best = found
      .filter((candidate) => candidate.distance <= nearest + TIE * tolerance)
      .sort((a, b) => weight[b.edge] - weight[a.edge])
      .at(0);
    return best?.edge ?? null;
  }

  private distance(edge: number, transform: Transform, point: Point): number {
    edgeCurve(this.graph, edge, this.curve);
    curveToScreen(transform, this.curve);
    return curveDistance(this.curve, point);
  }
}
