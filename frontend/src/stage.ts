// The two canvases and what moves them: size, zoom and pan, pointer. It knows where things are on the screen; what the
// user selected or searched is told to it from outside.

import { arrange, plotFor } from "./arrange";
import { edgeKey, findEdge, isShown, type Graph } from "./graph";
import { listenToGestures } from "./gestures";
import { EdgeIndex, hitNode, sameHit, type Hit } from "./hit";
import { LABEL_ANGLE, LABEL_SIZE, ROLE_LANE } from "./labels";
import { columnAt, curvePoint, edgeCurve, newCurve, nodePoint, type Point } from "./layout";
import { nodeExists, parseNodeName, type NodeRef } from "./names";
import { Minimap } from "./minimap";
import { paintBase, paintMoving, type Painting } from "./paint/base";
import { ALL_PAINTED, type PaintedEdges } from "./paint/edges";
import { columnX, selectorY } from "./paint/margins";
import { paintOverlay, type Attention } from "./paint/overlay";
import { font, nodeRadius, type Labels, type Scene } from "./paint/scene";
import { pictureName, pictureScene, pngPicture, svgPicture, type Format, type Scope } from "./picture";
import { roleSpans } from "./roles";
import type { Coloring } from "./scale";
import type { Selection } from "./selection";
import { visibleText } from "./text";
import type { Theme } from "./theme";
import {
  bringIntoView,
  curveToScreen,
  fitTransform,
  inPlot,
  keepInSight,
  toGrid,
  toScreen,
  withinWidth,
  zoomLimits,
  zoomTo,
  type Plot,
  type Scale,
  type Transform,
} from "./view";

/** Pixels within which the pointer is on a thing. */
const NODE_SLACK = 3;
const MIN_NODE_REACH = 5;
const EDGE_REACH = 5;
/** A node's reach never covers more of its cell than this, so that a background is left to click on. */
const MAX_CELL_SHARE = 0.45;

/** With more edges than this on the page, it is painted anew only when it has come to rest. */
const HEAVY = 1500;
/** Milliseconds without a gesture after which the page is at rest. */
const REST = 130;
/** A painting is not stretched further than this, either way: beyond, the strongest edges alone are painted. */
const MAX_STRETCH = 3;

const NOWHERE: Point = { x: 0, y: 0 };
/** Where along an edge (0 to 1) a click on it is tried. */
const PROBES = [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.15, 0.85];

export interface StageEvents {
  onHover(hit: Hit | null, at: Point): void;
  onClick(hit: Hit | null): void;
  onPainted(edges: PaintedEdges): void;
  onDraw(milliseconds: number, isFull: boolean): void;
  onError(error: unknown): void;
}

/** Something that can be located: a selection, or the selector above a token. */
export type Locatable = Selection | { type: "target"; position: number };

interface Arranged {
  plot: Plot;
  /** The scale at which the graph was fitted; zooming goes on from it. */
  fitted: Scale;
  labels: Labels;
}

export class Stage {
  private graph: Graph | null = null;
  private arranged: Arranged | null = null;
  private theme: Theme | null = null;
  private edgeIndex: EdgeIndex | null = null;
  private attention: Attention = { hover: null, selection: null, focus: null };
  private matches: ReadonlySet<number> = new Set();
  private currentMatch: number | null = null;
  private coloring: Coloring = "contribution";
  private painted: PaintedEdges = ALL_PAINTED;
  private transform: Transform = { kx: 1, ky: 1, x: 0, y: 0 };
  private isFitted = true;
  private width = 0;
  private height = 0;
  private hover: Hit | null = null;
  /** The column that the pointer is in. */
  private column: number | null = null;
  private scheduled = 0;
  private baseIsStale = true;
  /** The view that the canvas was last fully painted for; null when something else than the view has changed since. */
  private fullView: Transform | null = null;
  /** A copy of that, taken when the page begins to move. */
  private painting: Painting | null = null;
  private rest: number | null = null;
  private readonly minimap: Minimap;
  private readonly resizes: ResizeObserver;
  private readonly listeners = new AbortController();

  constructor(
    private readonly base: HTMLCanvasElement,
    private readonly overlay: HTMLCanvasElement,
    minimap: { element: HTMLElement; canvas: HTMLCanvasElement; frame: HTMLElement },
    private readonly events: StageEvents,
  ) {
    this.minimap = new Minimap(minimap.element, minimap.canvas, minimap.frame, this.listeners.signal, (centre) => {
      this.showAround(centre);
    });
    this.resizes = new ResizeObserver(() => {
      this.resize();
    });
    this.resizes.observe(overlay);
    this.listen();
    void document.fonts.ready.then(() => {
      if (!this.listeners.signal.aborted) this.arrange();
    });
  }

