// Paints the legend below a saved picture: on the page, it is HTML.

import { legendCount, legendItems, type LegendItem } from "../legend";
import { DASH, edgeOpacity, edgeWidth, effectShade } from "../scale";
import { effectColor } from "../theme";
import type { Pen } from "./pen";
import { font, type Scene } from "./scene";

export const LEGEND_LINE = 22;
const SIZE = 11;
const GAP = 18;
const MARK = 26;
const SAMPLE = 14;
const SCALE_STEPS = 48;
const SCALE_WIDTH = 96;
const MUTED = 0.8;

/** One line of the legend, from left to right. */
interface Placed {
  item: LegendItem | string;
  x: number;
  line: number;
}

/** Puts the entries into lines that are at most `width` wide. */
export function placeLegend(
  pen: Pen,
  scene: Scene,
  nStrongest: number | null,
  width: number,
): { placed: Placed[]; height: number } {
  pen.font = font(SIZE, scene.theme.font);
  const placed: Placed[] = [];
  let [x, line] = [GAP, 0];
  for (const item of [...legendItems(scene.graph, scene.coloring), legendCount(scene.graph, nStrongest)]) {
    const needed = itemWidth(pen, item);
    if (x > GAP && x + needed > width - GAP) [x, line] = [GAP, line + 1];
    placed.push({ item, x, line });
    x += needed + GAP;
  }
  return { placed, height: (line + 1) * LEGEND_LINE };
}

export function paintLegend(pen: Pen, scene: Scene, placed: readonly Placed[], top: number): void {
  pen.font = font(SIZE, scene.theme.font);
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  for (const { item, x, line } of placed) paintItem(pen, scene, item, x, top + (line + 0.5) * LEGEND_LINE);
}

function markWidth(pen: Pen, item: LegendItem): number {
  if (item.mark === "weights") {
    return item.weights.reduce((sum, weight) => sum + SAMPLE + 10 + pen.measureText(String(weight)).width, 0);
  }
  if (item.mark === "scale") {
    return SCALE_WIDTH + 12 + pen.measureText(item.least).width + pen.measureText(item.most).width;
  }
  return MARK;
}

function itemWidth(pen: Pen, item: LegendItem | string): number {
  if (typeof item === "string") return pen.measureText(item).width;
  return markWidth(pen, item) + 5 + pen.measureText(item.label).width;
}

function paintItem(pen: Pen, scene: Scene, item: LegendItem | string, x: number, y: number): void {
  const { theme } = scene;
  const write = (text: string, at: number) => {
    pen.fillStyle = theme.text;
    pen.globalAlpha = MUTED;
    pen.fillText(text, at, y);
    pen.globalAlpha = 1;
  };
  const line = (from: number, length: number, color: string, width: number, alpha = 1) => {
    pen.strokeStyle = color;
    pen.lineWidth = width;
    pen.globalAlpha = alpha;
    pen.beginPath();
    pen.moveTo(from, y);
    pen.lineTo(from + length, y);
    pen.stroke();
    pen.globalAlpha = 1;
  };
  if (typeof item === "string") {
    write(item, x);
    return;
  }
  const isLabelFirst = item.mark === "weights";
  const mark = isLabelFirst ? x + pen.measureText(item.label).width + 7 : x;
  write(item.label, isLabelFirst ? x : x + markWidth(pen, item) + 5);
  switch (item.mark) {
    case "edge":
      line(x, MARK, theme.edge[item.key], 3);
      pen.fillStyle = theme.edge.ffn;
      if (item.key === "ffn") pen.fillRect(x + 8, y - 5, 10, 10);
      return;
    case "weights": {
      let at = mark;
      for (const weight of item.weights) {
        line(at, SAMPLE, theme.text, edgeWidth(weight), edgeOpacity(weight));
        write(String(weight), at + SAMPLE + 4);
        at += SAMPLE + 10 + pen.measureText(String(weight)).width;
      }
      return;
    }
    case "scale": {
      write(item.least, x);
      const start = x + pen.measureText(item.least).width + 6;
      for (let step = 0; step < SCALE_STEPS; step++) {
        pen.fillStyle = effectColor(theme, effectShade((2 * (step + 0.5)) / SCALE_STEPS - 1, 1));
        pen.fillRect(start + (step * SCALE_WIDTH) / SCALE_STEPS, y - 5, SCALE_WIDTH / SCALE_STEPS, 10);
      }
      write(item.most, start + SCALE_WIDTH + 6);
      return;
    }
    case "neutral":
      line(x, MARK, effectColor(theme, 0), 3, 0.3);
      return;
    case "only":
      pen.setLineDash([...DASH]);
      line(x, MARK, theme.text, 3);
      pen.setLineDash([]);
      return;
    case "role":
      pen.setLineDash(item.role === "continuation" ? [4, 2] : []);
      line(x, MARK, theme.role[item.role], 4);
      pen.setLineDash([]);
      return;
    case "special":
      pen.strokeStyle = theme.text;
      pen.lineWidth = 0.75;
      pen.strokeRect(x + 4, y - 5, MARK - 8, 10);
  }
}
