import { readFileSync } from "node:fs";

import { describe, expect, it } from "vitest";

import { ATTENTION, edgeEffect, INTO_FFN, OUT_OF_FFN, RESIDUAL_TO_A, RESIDUAL_TO_I } from "../src/graph";
import { nodeId } from "../src/names";
import { edgeColor } from "../src/paint/edges";
import type { Scene } from "../src/paint/scene";
import type { Coloring } from "../src/scale";
import { formatEffect } from "../src/text";
import { effectColor, mixed, type Theme } from "../src/theme";
import { makeGraph, type Edge } from "./example";

const EDGES: Edge[] = [
  [RESIDUAL_TO_I, 1, 2, 2, 0.5, {}, 30],
  [INTO_FFN, 1, 2, 2, 0.5, {}, -2],
  [OUT_OF_FFN, 1, 2, 2, 0.5, {}, -2],
  [RESIDUAL_TO_A, 1, 2, 2, 0.4, {}, 20],
  [ATTENTION, 1, 1, 2, 0.6, { 0: 0.6 }, 4],
  [ATTENTION, 0, 0, 1, 0.6, { 0: 0.6 }],
];
const asked = makeGraph(EDGES, { effect_of: "·Mary" });
const effect = { raises: "#0000ff", neutral: "#808080", lowers: "#ff8000" };
const theme = { effect, edge: { attention: "#000001", ffn: "#000002", residual: "#000003" } } as Theme;

describe("effects of a graph", () => {
  it("are numbers, or nothing at all", () => {
    expect(EDGES.map((_, edge) => edgeEffect(asked, edge))).toEqual([30, -2, -2, 20, 4, null]);
    expect(edgeEffect(makeGraph(EDGES), 0)).toBeNull();
  });

  it("are scaled by what adds to the stream, not by the stream", () => {
    expect(asked.largestEffect).toBe(4);
    expect(makeGraph(EDGES).largestEffect).toBe(0);
  });

  it("belong to FFN blocks, too", () => {
    expect([...asked.ffnEffects]).toEqual([[nodeId({ kind: "M", layer: 1, position: 2 }, 2), -2]]);
  });
});

describe("colours", () => {
  const colors = (coloring: Coloring) =>
    EDGES.map((_, edge) => edgeColor({ graph: asked, theme, coloring } as Scene, edge));

  it("say the kind of an edge", () => {
    expect(colors("contribution")).toEqual(["#000003", "#000002", "#000002", "#000003", "#000001", "#000001"]);
  });

  it("or its effect, clipped to the scale, and neutral without one", () => {
    const [stream, into, out, before, attention, elsewhere] = colors("effect");
    expect([stream, before, attention]).toEqual([effect.raises, effect.raises, effect.raises]);
    expect(elsewhere).toBe(effect.neutral);
    expect(into).toBe(out);
    expect(into).not.toBe(effect.neutral);
  });

  it("lie between the neutral and either end", () => {
    expect(effectColor(theme, 0)).toBe("#808080");
    expect(effectColor(theme, 1)).toBe("#0000ff");
    expect(effectColor(theme, -1)).toBe("#ff8000");
    expect(mixed("#000000", "#ffffff", 0.5)).toBe("#808080");
    expect(mixed("#102030", "#102030", 0.3)).toBe("#102030");
  });

  it("are written down for light and dark pages", () => {
    const css = readFileSync(new URL("../src/style.css", import.meta.url), "utf8");
    for (const name of ["raises", "neutral", "lowers"]) {
      for (const page of ["light", "dark"])
        expect(css).toMatch(new RegExp(`--effect-${name}-on-${page}: #[0-9a-f]{6};`));
    }
  });
});

describe("an effect in figures", () => {
  it.each([
    [2.345, "+2.345"],
    [-12.3, "-12.300"],
    [0.0451, "+0.045"],
    [-0.5, "-0.500"],
    [0.0001, "+0.000"],
    [-0.0001, "+0.000"],
    [0, "+0.000"],
  ])("%d is %s", (value, text) => {
    expect(formatEffect(value)).toBe(text);
  });
});
