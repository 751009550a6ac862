import { describe, expect, it } from "vitest";

import { decodeFrame, type FrameHeader } from "../src/frame";
import {
  ATTENTION,
  buildGraph,
  edgeContributions,
  edgeHeads,
  edgeSelection,
  onlyIn,
  RESIDUAL_TO_A,
  type Graph,
} from "../src/graph";
import { legendItems } from "../src/legend";
import { paintEdges } from "../src/paint/edges";
import type { Pen } from "../src/paint/pen";
import type { Scene } from "../src/paint/scene";
import { DASH } from "../src/scale";
import { nodeSentence, selectionSentence } from "../src/speech";
import { formatContributions } from "../src/text";
import type { Theme } from "../src/theme";
import { encode, makeFrame, type Edge } from "./example";

const EDGES: Edge[] = [
  [RESIDUAL_TO_A, 1, 2, 2, 0.75, {}, -0.25],
  [ATTENTION, 1, 1, 2, 0.5, { 3: 0.4, 0: 0.1 }, 0.375],
  [ATTENTION, 1, 0, 2, 0.125, { 1: 0.125 }, NaN],
];
const SIDES = [0, 2, 1];
const HEADER: Partial<FrameHeader> = { effect_of: "demo → tuned", compared: { first: "demo", second: "tuned" } };

function compared(): Graph {
  const frame = makeFrame(EDGES, HEADER);
  frame.arrays.side = Uint8Array.from(SIDES);
  frame.arrays.head_effect = Float32Array.from([0.1, 0.3, -0.125]);
  return buildGraph(frame);
}

describe("two graphs in one", () => {
  const graph = compared();

  it("have an edge's contribution in each, or in the one that has its tokens", () => {
    expect(EDGES.map((_, edge) => edgeContributions(graph, edge))).toEqual([
      [0.75, 0.5],
      [0.125, 0.5],
      [0.125, null],
    ]);
    expect(edgeContributions(buildGraph(makeFrame(EDGES)), 0)).toEqual([0.75]);
  });

  it("have heads with both contributions", () => {
    const [small, large] = edgeHeads(graph, 1);
    expect([small.head, large.head]).toEqual([0, 3]);
    expect(small.contributions[0]).toBeCloseTo(0);
    expect(large.contributions.map((value) => Number(value.toFixed(3)))).toEqual([0.1, 0.4]);
  });

  it("tell which of them alone has an edge", () => {
    expect(EDGES.map((_, edge) => onlyIn(graph, edge))).toEqual([null, "tuned", "demo"]);
    expect(onlyIn(buildGraph(makeFrame(EDGES)), 1)).toBeNull();
  });

  it("are scaled by the largest change, the stream's included", () => {
    expect(graph.largestEffect).toBe(0.375);
    expect(buildGraph(makeFrame([EDGES[0]], { effect_of: "a" })).largestEffect).toBe(0);
  });

  it("are put into words", () => {
    expect(formatContributions([0.75, 0.5])).toBe("0.750 → 0.500");
    expect(formatContributions([null, 0.5])).toBe("– → 0.500");
    expect(selectionSentence(graph, edgeSelection(graph, 1))).toBe(
      "attention, layer 1: from “·b” (1) to “c” (2), contribution 0.125 → 0.500, change +0.375, in tuned only",
    );
    expect(nodeSentence(graph, { kind: "A", layer: 1, position: 2 })).toContain("residual 0.750 → 0.500");
  });

  it("have a legend of their own", () => {
    const change = legendItems(graph, "effect");
    expect(change.map(({ mark }) => mark)).toEqual(["scale", "only", "weights"]);
    expect(change[0].meaning).toContain("Blue: more in tuned, orange: less");
    expect(change[0]).toMatchObject({ least: "-0.375", most: "+0.375", label: "change" });
    expect(legendItems(graph, "contribution").map(({ mark }) => mark)).toEqual([
      "edge",
      "edge",
      "edge",
      "only",
      "weights",
    ]);
    expect(legendItems(buildGraph(makeFrame(EDGES)), "contribution").map(({ mark }) => mark)).not.toContain("only");
  });

  it("are dashed where one alone has an edge", () => {
    const dashes: number[][] = [];
    let dash: number[] = [];
    const pen = {
      setLineDash: (given: number[]) => (dash = given),
      stroke: () => dashes.push(dash),
      beginPath: () => undefined,
      moveTo: () => undefined,
      lineTo: () => undefined,
      bezierCurveTo: () => undefined,
    } as unknown as Pen;
    const effect = { raises: "#0000ff", neutral: "#808080", lowers: "#ff8000" };
    const scene = {
      graph,
      theme: { effect } as Theme,
      coloring: "effect",
      detail: "picture",
      transform: { kx: 50, ky: 50, x: 0, y: 400 },
      plot: { left: 0, top: 0, width: 500, height: 500 },
    } as unknown as Scene;
    paintEdges(pen, scene);
    const scaled = dashes.map((pattern) => pattern.length);
    expect(scaled.filter((length) => length === DASH.length)).toHaveLength(2);
    expect(scaled.filter((length) => length === 0)).toHaveLength(1);
    expect(dash).toEqual([]);
  });
});

describe("a header with two graphs", () => {
  const header = { version: 1, trace: "t", n_layers: 1, tokens: ["a"], target: 0, threshold: 0.04, arrays: {} };

  it.each([{ first: "demo" }, 3, ["demo", "tuned"]])("names both: %j", (names) => {
    expect(() => decodeFrame(encode({ ...header, effect_of: "x", compared: names }))).toThrow(
      "the names of two graphs",
    );
  });

  it("says what the changes are about", () => {
    expect(() => decodeFrame(encode({ ...header, compared: { first: "a", second: "b" } }))).toThrow('"compared"');
  });

  it("needs the arrays that tell them apart", () => {
    const names = { effect_of: "x", compared: { first: "a", second: "b" } };
    expect(() => decodeFrame(encode({ ...header, ...names }))).toThrow('array "kind"');
  });
});
