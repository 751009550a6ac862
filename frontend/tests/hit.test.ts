import { describe, expect, it } from "vitest";

import { EdgeIndex, hitNode, sameHit } from "../src/hit";
import { curvePoint, edgeCurve, newCurve, nodePoint, type Grid } from "../src/layout";
import { makeGraph, type Edge } from "./example";

const grid: Grid = { nTokens: 3, nLayers: 2, rowHeight: 60 };
const all = () => true;

describe("nodes", () => {
  const node = { kind: "M", layer: 1, position: 1 } as const;
  const { x, y } = nodePoint(grid, node);

  it("are hit within their reach only", () => {
    expect(hitNode(grid, { x: x + 5, y }, 6)).toEqual(node);
    expect(hitNode(grid, { x: x + 7, y }, 6)).toBeNull();
    expect(hitNode(grid, { x: -500, y: 900 }, 6)).toBeNull();
  });
});

describe("edges", () => {
  const edges: Edge[] = [
    [0, 1, 0, 2, 0.5],
    [0, 1, 2, 2, 0.5],
    [1, 1, 2, 2, 0.5],
    [4, 0, 1, 1, 0.3],
  ];
  const graph = makeGraph(edges);
  const index = new EdgeIndex(graph, grid);
  const middle = (edge: number) => {
    const curve = newCurve();
    edgeCurve(grid, graph, edge, curve);
    return curvePoint(curve, 0.5);
  };

  it.each([0, 1, 2, 3])("edge %i is hit at its middle", (edge) => {
    expect(index.hit(middle(edge), 5, all)).toBe(edge);
  });

  it("are missed in their box but far from their curve", () => {
    const { x, y } = middle(0);
    expect(index.hit({ x, y: y + 20 }, 5, all)).toBeNull();
  });

  it("that are not drawn are not hit", () => {
    expect(index.hit(middle(0), 5, (edge) => edge !== 0)).toBeNull();
  });

  it("of equal distance: the strongest", () => {
    const twice = makeGraph([
      [0, 1, 0, 2, 0.2],
      [0, 1, 0, 2, 0.6],
    ]);
    expect(new EdgeIndex(twice, grid).hit(middle(0), 5, all)).toBe(1);
  });

  it("of an empty graph are never hit", () => {
    expect(new EdgeIndex(makeGraph([]), grid).hit({ x: 0, y: 0 }, 50, all)).toBeNull();
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
