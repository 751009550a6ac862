import { describe, expect, it } from "vitest";

import { EdgeIndex, hitNode, sameHit } from "../src/hit";
import { curvePoint, edgeCurve, newCurve, nodePoint, type Grid } from "../src/layout";
import { curveToScreen, toScreen, type Transform } from "../src/view";
import { makeGraph, type Edge } from "./example";

const grid: Grid = { nTokens: 3, nLayers: 2 };
const all = () => true;
const views: Transform[] = [
  { kx: 80, ky: 60, x: 0, y: 0 },
  { kx: 70, ky: 200, x: 11, y: 900 },
  { kx: 200, ky: 45, x: -90, y: 300 },
];

describe.each(views)("nodes at $kx x $ky", (view) => {
  const node = { kind: "M", layer: 1, position: 1 } as const;
  const { x, y } = toScreen(view, nodePoint(node));

  it("are hit within their reach only, in any direction", () => {
    for (const [dx, dy] of [
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ]) {
      expect(hitNode(grid, view, { x: x + 5 * dx, y: y + 5 * dy }, 6)).toEqual(node);
      expect(hitNode(grid, view, { x: x + 7 * dx, y: y + 7 * dy }, 6)).toBeNull();
    }
    expect(hitNode(grid, view, { x: -900, y: 2000 }, 6)).toBeNull();
  });
});

describe.each(views)("edges at $kx x $ky", (view) => {
  const edges: Edge[] = [
    [0, 1, 0, 2, 0.5],
    [0, 1, 2, 2, 0.5],
    [1, 1, 2, 2, 0.5],
    [4, 0, 1, 1, 0.3],
  ];
  const graph = makeGraph(edges);
  const index = new EdgeIndex(graph);
  const middle = (edge: number) => {
    const curve = newCurve();
    edgeCurve(graph, edge, curve);
    curveToScreen(view, curve);
    return curvePoint(curve, 0.5);
  };

  it.each([0, 1, 2, 3])("edge %i is hit at its middle", (edge) => {
    expect(index.hit(view, middle(edge), 5, all)).toBe(edge);
  });

  it("are missed in their box but far from their curve", () => {
    const { x, y } = middle(0);
    expect(index.hit(view, { x, y: y + 15 }, 5, (edge) => edge === 0)).toBeNull();
  });

  it("that are not drawn are not hit", () => {
    expect(index.hit(view, middle(0), 5, (edge) => edge !== 0)).toBeNull();
  });

  it("of equal distance: the strongest", () => {
    const twice = makeGraph([
      [0, 1, 0, 2, 0.2],
      [0, 1, 0, 2, 0.6],
    ]);
    expect(new EdgeIndex(twice).hit(view, middle(0), 5, all)).toBe(1);
  });

  it("of an empty graph are never hit", () => {
    expect(new EdgeIndex(makeGraph([])).hit(view, { x: 0, y: 0 }, 50, all)).toBeNull();
  });
});

describe("hits", () => {
  it("are compared by what is hit", () => {
    expect(sameHit({ type: "edge", edge: 1 }, { type: "edge", edge: 1 })).toBe(true);
    expect(sameHit({ type: "edge", edge: 1 }, { type: "target", position: 1 })).toBe(false);
    const node = { kind: "A", layer: 1, position: 2 } as const;
    expect(sameHit({ type: "node", node }, { type: "node", node: { ...node } })).toBe(true);
    expect(sameHit({ type: "node", node }, null)).toBe(false);
    expect(sameHit(null, null)).toBe(true);
  });
});
