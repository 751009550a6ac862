// Zoom and pan as arithmetic: between the grid's units and canvas pixels. No events, no drawing.

import { COLUMN_WIDTH, gridBox, rowCount, type Grid, type Point } from "./layout";

/** screen = world * k + (x, y), in CSS pixels of the canvas. */
export interface Transform {
  k: number;
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

/** Cells may be wider or taller than a square to fill the room, within reason: they stay so when zoomed into. */
const MIN_ROW_HEIGHT = 0.45 * COLUMN_WIDTH;
const MAX_ROW_HEIGHT = 4 * COLUMN_WIDTH;
/** A fitted graph of few tokens is not blown up further than this. */
const MAX_FITTED_COLUMN = 120;
const MAX_COLUMN = 220;
const ZOOM_OUT = 0.7;
/** So many pixels of the graph cannot be dragged out of sight. */
const KEPT_IN_SIGHT = 80;

export function fitGrid(nTokens: number, nLayers: number, plot: Plot): Grid {
  const columnPixels = Math.min(MAX_FITTED_COLUMN, plot.width / nTokens);
  const ratio = plot.height / rowCount(nLayers) / columnPixels;
  const rowHeight = Math.min(MAX_ROW_HEIGHT, Math.max(MIN_ROW_HEIGHT, ratio * COLUMN_WIDTH));
  return { nTokens, nLayers, rowHeight };
}

/** The whole graph in the plot: in the middle, and standing on the token labels below it. */
export function fitTransform(grid: Grid, plot: Plot): Transform {
  const box = gridBox(grid);
  const fill = Math.min(plot.width / (box.maxX - box.minX), plot.height / (box.maxY - box.minY));
  const k = Math.min(fill, MAX_FITTED_COLUMN / COLUMN_WIDTH);
  return {
    k,
    x: plot.left + plot.width / 2 - (k * (box.minX + box.maxX)) / 2,
    y: plot.top + plot.height - k * box.maxY,
  };
}

export function zoomLimits(grid: Grid, plot: Plot): [number, number] {
  const fitted = fitTransform(grid, plot).k;
  return [ZOOM_OUT * fitted, Math.max(fitted, MAX_COLUMN / COLUMN_WIDTH)];
}

/** The nearest transform that leaves some of the graph in the plot. */
export function keepInSight(transform: Transform, grid: Grid, plot: Plot): Transform {
  const { k } = transform;
  const box = gridBox(grid);
  const clamp = (value: number, start: number, size: number, min: number, max: number) => {
    const kept = Math.min(KEPT_IN_SIGHT, k * (max - min), size);
    return Math.min(start + size - kept - k * min, Math.max(start + kept - k * max, value));
  };
  return {
    k,
    x: clamp(transform.x, plot.left, plot.width, box.minX, box.maxX),
    y: clamp(transform.y, plot.top, plot.height, box.minY, box.maxY),
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
    k: transform.k,
    x: transform.x + shift(at.x, plot.left, plot.width),
    y: transform.y + shift(at.y, plot.top, plot.height),
  };
}

export function toScreen(transform: Transform, point: Point): Point {
  return { x: point.x * transform.k + transform.x, y: point.y * transform.k + transform.y };
}

export function toWorld(transform: Transform, point: Point): Point {
  return { x: (point.x - transform.x) / transform.k, y: (point.y - transform.y) / transform.k };
}

export function columnPixels(transform: Transform): number {
  return COLUMN_WIDTH * transform.k;
}

/** First and last column with a pixel in the plot; first > last when there is none. */
export function visibleColumns(transform: Transform, grid: Grid, plot: Plot): [number, number] {
  const column = (x: number) => (x - transform.x) / (COLUMN_WIDTH * transform.k);
  return [
    Math.max(0, Math.ceil(column(plot.left) - 0.5)),
    Math.min(grid.nTokens - 1, Math.floor(column(plot.left + plot.width) + 0.5)),
  ];
}

export function inPlot(plot: Plot, point: Point): boolean {
  return (
    point.x >= plot.left &&
    point.x <= plot.left + plot.width &&
    point.y >= plot.top &&
    point.y <= plot.top + plot.height
  );
}
