// The graph as a picture to keep, of the whole or of what is in view: PNG or SVG, by the painters of the page.

import { arrange, LEFT_MARGIN, plotFor, RIGHT_MARGIN, TOP_MARGIN } from "./arrange";
import { labelMargin, labelMode } from "./labels";
import { rowCount } from "./layout";
import { paintBase } from "./paint/base";
import { paintLegend, placeLegend } from "./paint/legend";
import { paintOverlay, type Attention } from "./paint/overlay";
import { describeTargets } from "./names";
import type { Pen } from "./paint/pen";
import type { Scene } from "./paint/scene";
import { SvgPen } from "./paint/svg";
import { visibleText } from "./text";
import { fitTransform, type Plot } from "./view";

export type Scope = "whole" | "view";
export type Format = "png" | "svg";

/** Pixels of a PNG for each of the page. */
const PNG_SCALE = 2;
/** What every current browser's canvas holds: pixels on a side, and in all. */
const MAX_SIDE = 16_384;
const MAX_PIXELS = 2 ** 27;
/** Columns and rows of a whole graph are at least so large, however many there are. */
const MIN_COLUMN = 18;
const MIN_ROW = 12;
const LEGEND_GAP = 6;
const NAME_LENGTH = 48;

/** The largest scale up to `wanted` at which a bitmap of this size can be made. */
export function pngScale(width: number, height: number, wanted = PNG_SCALE): number {
  return Math.min(wanted, MAX_SIDE / Math.max(width, height), Math.sqrt(MAX_PIXELS / (width * height)));
}

/** The scene of the whole graph at a size at which its tokens can be read, or the one on the page. */
export function pictureScene(scene: Scene, scope: Scope): Scene {
  const still: Scene = { ...scene, detail: "picture", matches: new Set(), currentMatch: null };
  if (scope === "view") return still;
  const { graph, labels } = scene;
  const fitted = arrange(scene.width, scene.height, graph, labels.widths, labels.lane);
  const kx = Math.max(fitted.fitted.kx, MIN_COLUMN);
  const ky = Math.max(fitted.fitted.ky, MIN_ROW);
  const mode = labelMode(labels.widths, kx);
  const below = labels.lane + labelMargin(mode, labels.widths);
  const width = Math.ceil(LEFT_MARGIN + Math.max(kx * graph.nTokens, scene.width / 2) + RIGHT_MARGIN);
  const height = Math.ceil(TOP_MARGIN + ky * rowCount(graph.nLayers) + below);
  const plot: Plot = plotFor(width, height, mode, labels.widths, labels.lane);
  const centred = fitTransform(graph, plot);
  const transform = { kx, ky, y: centred.y, x: plot.left + plot.width / 2 - (kx * (graph.nTokens - 1)) / 2 };
  return { ...still, width, height, plot, transform, labels: { ...labels, mode } };
}

/** A file name from what the graph is about: letters and digits of its tokens, and the target, or the first and the last of several. */
export function pictureName(tokens: readonly string[], targets: readonly number[], format: Format): string {
  const words = Array.from(tokens.join(""), (char) => (/[\p{L}\p{M}\p{N}]/u.test(char) ? char : "-")).join("");
  const short = Array.from(words.replace(/-+/g, "-").replace(/^-/, "")).slice(0, NAME_LENGTH).join("");
  const ends = targets.length > 1 ? [targets[0], targets[targets.length - 1]] : targets;
  return `${["llm-tt", short.replace(/-$/, ""), ...ends.map(String)].filter((part) => part !== "").join("-")}.${format}`;
}

export function svgPicture(
  scene: Scene,
  attention: Attention,
  measure: (font: string, text: string) => number,
): { text: string; width: number; height: number } {
  const pen = new SvgPen(measure);
  const height = heightWithLegend(new SvgPen(measure), scene);
  paintPicture(pen, scene, attention, height);
  const { tokens, target, targets } = scene.graph.header;
  const title = `Information flow to ${describeTargets(targets)}${targets.length > 1 ? "" : `, ${visibleText(tokens[target])}`}`;
  return { text: pen.document(scene.width, height, title), width: scene.width, height };
}

/** Draws into a canvas that it sizes; returns the scale, which is less than 2 when the canvas would not hold as much. */
export function pngPicture(canvas: HTMLCanvasElement, scene: Scene, attention: Attention): number {
  const measuring = canvas.getContext("2d");
  if (measuring === null) throw new Error("this browser gives no canvas to draw a picture on");
  const height = heightWithLegend(measuring, scene);
  const scale = pngScale(scene.width, height);
  canvas.width = Math.floor(scene.width * scale);
  canvas.height = Math.floor(height * scale);
  measuring.setTransform(scale, 0, 0, scale, 0, 0);
  paintPicture(measuring, scene, attention, height);
  return scale;
}

/** The count of painted edges lengthens the legend; room for it is kept in any case. */
function heightWithLegend(pen: Pen, scene: Scene): number {
  return Math.ceil(scene.height + LEGEND_GAP + placeLegend(pen, scene, scene.graph.nEdges, scene.width).height);
}

function paintPicture(pen: Pen, scene: Scene, attention: Attention, height: number): void {
  pen.fillStyle = scene.theme.background;
  pen.fillRect(0, 0, scene.width, height);
  const { count, weakest } = paintBase(pen, scene);
  const nStrongest = Object.values(weakest).some((weight) => weight > 0) ? count : null;
  paintOverlay(pen, scene, { ...attention, hover: null, focus: null }, null);
  const { placed } = placeLegend(pen, scene, nStrongest, scene.width);
  paintLegend(pen, scene, placed, scene.height + LEGEND_GAP);
}