  destroy(): void {
    this.listeners.abort();
    this.resizes.disconnect();
    cancelAnimationFrame(this.scheduled);
    if (this.rest !== null) clearTimeout(this.rest);
  }

  /** Shows a graph; the view stays as it is unless `fit`. */
  setGraph(graph: Graph, fit: boolean): void {
    const sameSize = graph.nTokens === this.graph?.nTokens && graph.nLayers === this.graph.nLayers;
    this.graph = graph;
    this.edgeIndex = null;
    this.setHover(null, NOWHERE);
    if (fit || !sameSize) this.fit();
    else this.redraw();
  }

  setTheme(theme: Theme): void {
    this.theme = theme;
    this.arrange();
  }

  setAttention(attention: Attention): void {
    this.attention = attention;
    this.redrawOverlay();
  }

  setMatches(matches: ReadonlySet<number>, current: number | null): void {
    this.matches = matches;
    this.currentMatch = current;
    this.redraw();
  }

  setColoring(coloring: Coloring): void {
    this.coloring = coloring;
    this.redraw();
  }

  fit(): void {
    this.isFitted = true;
    this.arrange();
  }

  zoomBy(factor: number): void {
    if (this.arranged === null) return;
    const { plot } = this.arranged;
    const middle = { x: plot.left + plot.width / 2, y: plot.top + plot.height / 2 };
    this.beginMoving();
    this.zoomFrom(this.transform, middle, middle, factor);
  }

  /** Pans by so many pixels. */
  panBy(dx: number, dy: number): void {
    this.beginMoving();
    this.zoomFrom(this.transform, NOWHERE, { x: dx, y: dy }, 1);
  }

  /** A picture as a file, and at how many pixels for each of the page it was drawn; null before there is anything to draw. */
  async picture(scope: Scope, format: Format): Promise<{ file: Blob; name: string; scale: number } | null> {
    const shown = this.scene();
    if (shown === null) return null;
    const scene = pictureScene(shown, scope);
    const { tokens, targets } = scene.graph.header;
    const name = pictureName(tokens, targets, format);
    const canvas = document.createElement("canvas");
    if (format === "svg") {
      const context = canvas.getContext("2d");
      const measure = (family: string, text: string) => {
        if (context === null) return 0;
        context.font = family;
        return context.measureText(text).width;
      };
      const { text } = svgPicture(scene, this.attention, measure);
      return { file: new Blob([text], { type: "image/svg+xml" }), name, scale: 1 };
    }
    const scale = pngPicture(canvas, scene, this.attention);
    const file = await new Promise<Blob | null>((resolve) => {
      canvas.toBlob(resolve, "image/png");
    });
    if (file === null) throw new Error("this browser could not write the picture; save it as SVG");
    return { file, name, scale };
  }

  /** Pans just far enough to see a node. */
  revealNode(node: NodeRef): void {
    if (this.graph === null || this.arranged === null || this.isFitted) return;
    this.beginMoving();
    this.moveTo(bringIntoView(this.transform, nodePoint(node), this.arranged.plot, false));
  }

  /** Pans a column to the middle, unless it is in view already. */
  revealColumn(position: number): void {
    if (this.arranged === null) return;
    const { plot } = this.arranged;
    const { y } = toGrid(this.transform, { x: 0, y: plot.top + plot.height / 2 });
    const point = { x: position, y };
    if (!inPlot(plot, toScreen(this.transform, point))) this.moveTo(bringIntoView(this.transform, point, plot, true));
  }

  /** Where a thing can be clicked, in pixels of the canvas; null when it is not drawn or out of view. */
  locate(thing: Locatable): Point | null {
    const scene = this.scene();
    if (scene === null) return null;
    const { graph, plot } = scene;
    if (thing.type === "target") {
      const x = columnX(scene, thing.position);
      return inPlot(plot, { x, y: plot.top }) ? { x, y: selectorY(scene) } : null;
    }
    let point: Point | null = null;
    if (thing.type === "node") {
      const node = parseNodeName(thing.node);
      if (nodeExists(node, graph.nLayers, graph.nTokens)) point = toScreen(this.transform, nodePoint(node));
    } else {
      const edge = findEdge(graph, thing);
      if (edge >= 0) point = this.pointOnEdge(scene, edge);
    }
    return point !== null && inPlot(plot, point) ? point : null;
  }

  view(): Transform {
    return this.transform;
  }

  private showAround(centre: Point): void {
    if (this.graph === null || this.arranged === null) return;
    const { plot } = this.arranged;
    this.beginMoving();
    this.moveTo(keepInSight(bringIntoView(this.transform, centre, plot, true), this.graph, plot));
  }

