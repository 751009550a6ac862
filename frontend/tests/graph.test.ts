import { describe, expect, it } from "vitest";

import {
  edgeHeads,
  edgeSelection,
  findEdge,
  incomingEdges,
  isOtherTarget,
  isShown,
  outgoingEdges,
  withoutFirst,
} from "../src/graph";
import { nodeFromId, nodeId, nodeName, parseNodeName, slotCount } from "../src/names";
import { makeGraph, type Edge } from "./example";

const EDGES: Edge[] = [
  [0, 0, 0, 2, 0.2, { 3: 0.15, 1: 0.05 }],
  [1, 0, 2, 2, 0.8],
  [0, 1, 2, 2, 0.1, { 0: 0.1 }],
  [1, 1, 2, 2, 0.9],
  [2, 1, 2, 2, 0.4],
  [3, 1, 2, 2, 0.4],
  [4, 1, 2, 2, 0.6],
];
const graph = makeGraph(EDGES);
const id = (name: string) => {
  const node = parseNodeName(name);
  if (node === null) throw new Error(name);
  return nodeId(node, graph.nLayers);
};

describe("edges", () => {
  it("are named by key and ends, as in Python", () => {
    expect(
      EDGES.map((_, edge) => edgeSelection(graph, edge)).map(({ key, from, to }) => `${key} ${from} ${to}`),
    ).toEqual([
      "attention X0_0 A0_2",
      "residual X0_2 A0_2",
      "attention I0_2 A1_2",
      "residual I0_2 A1_2",
      "ffn A1_2 M1_2",
      "ffn M1_2 I1_2",
      "residual A1_2 I1_2",
    ]);
  });

  it("are found by their names: self-attention and residual are two", () => {
    EDGES.forEach((_, edge) => {
      expect(findEdge(graph, edgeSelection(graph, edge))).toBe(edge);
    });
    expect(findEdge(graph, { type: "edge", key: "attention", from: "X0_1", to: "A0_2" })).toBe(-1);
  });

  it("are ordered by weight, and have their heads", () => {
    expect([...graph.byWeight]).toEqual([3, 1, 6, 4, 5, 0, 2]);
    expect(edgeHeads(graph, 0).map(({ head }) => head)).toEqual([1, 3]);
    expect(edgeHeads(graph, 1)).toEqual([]);
  });

  it("are listed by node, strongest first", () => {
    expect(incomingEdges(graph, id("A1_2"))).toEqual([3, 2]);
    expect(outgoingEdges(graph, id("A1_2"))).toEqual([6, 4]);
  });
});

describe("routes", () => {
  it("hold the ends of edges and the target's last node", () => {
    const names = [...graph.routeNodes].map((node) => nodeName(nodeFromId(node, graph.nLayers)));
    expect(names.sort()).toEqual(["A0_2", "A1_2", "I0_2", "I1_2", "M1_2", "X0_0", "X0_2"]);
    expect([...graph.isRouteColumn]).toEqual([1, 0, 1]);
  });

  it("hold the last nodes of all targets, whether or not an edge leads to them", () => {
    const several = makeGraph(EDGES, { targets: [1, 2] });
    const names = [...several.routeNodes].map((node) => nodeName(nodeFromId(node, several.nLayers)));
    expect(names.sort()).toEqual(["A0_2", "A1_2", "I0_2", "I1_1", "I1_2", "M1_2", "X0_0", "X0_2"]);
    expect([...several.isRouteColumn]).toEqual([1, 1, 1]);
    expect([...several.isTarget]).toEqual([0, 1, 1]);
    expect(several.targetNode).toBe(id("I1_2"));
  });

  it("lead to a target that can be had alone where there are several", () => {
    const isOther = (targets: number[]) =>
      [0, 1, 2].map((position) => isOtherTarget(makeGraph(EDGES, { targets }), position));
    expect(isOther([2])).toEqual([true, true, false]);
    expect(isOther([1, 2])).toEqual([true, true, true]);
  });

  it("of an empty graph are the target alone", () => {
    const empty = makeGraph([], { tokens: ["a"], target: 0, n_layers: 1 });
    expect(nodeName(nodeFromId(empty.routeNodes[0], 1))).toBe("I0_0");
    expect(empty.routeNodes).toHaveLength(1);
  });
});

describe("node names", () => {
  it("and ids are each other's inverse", () => {
    for (let node = 0; node < 3 * slotCount(2); node++) {
      const parsed = parseNodeName(nodeName(nodeFromId(node, 2)));
      expect(parsed && nodeId(parsed, 2)).toBe(node);
    }
  });

  it.each(["", "A", "A1", "B1_2", "X1_2", "A1_2x", "A-1_2"])("%j is none", (name) => {
    expect(parseNodeName(name)).toBeNull();
  });
});

describe("a highlighted head", () => {
  const edges: Edge[] = [
    [0, 1, 0, 2, 0.2, { 3: 0.2 }],
    [0, 1, 1, 2, 0.5, { 0: 0.3, 3: 0.2 }],
    [0, 1, 2, 2, 0.1, { 0: 0.1 }],
    [1, 1, 2, 2, 0.2],
    [0, 0, 0, 2, 0.4, { 3: 0.4 }],
  ];

  it("is carried by the edges of its layer that name it, weakest first", () => {
    expect(makeGraph(edges, { highlight: { layer: 1, head: 3 } }).highlighted).toEqual([0, 1]);
    expect(makeGraph(edges, { highlight: { layer: 0, head: 3 } }).highlighted).toEqual([4]);
  });

  it("may be on no route", () => {
    expect(makeGraph(edges, { highlight: { layer: 0, head: 0 } }).highlighted).toEqual([]);
  });

  it("is none by default", () => {
    expect(makeGraph(edges).highlighted).toBeNull();
  });
});

describe("without the first token", () => {
  const highlighted = makeGraph(EDGES, { highlight: { layer: 0, head: 3 } });
  const hidden = withoutFirst(highlighted);

  it("its edges are neither drawn nor hit, and every number stays", () => {
    expect(EDGES.map((_, edge) => isShown(hidden, edge))).toEqual([false, true, true, true, true, true, true]);
    expect(EDGES.every((_, edge) => isShown(highlighted, edge))).toBe(true);
    expect([...hidden.byWeight]).toEqual([3, 1, 6, 4, 5, 2]);
    expect([hidden.nHidden, hidden.nEdges, highlighted.nHidden]).toEqual([1, EDGES.length, null]);
    expect(hidden.arrays).toBe(highlighted.arrays);
    expect(incomingEdges(hidden, id("A0_2"))).toEqual(incomingEdges(highlighted, id("A0_2")));
  });

  it("its nodes are no route nodes, and its heads' edges are not highlighted", () => {
    expect([...hidden.routeNodes].map((node) => nodeFromId(node, 2).position)).toEqual([2, 2, 2, 2, 2, 2]);
    expect([highlighted.highlighted, hidden.highlighted]).toEqual([[0], []]);
  });
});
