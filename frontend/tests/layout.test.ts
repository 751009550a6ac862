import { describe, expect, it } from "vitest";

import { arrange } from "../src/arrange";
import {
  COLUMN_WIDTH,
  columnAt,
  curveDistance,
  curvePoint,
  edgeCurve,
  gridBox,
  nearestNode,
  newCurve,
  nodePoint,
  type Grid,
} from "../src/layout";
import { nodeAt, slotCount } from "../src/names";
import {
  bringIntoView,
  columnPixels,
  fitTransform,
  inPlot,
  keepInSight,
  toScreen,
  toWorld,
  visibleColumns,
  zoomLimits,
} from "../src/view";
import { makeGraph } from "./example";

const grid: Grid = { nTokens: 3, nLayers: 2, rowHeight: 60 };

describe("the grid", () => {
  it("has tokens from left to right and layers upwards", () => {
    expect(nodePoint(grid, { kind: "X", layer: 0, position: 0 })).toEqual({ x: 0, y: -0 });
    expect(nodePoint(grid, { kind: "A", layer: 0, position: 1 })).toEqual({ x: COLUMN_WIDTH, y: -60 });
    expect(nodePoint(grid, { kind: "I", layer: 1, position: 2 })).toEqual({ x: 2 * COLUMN_WIDTH, y: -240 });
  });

  it("puts an FFN block beside its column, between A and I", () => {
    const point = nodePoint(grid, { kind: "M", layer: 1, position: 0 });
    expect(point.y).toBe(-210);
    expect(point.x).toBeGreaterThan(0);
    expect(point.x).toBeLessThan(COLUMN_WIDTH / 2);
  });

  it("finds every node at its own point, and near it", () => {
    for (let position = 0; position < grid.nTokens; position++) {
      for (let slot = 0; slot < slotCount(grid.nLayers); slot++) {
        const node = nodeAt(position, slot);
        const { x, y } = nodePoint(grid, node);
        expect(nearestNode(grid, { x: x + 4, y: y - 3 })).toEqual(node);
      }
    }
  });

  it("knows its columns", () => {
    expect([-41, -39, 0, 41, 199, 201].map((x) => columnAt(grid, x))).toEqual([null, 0, 0, 1, 2, null]);
  });
});

describe("curves", () => {
  const graph = makeGraph([
    [0, 1, 0, 2, 0.5],
    [0, 1, 2, 2, 0.5],
    [1, 1, 2, 2, 0.5],
    [2, 1, 2, 2, 0.5],
    [3, 1, 2, 2, 0.5],
    [4, 1, 2, 2, 0.5],
  ]);
  const curve = newCurve();
  const ends = [
    ["I0_0", "A1_2"],
    ["I0_2", "A1_2"],
    ["I0_2", "A1_2"],
    ["A1_2", "M1_2"],
    ["M1_2", "I1_2"],
    ["A1_2", "I1_2"],
  ] as const;
  const at = (name: string) => {
    const [kind, layer, position] = [name[0] as "A" | "M" | "I", Number(name[1]), Number(name[3])];
    return nodePoint(grid, { kind, layer, position });
  };

  it.each(ends.map(([from, to], edge) => ({ edge, from, to })))(
    "edge $edge joins $from and $to",
    ({ edge, from, to }) => {
      edgeCurve(grid, graph, edge, curve);
      expect(curvePoint(curve, 0)).toEqual(at(from));
      expect(curvePoint(curve, 1)).toEqual(at(to));
    },
  );

  it("keep self-attention and residual apart", () => {
    edgeCurve(grid, graph, 1, curve);
    const self = curvePoint(curve, 0.5);
    edgeCurve(grid, graph, 2, curve);
    expect(curveDistance(curve, self)).toBeGreaterThan(0.2 * COLUMN_WIDTH);
  });

  it("have no distance to their own points", () => {
    edgeCurve(grid, graph, 0, curve);
    expect(curveDistance(curve, curvePoint(curve, 0.37))).toBeLessThan(0.5);
    expect(curveDistance(curve, { x: 0, y: -1000 })).toBeGreaterThan(800);
  });
});