  /** Until nothing has moved for a moment, frames have to be cheap rather than complete. */
  private beginMoving(): void {
    if (this.rest !== null) clearTimeout(this.rest);
    this.rest = window.setTimeout(() => {
      this.rest = null;
      if (this.painting === null) return;
      this.baseIsStale = true;
      this.redrawOverlay();
    }, REST);
  }

  /** A point at which the edge is the one under the pointer, if others do not cover all of it. */
  private pointOnEdge({ graph }: Scene, edge: number): Point {
    const curve = newCurve();
    edgeCurve(graph, edge, curve);
    curveToScreen(this.transform, curve);
    const points = PROBES.map((t) => curvePoint(curve, t));
    return points.find((point) => sameHit(this.hitAt(point), { type: "edge", edge })) ?? points[0];
  }

  private moveTo(transform: Transform): void {
    this.isFitted = false;
    this.applyTransform(transform);
  }

  /** Moves and zooms a view that was taken earlier, within limits. */
  private zoomFrom(view: Transform, from: Point, to: Point, factor: number): void {
    if (this.graph === null || this.arranged === null) return;
    const { plot, fitted } = this.arranged;
    const [least, most] = zoomLimits(this.graph, plot);
    // A view may lie beyond the limits, after a change of size: it can stay there.
    const kx = Math.min(Math.max(most, view.kx), Math.max(Math.min(least, view.kx), factor * view.kx));
    this.moveTo(keepInSight(zoomTo(view, kx, fitted, from, to), this.graph, plot));
  }

  private applyTransform(transform: Transform): void {
    this.transform = transform;
    this.setHover(null, NOWHERE);
    this.baseIsStale = true;
    this.redrawOverlay();
  }

  /** Margins and, while the view is a fitted one, proportions and zoom: from the size of the canvas and the tokens. */
  private arrange(): void {
    if (this.graph === null || this.theme === null || this.width === 0) return;
    const texts = this.graph.header.tokens.map(visibleText);
    const widths = this.measure(texts, this.theme);
    const lane = roleSpans(this.graph.header.roles).length > 0 ? ROLE_LANE : 0;
    if (this.isFitted || this.arranged === null) {
      const { plot, fitted, mode } = arrange(this.width, this.height, this.graph, widths, lane);
      this.arranged = { plot, fitted, labels: { texts, widths, mode, lane } };
    } else {
      const { fitted, labels } = this.arranged;
      const plot = plotFor(this.width, this.height, labels.mode, widths, lane);
      this.arranged = { plot, fitted, labels: { texts, widths, mode: labels.mode, lane } };
    }
    this.fullView = null;
    this.applyTransform(this.isFitted ? fitTransform(this.graph, this.arranged.plot) : this.transform);
  }

  private measure(texts: readonly string[], theme: Theme): Float32Array {
    const context = this.base.getContext("2d");
    if (context === null) return new Float32Array(texts.length);
    context.font = font(LABEL_SIZE, theme.codeFont, 700);
    return Float32Array.from(texts, (text) => context.measureText(text).width);
  }

  private resize(): void {
    this.width = this.overlay.clientWidth;
    this.height = this.overlay.clientHeight;
    this.arrange();
  }

  private listen(): void {
    const { signal } = this.listeners;
    const at = (event: MouseEvent): Point => ({ x: event.offsetX, y: event.offsetY });
    listenToGestures(
      this.overlay,
      signal,
      () => this.transform,
      (view, from, to, factor) => {
        this.beginMoving();
        this.zoomFrom(view, from, to, factor);
      },
    );
    this.overlay.addEventListener(
      "pointermove",
      (event) => {
        if (event.buttons === 0) this.hoverAt(at(event));
      },
      { signal },
    );
    this.overlay.addEventListener(
      "pointerleave",
      (event) => {
        this.setHover(null, at(event));
      },
      { signal },
    );
    this.overlay.addEventListener(
      "click",
      (event) => {
        this.events.onClick(this.hitAt(at(event)));
      },
      { signal },
    );
    this.overlay.addEventListener(
      "dblclick",
      (event) => {
        if (this.hitAt(at(event)) === null) this.fit();
      },
      { signal },
    );
  }

  private hoverAt(point: Point): void {
    const hit = this.hitAt(point);
    this.setHover(hit, point, this.columnUnder(point, hit));
  }

  /** The column that the pointer is in, whatever it is on. */
  private columnUnder(point: Point, hit: Hit | null): number | null {
    if (hit?.type === "node") return hit.node.position;
    if (this.graph === null || this.arranged === null || !withinWidth(this.arranged.plot, point)) return null;
    return columnAt(this.graph, toGrid(this.transform, point).x);
  }

