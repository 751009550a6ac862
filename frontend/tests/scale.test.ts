import { describe, expect, it } from "vitest";

import { classWeight, edgeOpacity, edgeWidth, weightClass, WEIGHT_CLASSES } from "../src/scale";

const weights = Array.from({ length: 101 }, (_, i) => i / 100);

describe("width and opacity", () => {
  it.each([
    ["width", edgeWidth],
    ["opacity", edgeOpacity],
  ])("%s grows with the weight and is never nothing", (_, scale) => {
    const values = weights.map(scale);
    expect(values[0]).toBeGreaterThan(0);
    values.slice(1).forEach((value, i) => {
      expect(value).toBeGreaterThan(values[i]);
    });
  });

  it("take weights out of range as the nearest in range", () => {
    expect(edgeWidth(1.2)).toBe(edgeWidth(1));
    expect(edgeOpacity(-1)).toBe(edgeOpacity(0));
    expect(edgeWidth(NaN)).toBe(edgeWidth(0));
  });
});

describe("classes", () => {
  it("cover all weights in order", () => {
    const classes = weights.map(weightClass);
    expect(classes[0]).toBe(0);
    expect(classes.at(-1)).toBe(WEIGHT_CLASSES - 1);
    expect([...classes].sort((a, b) => a - b)).toEqual(classes);
  });

  it("are stood for by a weight of their own", () => {
    for (let index = 0; index < WEIGHT_CLASSES; index++) expect(weightClass(classWeight(index))).toBe(index);
  });
});
