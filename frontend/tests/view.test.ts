import { describe, expect, it } from "vitest";

import { arrange } from "../src/arrange";
import { gridBox, newCurve, nodePoint, rowCount } from "../src/layout";
import {
  bringIntoView,
  curveToScreen,
  fitTransform,
  inPlot,
  keepInSight,
  rowPixels,
  toGrid,
  toScreen,
  visibleColumns,
  zoomLimits,
  zoomTo,
} from "../src/view";

const widths = (count: number, width: number) => new Float32Array(count).fill(width);

describe("the view", () => {
  const sizes = [
    { tokens: 1, layers: 1 },
    { tokens: 1, layers: 80 },
    { tokens: 14, layers: 4 },
    { tokens: 60, layers: 12 },
    { tokens: 500, layers: 80 },
    { tokens: 500, layers: 2 },
  ];

  it.each(sizes)("fits $tokens tokens and $layers layers", ({ tokens, layers }) => {
    const grid = { nTokens: tokens, nLayers: layers };
    const { plot, fitted } = arrange(1000, 500, grid, widths(tokens, 40));
    const transform = fitTransform(grid, plot);
    expect(transform).toMatchObject(fitted);
    const box = gridBox(grid);
    const low = toScreen(transform, { x: box.minX, y: box.minY });
    const high = toScreen(transform, { x: box.maxX, y: box.maxY });
    expect(low.x).toBeGreaterThan(plot.left - 0.01);
    expect(high.x).toBeLessThan(plot.left + plot.width + 0.01);
    // From top to bottom, whatever the proportions.
    expect(low.y).toBeCloseTo(plot.top);
    expect(high.y).toBeCloseTo(plot.top + plot.height);
    expect(visibleColumns(transform, grid, plot)).toEqual([0, tokens - 1]);
    const kept = keepInSight(transform, grid, plot);
    expect(kept.x).toBeCloseTo(transform.x);
    expect(kept.y).toBeCloseTo(transform.y);
    const [least, most] = zoomLimits(grid, plot);
    expect(least).toBeLessThan(transform.kx);
    expect(most).toBeGreaterThanOrEqual(transform.kx);
  });

  it("tilts labels only if they do not fit level", () => {
    expect(arrange(1000, 500, { nTokens: 14, nLayers: 4 }, widths(14, 40)).mode).toBe("level");
    expect(arrange(1000, 500, { nTokens: 14, nLayers: 4 }, widths(14, 90)).mode).toBe("tilted");
    // So many layers make the columns narrower than the width alone would.
    expect(arrange(1000, 500, { nTokens: 14, nLayers: 80 }, widths(14, 40)).mode).toBe("tilted");
  });

  it("survives a canvas without room", () => {
    const { fitted } = arrange(10, 10, { nTokens: 14, nLayers: 4 }, widths(14, 40));
    expect(fitted.kx).toBeGreaterThan(0);
    expect(fitted.ky).toBeGreaterThan(0);
  });

  it("does not let the graph be dragged out of sight", () => {
    const grid = { nTokens: 14, nLayers: 4 };
    const { plot, fitted } = arrange(1000, 500, grid, widths(14, 40));
    const far = keepInSight({ ...fitted, x: 1e6, y: -1e6 }, grid, plot);
    expect(toScreen(far, { x: gridBox(grid).minX, y: 0 }).x).toBeLessThan(plot.left + plot.width);
    expect(toScreen(far, { x: 0, y: gridBox(grid).maxY }).y).toBeGreaterThan(plot.top);
  });

  it("brings a point just into view, or to the middle", () => {
    const { plot } = arrange(1000, 500, { nTokens: 500, nLayers: 4 }, widths(500, 40));
    const transform = { kx: 80, ky: 50, x: plot.left, y: plot.top + plot.height };
    const point = nodePoint({ kind: "X", layer: 0, position: 300 });
    const near = bringIntoView(transform, point, plot, false);
    expect(inPlot(plot, toScreen(near, point))).toBe(true);
    expect(bringIntoView(near, point, plot, false)).toEqual(near);
    const middle = toScreen(bringIntoView(transform, point, plot, true), point);
    expect(middle.x).toBeCloseTo(plot.left + plot.width / 2);
  });

  it("maps to the screen and back", () => {
    const transform = { kx: 0.3, ky: 7, x: 17, y: -4 };
    const screen = toScreen(transform, { x: 12, y: 34 });
    expect(screen).toEqual({ x: 12 * 0.3 + 17, y: 34 * 7 - 4 });
    const back = toGrid(transform, screen);
    expect(back.x).toBeCloseTo(12);
    expect(back.y).toBeCloseTo(34);
    const curve = newCurve();
    curve.set([12, 34], 6);
    curveToScreen(transform, curve);
    expect([...curve]).toEqual([17, -4, 17, -4, 17, -4, screen.x, screen.y]);
  });
});