  private setHover(hit: Hit | null, at: Point, column: number | null = null): void {
    if (column !== this.column) {
      this.column = column;
      this.redrawOverlay();
    }
    if (sameHit(hit, this.hover)) return;
    this.hover = hit;
    this.overlay.style.cursor = hit === null ? "" : "pointer";
    this.events.onHover(hit, at);
  }

  private hitAt(point: Point): Hit | null {
    const scene = this.scene();
    if (scene === null) return null;
    const { plot, graph, labels } = scene;
    const { x } = toGrid(this.transform, point);
    if (!withinWidth(plot, point)) return null;
    if (point.y < plot.top) {
      const position = columnAt(graph, x);
      return position === null ? null : { type: "target", position };
    }
    const below = point.y - plot.top - plot.height;
    if (below > 0) {
      const beside = Math.max(0, below - labels.lane);
      const shift = labels.mode === "tilted" ? beside / Math.tan(LABEL_ANGLE) / this.transform.kx : 0;
      const position = columnAt(graph, x + shift);
      return position === null ? null : { type: "node", node: { kind: "X", layer: 0, position } };
    }
    const cell = Math.min(this.transform.kx, this.transform.ky);
    const reach = Math.min(Math.max(MIN_NODE_REACH, nodeRadius(scene) + NODE_SLACK), MAX_CELL_SHARE * cell);
    const node = hitNode(graph, this.transform, point, reach);
    if (node !== null) return { type: "node", node };
    this.edgeIndex ??= new EdgeIndex(graph);
    const isDrawn = (edge: number) =>
      isShown(graph, edge) && graph.arrays.weight[edge] >= this.painted.weakest[edgeKey(graph, edge)];
    const edge = this.edgeIndex.hit(this.transform, point, EDGE_REACH, isDrawn);
    return edge === null ? null : { type: "edge", edge };
  }

  private scene(): Scene | null {
    if (this.graph === null || this.arranged === null || this.theme === null) return null;
    return {
      graph: this.graph,
      ...this.arranged,
      transform: this.transform,
      width: this.width,
      height: this.height,
      theme: this.theme,
      coloring: this.coloring,
      detail: "still",
      matches: this.matches,
      currentMatch: this.currentMatch,
    };
  }

  private redraw(): void {
    this.fullView = null;
    this.baseIsStale = true;
    this.redrawOverlay();
  }

  private redrawOverlay(): void {
    if (this.scheduled !== 0) return;
    this.scheduled = requestAnimationFrame(() => {
      this.scheduled = 0;
      try {
        this.draw();
      } catch (error) {
        this.events.onError(error);
      }
    });
  }

  private draw(): void {
    const scene = this.scene();
    const base = this.context(this.base);
    const overlay = this.context(this.overlay);
    if (scene === null || base === null || overlay === null) return;
    const start = performance.now();
    const wasStale = this.baseIsStale;
    const painting = wasStale ? this.paintingToMove() : null;
    if (wasStale) {
      this.baseIsStale = false;
      base.clearRect(0, 0, scene.width, scene.height);
      if (painting === null) {
        this.painted = paintBase(base, scene);
        this.fullView = this.transform;
        this.painting = null;
        this.events.onPainted(this.painted);
      } else if (isStretched(painting.transform, this.transform)) {
        paintBase(base, { ...scene, detail: "moving" });
      } else {
        paintMoving(base, scene, painting);
      }
      this.minimap.follow(scene);
    }
    overlay.clearRect(0, 0, scene.width, scene.height);
    paintOverlay(overlay, scene, this.attention, this.column);
    if (wasStale) this.events.onDraw(performance.now() - start, painting === null);
  }

  /** The painting to move instead of painting all anew; null at rest and of few edges. */
  private paintingToMove(): Painting | null {
    if (this.rest === null || this.fullView === null || this.painted.count < HEAVY) return null;
    if (this.painting === null) {
      const image = document.createElement("canvas");
      image.width = this.base.width;
      image.height = this.base.height;
      image.getContext("2d")?.drawImage(this.base, 0, 0);
      this.painting = { image, transform: this.fullView };
    }
    return this.painting;
  }

  /** The context of a canvas with as many pixels as the screen shows of it. */
  private context(canvas: HTMLCanvasElement): CanvasRenderingContext2D | null {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.width * ratio);
    const height = Math.round(this.height * ratio);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d");
    context?.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }
}

/** Whether a painting of one view is too coarse or too small to stand for another. */
function isStretched(painted: Transform, view: Transform): boolean {
  const stretch = view.kx / painted.kx;
  return stretch > MAX_STRETCH || stretch < 1 / MAX_STRETCH;
}
