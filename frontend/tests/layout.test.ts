import { describe, expect, it } from "vitest";

import {
  columnAt,
  curveDistance,
  curvePoint,
  edgeCurve,
  nearestNodes,
  newCurve,
  nodePoint,
  type Grid,
} from "../src/layout";
import { nodeAt, slotCount } from "../src/names";
import { makeGraph } from "./example";

const grid: Grid = { nTokens: 3, nLayers: 2 };

describe("the grid", () => {
  it("has tokens from left to right and layers upwards", () => {
    expect(nodePoint({ kind: "X", layer: 0, position: 0 })).toEqual({ x: 0, y: -0 });
    expect(nodePoint({ kind: "A", layer: 0, position: 1 })).toEqual({ x: 1, y: -1 });
    expect(nodePoint({ kind: "I", layer: 1, position: 2 })).toEqual({ x: 2, y: -4 });
  });

  it("puts an FFN block beside its column, between A and I", () => {
    const point = nodePoint({ kind: "M", layer: 1, position: 0 });
    expect(point.y).toBe(-3.5);
    expect(point.x).toBeGreaterThan(0);
    expect(point.x).toBeLessThan(0.5);
  });

  it("finds every node at its own point, and near it", () => {
    for (let position = 0; position < grid.nTokens; position++) {
      for (let slot = 0; slot < slotCount(grid.nLayers); slot++) {
        const node = nodeAt(position, slot);
        const { x, y } = nodePoint(node);
        expect(nearestNodes(grid, { x: x + 0.05, y: y - 0.05 })).toContainEqual(node);
      }
    }
  });

  it("knows its columns", () => {
    expect([-0.51, -0.49, 0, 0.51, 2.49, 2.51].map((x) => columnAt(grid, x))).toEqual([null, 0, 0, 1, 2, null]);
  });
});

describe("curves", () => {
  const graph = makeGraph([
    [0, 1, 0, 2, 0.5],
    [0, 1, 2, 2, 0.5],
    [1, 1, 2, 2, 0.5],
    [2, 1, 2, 2, 0.5],
    [3, 1, 2, 2, 0.5],
    [4, 1, 2, 2, 0.5],
  ]);
  const curve = newCurve();
  const ends = [
    ["I0_0", "A1_2"],
    ["I0_2", "A1_2"],
    ["I0_2", "A1_2"],
    ["A1_2", "M1_2"],
    ["M1_2", "I1_2"],
    ["A1_2", "I1_2"],
  ] as const;
  const at = (name: string) => {
    const [kind, layer, position] = [name[0] as "A" | "M" | "I", Number(name[1]), Number(name[3])];
    return nodePoint({ kind, layer, position });
  };

  it.each(ends.map(([from, to], edge) => ({ edge, from, to })))(
    "edge $edge joins $from and $to",
    ({ edge, from, to }) => {
      edgeCurve(graph, edge, curve);
      expect(curvePoint(curve, 0)).toEqual(at(from));
      expect(curvePoint(curve, 1)).toEqual(at(to));
    },
  );

  it("keep self-attention and residual apart", () => {
    edgeCurve(graph, 1, curve);
    const self = curvePoint(curve, 0.5);
    edgeCurve(graph, 2, curve);
    expect(curveDistance(curve, self)).toBeGreaterThan(0.2);
  });

  it("have no distance to their own points", () => {
    edgeCurve(graph, 0, curve);
    expect(curveDistance(curve, curvePoint(curve, 0.37))).toBeLessThan(0.01);
    expect(curveDistance(curve, { x: 0, y: -20 })).toBeGreaterThan(15);
  });
});
