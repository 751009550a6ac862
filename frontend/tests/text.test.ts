import { describe, expect, it } from "vitest";

import { plannedLabels } from "../src/labels";
import { describeSelection } from "../src/names";
import { findTokens, fitText, formatWeight, visibleText } from "../src/text";

describe("visible text", () => {
  it.each([
    [" Mary", "·Mary"],
    ["Mary", "Mary"],
    ["\n\n", "⏎⏎"],
    ["a\tb\r", "a⇥b␍"],
    ["\u00a0", "⍽"],
    ["\u0007", "\\x07"],
    ["", "∅"],
    ["\u200b", "U+200B"],
    ["\ufeff", "U+FEFF"],
    ["<b>&amp;", "<b>&amp;"],
    ["שלום", "שלום"],
    ["👩‍👩‍👧", "👩‍👩‍👧"],
    ["é", "é"],
    ["<0xE2>", "<0xE2>"],
  ])("%j is shown as %s", (token, shown) => {
    expect(visibleText(token)).toBe(shown);
  });
});

describe("fitting", () => {
  const measure = (text: string) => 10 * Array.from(new Intl.Segmenter().segment(text)).length;

  it("leaves short text alone and cuts long text", () => {
    expect(fitText("short", 50, measure)).toBe("short");
    expect(fitText("a longer text", 50, measure)).toBe("a lo…");
    expect(fitText("abc", 5, measure)).toBe("…");
  });

  it("does not cut an emoji in two", () => {
    expect(fitText("👩‍👩‍👧👩‍👩‍👧👩‍👩‍👧", 20, measure)).toBe("👩‍👩‍👧…");
  });
});

describe("search", () => {
  const tokens = ["<bos>", " Mary", "mary", "\n", " to"];

  it("finds any case, raw text or glyphs", () => {
    expect(findTokens(tokens, "MARY")).toEqual([1, 2]);
    expect(findTokens(tokens, "·")).toEqual([1, 4]);
    expect(findTokens(tokens, " m")).toEqual([1]);
    expect(findTokens(tokens, "⏎")).toEqual([3]);
    expect(findTokens(tokens, "")).toEqual([]);
    expect(findTokens(tokens, ".*")).toEqual([]);
  });
});

describe("weights in words", () => {
  it.each([
    [0, "0.000"],
    [0.00001, "<0.001"],
    [0.0431, "0.043"],
    [0.097, "0.097"],
    [0.5, "0.500"],
    [0.9999, "1.000"],
  ])("%f is %s", (weight, text) => {
    expect(formatWeight(weight)).toBe(text);
  });
});

describe("labels", () => {
  it("are all written where they fit", () => {
    expect(plannedLabels("tilted", 30, 2, 5, () => 0)).toEqual([2, 3, 4, 5]);
  });

  it("give way to those of higher priority", () => {
    const written = plannedLabels("tilted", 6, 0, 9, (position) => (position === 4 ? 1 : 0));
    expect(written).toContain(4);
    const sorted = [...written].sort((a, b) => a - b);
    for (let i = 1; i < sorted.length; i++) expect(sorted[i] - sorted[i - 1]).toBeGreaterThanOrEqual(3);
  });

  it("of no column are none", () => {
    expect(plannedLabels("level", 6, 3, 2, () => 0)).toEqual([]);
  });
});

describe("descriptions", () => {
  const tokens = ["<bos>", " Mary", " to"];

  it.each([
    [{ type: "node", node: "A2_2" }, "layer 2, “·to” (2), after attention"],
    [{ type: "node", node: "X0_0" }, "token “<bos>” (0), embedding"],
    [{ type: "edge", key: "attention", from: "I0_1", to: "A1_2" }, "attention, layer 1: from “·Mary” (1) to “·to” (2)"],
    [{ type: "edge", key: "ffn", from: "A1_2", to: "M1_2" }, "FFN, layer 1, “·to” (2): A1_2 to M1_2"],
    [{ type: "node", node: "nonsense" }, "nonsense"],
  ] as const)("%o", (selection, text) => {
    expect(describeSelection(selection, tokens)).toBe(text);
  });
});
