import { describe, expect, it } from "vitest";

import { withoutFirst } from "../src/graph";
import { parseNodeName } from "../src/names";
import { nodeSentence, selectionSentence } from "../src/speech";
import { makeGraph, type Edge } from "./example";

const EDGES: Edge[] = [
  [4, 1, 2, 2, 0.6, {}, 2],
  [2, 1, 2, 2, 0.4, {}, -0.5],
  [3, 1, 2, 2, 0.4, {}, -0.5],
  [1, 1, 2, 2, 0.5, {}, 1],
  [0, 1, 2, 2, 0.1, { 0: 0.1 }, 0.1],
  [0, 1, 1, 2, 0.15, { 0: 0.15 }, 0.2],
  [0, 1, 0, 2, 0.25, { 0: 0.25 }, 0.25],
];
const graph = makeGraph(EDGES, { roles: ["special", "user", null] });
const asked = makeGraph(EDGES, { effect_of: "x" });
const said = (name: string, of = graph) => {
  const node = parseNodeName(name);
  if (node === null) throw new Error(name);
  return nodeSentence(of, node);
};

describe("a node", () => {
  it("is named with the strongest parts that it comes from", () => {
    expect(said("A1_2")).toBe(
      "layer 1, “c” (2), after attention; residual 0.500, attention from “a” (0) 0.250, attention from “·b” (1) 0.150, 1 more",
    );
    expect(said("I1_2")).toBe("layer 1, “c” (2), after FFN; residual 0.600, FFN 0.400");
    expect(said("M1_2")).toBe("layer 1, “c” (2), FFN block; residual 0.400");
  });

  it("is named with its direct effect, its speaker, and where it is not on the routes", () => {
    expect(said("M1_2", asked)).toBe("layer 1, “c” (2), FFN block; residual 0.400, direct effect -0.500 logits");
    expect(said("X0_1")).toBe("token “·b” (1), embedding, user’s message; not on the routes");
    expect(said("I0_0")).toBe("layer 0, “a” (0), after FFN");
  });
});

describe("a selected edge", () => {
  const edge = { type: "edge", key: "attention", from: "I0_0", to: "A1_2" } as const;

  it("is named with its weight and effect", () => {
    expect(selectionSentence(graph, edge)).toBe("attention, layer 1: from “a” (0) to “c” (2), contribution 0.250");
    expect(selectionSentence(asked, edge)).toMatch(/contribution 0\.250, direct effect \+0\.250 logits$/);
  });

  it("is said to be hidden, or gone", () => {
    expect(selectionSentence(withoutFirst(graph), edge)).toMatch(/ \(hidden with the first token\)$/);
    expect(selectionSentence(graph, { ...edge, from: "I0_7" })).toMatch(/ \(not on these routes\)$/);
    expect(selectionSentence(graph, { type: "node", node: "I1_2" })).toBe("layer 1, “c” (2), after FFN");
  });
});