describe("the view", () => {
  const widths = (count: number, width: number) => new Float32Array(count).fill(width);
  const sizes = [
    { tokens: 1, layers: 1 },
    { tokens: 1, layers: 80 },
    { tokens: 14, layers: 4 },
    { tokens: 60, layers: 12 },
    { tokens: 500, layers: 80 },
    { tokens: 500, layers: 2 },
  ];

  it.each(sizes)("fits $tokens tokens and $layers layers", ({ tokens, layers }) => {
    const { grid, plot } = arrange(1000, 500, tokens, layers, widths(tokens, 40));
    const transform = fitTransform(grid, plot);
    const box = gridBox(grid);
    const low = toScreen(transform, { x: box.minX, y: box.minY });
    const high = toScreen(transform, { x: box.maxX, y: box.maxY });
    for (const value of [low.x - plot.left, low.y - plot.top]) expect(value).toBeGreaterThan(-0.01);
    expect(high.x).toBeLessThan(plot.left + plot.width + 0.01);
    expect(high.y).toBeLessThan(plot.top + plot.height + 0.01);
    expect(visibleColumns(transform, grid, plot)).toEqual([0, tokens - 1]);
    const kept = keepInSight(transform, grid, plot);
    expect(kept.x).toBeCloseTo(transform.x);
    expect(kept.y).toBeCloseTo(transform.y);
    const [least, most] = zoomLimits(grid, plot);
    expect(least).toBeLessThan(transform.k);
    expect(most).toBeGreaterThanOrEqual(transform.k);
  });

  it("tilts labels only if they do not fit level", () => {
    expect(arrange(1000, 500, 14, 4, widths(14, 40)).mode).toBe("level");
    expect(arrange(1000, 500, 14, 4, widths(14, 90)).mode).toBe("tilted");
    // So many layers make the columns narrower than the width alone would.
    expect(arrange(1000, 500, 14, 80, widths(14, 40)).mode).toBe("tilted");
  });

  it("survives a canvas without room", () => {
    const { grid, plot } = arrange(10, 10, 14, 4, widths(14, 40));
    expect(columnPixels(fitTransform(grid, plot))).toBeGreaterThan(0);
  });

  it("does not let the graph be dragged out of sight", () => {
    const { grid, plot } = arrange(1000, 500, 14, 4, widths(14, 40));
    const { k } = fitTransform(grid, plot);
    const far = keepInSight({ k, x: 1e6, y: -1e6 }, grid, plot);
    expect(toScreen(far, { x: gridBox(grid).minX, y: 0 }).x).toBeLessThan(plot.left + plot.width);
    expect(toScreen(far, { x: 0, y: gridBox(grid).maxY }).y).toBeGreaterThan(plot.top);
  });

  it("brings a point just into view, or to the middle", () => {
    const { grid, plot } = arrange(1000, 500, 500, 4, widths(500, 40));
    const transform = { k: 1, x: plot.left, y: plot.top + plot.height };
    const point = nodePoint(grid, { kind: "X", layer: 0, position: 300 });
    const near = bringIntoView(transform, point, plot, false);
    expect(inPlot(plot, toScreen(near, point))).toBe(true);
    expect(bringIntoView(near, point, plot, false)).toEqual(near);
    const middle = toScreen(bringIntoView(transform, point, plot, true), point);
    expect(middle.x).toBeCloseTo(plot.left + plot.width / 2);
  });

  it("maps to the screen and back", () => {
    const transform = { k: 0.3, x: 17, y: -4 };
    const back = toWorld(transform, toScreen(transform, { x: 12, y: 34 }));
    expect(back.x).toBeCloseTo(12);
    expect(back.y).toBeCloseTo(34);
  });
});
