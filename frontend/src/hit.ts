// What lies under a point: nodes by arithmetic on the grid, edges by a spatial index and the distance to their curve.

import Flatbush from "flatbush";

import type { Graph } from "./graph";
import {
  curveBox,
  curveDistance,
  distance,
  edgeCurve,
  nearestNode,
  newCurve,
  nodePoint,
  type Grid,
  type Point,
} from "./layout";
import type { NodeRef } from "./names";

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

export function hitNode(grid: Grid, point: Point, radius: number): NodeRef | null {
  const node = nearestNode(grid, point);
  return distance(point, nodePoint(grid, node)) <= radius ? node : null;
}

export class EdgeIndex {
  private readonly boxes: Flatbush | null;
  private readonly curve = newCurve();

  constructor(
    private readonly graph: Graph,
    private readonly grid: Grid,
  ) {
    this.boxes = graph.nEdges === 0 ? null : new Flatbush(graph.nEdges);
    if (this.boxes === null) return;
    for (let edge = 0; edge < graph.nEdges; edge++) {
      edgeCurve(grid, graph, edge, this.curve);
      const box = curveBox(this.curve);
      this.boxes.add(box.minX, box.minY, box.maxX, box.maxY);
    }
    this.boxes.finish();
  }

  /** The edge within `tolerance` of the point, among those for which `isDrawn`; null when there is none. */
  hit(point: Point, tolerance: number, isDrawn: (edge: number) => boolean): number | null {
    if (this.boxes === null) return null;
    const { x, y } = point;
    const found = this.boxes
      .search(x - tolerance, y - tolerance, x + tolerance, y + tolerance, isDrawn)
      .map((edge) => ({ edge, distance: this.distance(edge, point) }))
      .filter((candidate) => candidate.distance <= tolerance);
    const nearest = Math.min(...found.map((candidate) => candidate.distance));
    const { weight } = this.graph.arrays;
    const best = found
      .filter((candidate) => candidate.distance <= nearest + TIE * tolerance)
      .sort((a, b) => weight[b.edge] - weight[a.edge])
      .at(0);
    return best?.edge ?? null;
  }

  private distance(edge: number, point: Point): number {
    edgeCurve(this.grid, this.graph, edge, this.curve);
    return curveDistance(this.curve, point);
  }
}
