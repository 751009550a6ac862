// The whole graph in a corner while the view holds only a part of it: a bitmap drawn once for each graph, and a frame that
// follows the view. Dragging moves the view.

import type { Graph } from "./graph";
import { gridBox, rowCount, type Point } from "./layout";
import { paintEdges } from "./paint/edges";
import { paintGround } from "./paint/margins";
import type { Scene } from "./paint/scene";
import type { Coloring } from "./scale";
import type { Theme } from "./theme";
import { toGrid, toScreen, type Transform } from "./view";

export const MINIMAP = { width: 150, height: 92 };
/** On a smaller canvas it would cover too much of what it helps to find. */
const MIN_CANVAS = { width: 420, height: 260 };
const GAP = 6;
/** A view that leaves out less than this share of the graph's width or height still holds the whole of it. */
const SLACK = 0.06;
const LEAST_FRAME = 4;

export interface Rectangle {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** The whole grid in the bitmap. */
export function minimapTransform({ nTokens, nLayers }: Pick<Graph, "nTokens" | "nLayers">): Transform {
  const box = gridBox({ nTokens, nLayers });
  const kx = MINIMAP.width / nTokens;
  const ky = MINIMAP.height / rowCount(nLayers);
  return { kx, ky, x: -kx * box.minX, y: -ky * box.minY };
}

/** The part of the minimap that is in view; null when all of it is. */
export function frameOf(scene: Pick<Scene, "graph" | "plot" | "transform">): Rectangle | null {
  const { graph, plot, transform } = scene;
  const box = gridBox(graph);
  const start = toScreen(transform, { x: box.minX, y: box.minY });
  const end = toScreen(transform, { x: box.maxX, y: box.maxY });
  const leftOut = (before: number, after: number, size: number) => (Math.max(0, before) + Math.max(0, after)) / size;
  const isWhole =
    leftOut(plot.left - start.x, end.x - plot.left - plot.width, end.x - start.x) < SLACK &&
    leftOut(plot.top - start.y, end.y - plot.top - plot.height, end.y - start.y) < SLACK;
  if (isWhole) return null;
  const map = minimapTransform(graph);
  const first = toScreen(map, toGrid(transform, { x: plot.left, y: plot.top }));
  const last = toScreen(map, toGrid(transform, { x: plot.left + plot.width, y: plot.top + plot.height }));
  const span = (from: number, to: number, size: number): [number, number] => {
    const low = Math.min(size - LEAST_FRAME, Math.max(0, from));
    return [low, Math.max(LEAST_FRAME, Math.min(size, to) - low)];
  };
  const [left, width] = span(first.x, last.x, MINIMAP.width);
  const [top, height] = span(first.y, last.y, MINIMAP.height);
  return { left, top, width, height };
}

export class Minimap {
  private drawn: { graph: Graph; theme: Theme; coloring: Coloring } | null = null;

  constructor(
    private readonly element: HTMLElement,
    private readonly canvas: HTMLCanvasElement,
    private readonly frame: HTMLElement,
    signal: AbortSignal,
    onMove: (centre: Point) => void,
  ) {
    const move = (event: PointerEvent) => {
      if (event.type === "pointermove" && event.buttons === 0) return;
      event.preventDefault();
      if (this.drawn === null) return;
      const box = canvas.getBoundingClientRect();
      const at = { x: event.clientX - box.left, y: event.clientY - box.top };
      onMove(toGrid(minimapTransform(this.drawn.graph), at));
    };
    element.addEventListener(
      "pointerdown",
      (event) => {
        element.setPointerCapture(event.pointerId);
        move(event);
      },
      { signal },
    );
    element.addEventListener("pointermove", move, { signal });
  }

  /** Shows where the view is, or nothing when it holds the whole graph. */
  follow(scene: Scene): void {
    const frame = frameOf(scene);
    const isShown = frame !== null && scene.width >= MIN_CANVAS.width && scene.height >= MIN_CANVAS.height;
    this.element.hidden = !isShown;
    if (!isShown) return;
    this.draw(scene);
    this.element.style.transform = `translate(${scene.plot.left + GAP}px, ${scene.plot.top + GAP}px)`;
    Object.assign(this.frame.style, {
      transform: `translate(${frame.left}px, ${frame.top}px)`,
      width: `${frame.width}px`,
      height: `${frame.height}px`,
    });
  }

  private draw(scene: Scene): void {
    const { graph, theme, coloring } = scene;
    const { drawn } = this;
    if (drawn?.graph === graph && drawn.theme === theme && drawn.coloring === coloring) return;
    const context = this.canvas.getContext("2d");
    if (context === null) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(MINIMAP.width * ratio);
    this.canvas.height = Math.round(MINIMAP.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const plot = { left: 0, top: 0, ...MINIMAP };
    const small: Scene = { ...scene, ...MINIMAP, plot, transform: minimapTransform(graph), detail: "still" };
    paintGround(context, small);
    paintEdges(context, small);
    this.drawn = { graph, theme, coloring };
  }
}
