import { describe, expect, it } from "vitest";

import {
  classWeight,
  edgeOpacity,
  edgeWidth,
  effectShade,
  effectShare,
  weightClass,
  WEIGHT_CLASSES,
} from "../src/scale";

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

describe("effects on their scale", () => {
  it("are shares of the largest, and end where the scale ends", () => {
    expect([-4, -1, 0, 2, 4, 40].map((effect) => effectShare(effect, 4))).toEqual([-1, -0.25, 0, 0.5, 1, 1]);
  });

  it("keep their sign and order in shades, the same on both sides, with zero in the middle", () => {
    const shades = Array.from({ length: 201 }, (_, i) => effectShade((i - 100) / 25, 4));
    expect(shades[100]).toBe(0);
    expect([shades[0], shades[200]]).toEqual([-1, 1]);
    shades.slice(1).forEach((shade, i) => {
      expect(shade).toBeGreaterThanOrEqual(shades[i]);
      expect(shade).toBeCloseTo(-shades[199 - i], 12);
    });
    expect(new Set(shades).size).toBeLessThan(16);
  });

  it("are neutral where there is nothing to compare", () => {
    expect(effectShade(0, 0)).toBe(0);
    expect(effectShade(3, 0)).toBe(0);
  });
});
