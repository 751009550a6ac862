// Colours that have to be told apart are: by everyone, on light and dark pages. Computed here from the standards themselves.

import { readFileSync } from "node:fs";

import { describe, expect, it } from "vitest";

import { ON_DARK, ON_LIGHT, ROLES_ON_DARK, ROLES_ON_LIGHT } from "../src/theme";

type Vector = [number, number, number];

const css = readFileSync(new URL("../src/style.css", import.meta.url), "utf8");
const inCss = (name: string) => new RegExp(`--effect-${name}: (#[0-9a-f]{6});`).exec(css)?.[1] ?? "missing";
const PAGES = [
  { page: "light", background: "#ffffff", colors: ON_LIGHT, roles: ROLES_ON_LIGHT },
  { page: "dark", background: "#0e1117", colors: ON_DARK, roles: ROLES_ON_DARK },
].map((page) => ({
  ...page,
  effects: {
    raises: inCss(`raises-on-${page.page}`),
    neutral: inCss(`neutral-on-${page.page}`),
    lowers: inCss(`lowers-on-${page.page}`),
  },
}));

/** sRGB to linear light (IEC 61966-2-1). */
function linear(color: string): Vector {
  const channel = (index: number) => {
    const value = parseInt(color.slice(1 + 2 * index, 3 + 2 * index), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  return [channel(0), channel(1), channel(2)];
}

const times = (matrix: readonly Vector[], vector: Vector): Vector =>
  matrix.map((row) => row.reduce((sum, value, index) => sum + value * vector[index], 0)) as Vector;

/** Contrast ratio of WCAG 2. */
function contrast(a: string, b: string): number {
  const luminance = (color: string) => times([[0.2126, 0.7152, 0.0722]], linear(color))[0];
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

/** What eyes see (Machado, Oliveira & Fernandes 2009, full severity). */
const EYES: Record<string, readonly Vector[]> = {
  usual: [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
  ],
  protanopia: [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  deuteranopia: [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.01182, 0.04294, 0.968881],
  ],
  tritanopia: [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.3039],
  ],
};

/** Distance in CIE L*a*b* (1976); 2.3 is just noticeable. */
function distance(a: string, b: string, eye: readonly Vector[]): number {
  const lab = (color: string): Vector => {
    const seen = times(eye, linear(color)).map((value) => Math.min(1, Math.max(0, value))) as Vector;
    const xyz = times(
      [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
      ],
      seen,
    );
    const [x, y, z] = xyz.map((value, index) => {
      const t = value / [0.95047, 1, 1.08883][index];
      return t > (6 / 29) ** 3 ? Math.cbrt(t) : t / (3 * (6 / 29) ** 2) + 4 / 29;
    });
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
  };
  const [p, q] = [lab(a), lab(b)];
  return Math.hypot(...p.map((value, index) => value - q[index]));
}

describe.each(PAGES)("on a $page page", ({ background, colors, roles, effects }) => {
  it("every line stands out 3:1", () => {
    for (const color of [...Object.values(colors), ...Object.values(roles), ...Object.values(effects)]) {
      expect([color, contrast(color, background) >= 3]).toEqual([color, true]);
    }
  });

  it.each(Object.keys(EYES))("the selection is told from edges and effects (%s)", (eye) => {
    const { selection, ...edges } = colors;
    for (const other of [...Object.values(edges), ...Object.values(effects)]) {
      expect([other, distance(selection, other, EYES[eye]) >= 20]).toEqual([other, true]);
    }
  });

  it.each(Object.keys(EYES))("speakers are told from each other and from edges (%s)", (eye) => {
    const list = Object.entries(roles);
    for (const [index, [name, color]] of list.entries()) {
      const others = [...list.slice(index + 1), ...Object.entries(colors).filter(([key]) => key !== "selection")];
      for (const [other, its] of others) {
        expect([
          name,
          other,
          distance(color, its, EYES[eye]).toFixed(0),
          distance(color, its, EYES[eye]) >= 10,
        ]).toEqual([name, other, expect.anything(), true]);
      }
    }
  });
});