describe("zooming", () => {
  const long = { kx: 1.3, ky: 20 };
  const short = { kx: 48, ky: 44 };
  const many = { kx: 6, ky: 2.7 };
  const zooms = Array.from({ length: 60 }, (_, i) => 0.9 * 1.1 ** i);

  it.each([long, short, many])("from $kx x $ky makes rows taller, never flatter", (fitted) => {
    expect(rowPixels(fitted.kx, fitted)).toBeCloseTo(fitted.ky);
    const rows = zooms.map((kx) => rowPixels(kx, fitted));
    rows.slice(1).forEach((row, i) => {
      expect(row).toBeGreaterThanOrEqual(rows[i]);
    });
  });

  it("widens the columns of a long prompt alone, until they have caught up with the rows", () => {
    expect(rowPixels(3, long)).toBe(20);
    expect(rowPixels(12, long)).toBe(20);
    expect(rowPixels(100, long) / 100).toBeCloseTo(rowPixels(200, long) / 200);
    expect(rowPixels(200, long) / 200).toBeLessThan(1.5);
  });

  it.each([short, many])("keeps the proportions of $kx x $ky", (fitted) => {
    for (const kx of zooms) expect(rowPixels(kx, fitted) / kx).toBeCloseTo(fitted.ky / fitted.kx);
  });

  it("out keeps the proportions, too", () => {
    expect(rowPixels(0.65, long)).toBeCloseTo(10);
  });

  it.each([2, 30, 150])("to %f pixels a column leaves what is under the pointer there", (kx) => {
    const view = { ...long, x: 38, y: 600 };
    const pointer = { x: 311, y: 222 };
    const zoomed = zoomTo(view, kx, long, pointer, pointer);
    expect(zoomed).toMatchObject({ kx, ky: rowPixels(kx, long) });
    const under = toScreen(zoomed, toGrid(view, pointer));
    expect(under.x).toBeCloseTo(pointer.x);
    expect(under.y).toBeCloseTo(pointer.y);
    const back = zoomTo(zoomed, view.kx, long, pointer, pointer);
    expect(back.x).toBeCloseTo(view.x);
    expect(back.y).toBeCloseTo(view.y);
  });

  it("takes what the fingers hold along", () => {
    const view = { ...short, x: 38, y: 600 };
    const to = { x: 250, y: 90 };
    const held = toScreen(zoomTo(view, 70, short, { x: 100, y: 100 }, to), toGrid(view, { x: 100, y: 100 }));
    expect(held.x).toBeCloseTo(to.x);
    expect(held.y).toBeCloseTo(to.y);
  });

  it("starts from a graph that fills the plot both ways, if it is about as wide as tall", () => {
    const grid = { nTokens: 14, nLayers: 4 };
    const { plot, fitted } = arrange(680, 500, grid, widths(14, 30));
    expect(fitted.kx).toBeCloseTo(plot.width / 14);
    expect(fitted.ky).toBeCloseTo(plot.height / rowCount(4));
  });
});
