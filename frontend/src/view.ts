// Zoom and pan as arithmetic: between the grid and canvas pixels. No events, no drawing.

import { gridBox, rowCount, type Curve, type Grid, type Point } from "./layout";

/** Pixels a column and pixels a row. */
export interface Scale {
  kx: number;
  ky: number;
}

/** screen = (column * kx + x, row * ky + y), in CSS pixels of the canvas. */
export interface Transform extends Scale {
  x: number;
  y: number;
}

/** The part of the canvas between the margins that hold labels. */
export interface Plot {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Rows are at least so tall, in columns: a graph of many layers leaves room at its sides instead. */
const MIN_ROW = 0.45;
/** Rows taller than this, in columns, are not zoomed into: columns widen alone until they have caught up. */
const MAX_ZOOMED_ROW = 1.25;
/** A fitted graph of few tokens is not blown up further than this. */
const MAX_FITTED_COLUMN = 120;
const MAX_COLUMN = 220;
const ZOOM_OUT = 0.7;
/** So many pixels of the graph cannot be dragged out of sight. */
const KEPT_IN_SIGHT = 80;

/** The whole graph in the plot: rows fill its height, columns its width as far as they become neither wide nor flat. */
export function fitScale({ nTokens, nLayers }: Grid, plot: Plot): Scale {
  const ky = plot.height / rowCount(nLayers);
  return { kx: Math.min(MAX_FITTED_COLUMN, plot.width / nTokens, ky / MIN_ROW), ky };
}

/** In the middle of the plot, and standing on the token labels below it. */
export function fitTransform(grid: Grid, plot: Plot): Transform {
  const { kx, ky } = fitScale(grid, plot);
  const box = gridBox(grid);
  return {
    kx,
    ky,
    x: plot.left + plot.width / 2 - (kx * (box.minX + box.maxX)) / 2,
    y: plot.top + plot.height - ky * box.maxY,
  };
}

/** How tall rows are when columns are `kx` wide: zooming has one degree of freedom, and this makes it two scales. */
export function rowPixels(kx: number, fitted: Scale): number {
  const zoomedOut = Math.min(1, kx / fitted.kx) * fitted.ky;
  return Math.max(zoomedOut, Math.min(MAX_ZOOMED_ROW, fitted.ky / fitted.kx) * kx);
}

/** The least and the widest columns that one can zoom to. */
export function zoomLimits(grid: Grid, plot: Plot): [number, number] {
  const { kx } = fitScale(grid, plot);
  return [ZOOM_OUT * kx, Math.max(kx, MAX_COLUMN)];
}

/** The view with columns of `kx` pixels that shows at `to` what is at `from` now. */
export function zoomTo(transform: Transform, kx: number, fitted: Scale, from: Point, to: Point): Transform {
  const ky = rowPixels(kx, fitted);
  return {
    kx,
    ky,
    x: to.x - ((from.x - transform.x) * kx) / transform.kx,
    y: to.y - ((from.y - transform.y) * ky) / transform.ky,
  };
}

/** The nearest transform that leaves some of the graph in the plot. */
export function keepInSight(transform: Transform, grid: Grid, plot: Plot): Transform {
  const { kx, ky } = transform;
  const box = gridBox(grid);
  const clamp = (value: number, k: number, start: number, size: number, min: number, max: number) => {
    const kept = Math.min(KEPT_IN_SIGHT, k * (max - min), size);
    return Math.min(start + size - kept - k * min, Math.max(start + kept - k * max, value));
  };
  return {
    kx,
    ky,
    x: clamp(transform.x, kx, plot.left, plot.width, box.minX, box.maxX),
    y: clamp(transform.y, ky, plot.top, plot.height, box.minY, box.maxY),
  };
}

/** The transform at the same zoom that has the point in the middle of the plot, or just inside it. */
export function bringIntoView(transform: Transform, point: Point, plot: Plot, centre: boolean): Transform {
  const margin = Math.min(KEPT_IN_SIGHT / 2, plot.width / 4, plot.height / 4);
  const shift = (at: number, start: number, size: number) => {
    if (centre) return start + size / 2 - at;
    return Math.max(0, start + margin - at) + Math.min(0, start + size - margin - at);
  };
  const at = toScreen(transform, point);
  return {
    ...transform,
    x: transform.x + shift(at.x, plot.left, plot.width),
    y: transform.y + shift(at.y, plot.top, plot.height),
  };
}

export function toScreen({ kx, ky, x, y }: Transform, point: Point): Point {
  return { x: point.x * kx + x, y: point.y * ky + y };
}

export function toGrid({ kx, ky, x, y }: Transform, point: Point): Point {
  return { x: (point.x - x) / kx, y: (point.y - y) / ky };
}

/** Moves a curve from the grid to the screen, in place. */
export function curveToScreen({ kx, ky, x, y }: Transform, curve: Curve): void {
  for (let i = 0; i < curve.length; i += 2) {
    curve[i] = curve[i] * kx + x;
    curve[i + 1] = curve[i + 1] * ky + y;
  }
}

/** First and last column with a pixel in the plot; first > last when there is none. */
export function visibleColumns(transform: Transform, grid: Grid, plot: Plot): [number, number] {
  const column = (x: number) => (x - transform.x) / transform.kx;
  return [
    Math.max(0, Math.ceil(column(plot.left) - 0.5)),
    Math.min(grid.nTokens - 1, Math.floor(column(plot.left + plot.width) + 0.5)),
  ];
}

export function inPlot(plot: Plot, point: Point): boolean {
  return withinWidth(plot, point) && point.y >= plot.top && point.y <= plot.top + plot.height;
}

/** In the plot, or straight above or below it. */
export function withinWidth(plot: Plot, point: Point): boolean {
  return point.x >= plot.left && point.x <= plot.left + plot.width;
}
