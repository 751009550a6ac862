import { describe, expect, it } from "vitest";

import { arrange } from "../src/arrange";
import { frameOf, MINIMAP, minimapTransform } from "../src/minimap";
import { gridBox } from "../src/layout";
import type { FrameHeader } from "../src/frame";
import { withoutFirst, type Graph } from "../src/graph";
import type { Scene } from "../src/paint/scene";
import { escapeXml, SvgPen } from "../src/paint/svg";
import { pictureName, pictureScene, pngScale, svgPicture } from "../src/picture";
import { visibleText } from "../src/text";
import { ROLES_ON_LIGHT, type Theme } from "../src/theme";
import { fitTransform, toScreen, zoomTo } from "../src/view";
import { makeGraph, type Edge } from "./example";

const THEME: Theme = {
  text: "#31333f",
  background: "#ffffff",
  band: "#f0f2f6",
  font: '"Source Sans", sans-serif',
  codeFont: "monospace",
  edge: { attention: "#000001", ffn: "#000002", residual: "#000003" },
  effect: { raises: "#0000ff", neutral: "#808080", lowers: "#ff8000" },
  selection: "#c2187f",
  role: ROLES_ON_LIGHT,
  isDark: false,
};
const NOTHING = { hover: null, selection: null, focus: null };
const measure = (_: string, text: string) => 7 * text.length;
const EDGES: Edge[] = [
  [0, 1, 0, 2, 0.2, { 3: 0.2 }],
  [0, 1, 1, 2, 0.2, { 3: 0.2 }],
  [1, 1, 2, 2, 0.6],
  [3, 1, 2, 2, 0.4],
];

function sceneOf(graph: Graph, width = 600, height = 400): Scene {
  const texts = graph.header.tokens.map(visibleText);
  const widths = Float32Array.from(texts, (text) => 7 * text.length);
  const lane = graph.header.roles === null ? 0 : 19;
  const { plot, mode } = arrange(width, height, graph, widths, lane);
  return {
    graph,
    plot,
    width,
    height,
    transform: fitTransform(graph, plot),
    theme: THEME,
    coloring: "contribution",
    detail: "still",
    labels: { texts, widths, mode, lane },
    matches: new Set(),
    currentMatch: null,
  };
}

const svg = (edges: Edge[], header: Partial<FrameHeader> = {}) =>
  svgPicture(pictureScene(sceneOf(makeGraph(edges, header)), "whole"), NOTHING, measure).text;
const count = (text: string, part: string | RegExp) => text.split(part).length - 1;

describe("an SVG", () => {
  it("has an edge's curve where the canvas has it", () => {
    const scene = sceneOf(makeGraph([[1, 1, 2, 2, 0.6]]));
    const { text } = svgPicture(pictureScene(scene, "view"), NOTHING, measure);
    const from = toScreen(scene.transform, { x: 2, y: -2 });
    const to = toScreen(scene.transform, { x: 2, y: -3 });
    const [x, y0, y1] = [from.x, from.y, to.y].map((value) => String(Number(value.toFixed(2))));
    expect(text).toContain(`d="M${x} ${y0}L${x} ${y1}" fill="none" stroke="#000003"`);
  });

  it("keeps text as text, escaped", () => {
    const text = svg(EDGES, { tokens: ["<script>alert(1)</script>", "a&b", "שלום\u0007\ud800"] });
    expect(text).not.toContain("<script>");
    expect(text).toContain(">&lt;scrip");
    expect(text).toContain(">a&amp;b</text>");
    expect(text).toContain("שלום\\x07\ufffd</text>");
    expect(text).toContain('font-family="&quot;Source Sans&quot;, sans-serif"');
  });

  it("has what the page has: bands, special tokens, the legend", () => {
    const text = svg(EDGES, { roles: ["special", "user", "continuation"] });
    expect(text).toContain(`stroke="${ROLES_ON_LIGHT.user}"`);
    expect(text).toMatch(/stroke="#d615b0" stroke-width="4" stroke-dasharray="4 2"/);
    expect(text).toMatch(/font-style="italic"[^>]*>a<\/text>/);
    for (const label of ["attention", "residual", "FFN", "contribution", "special", "4 edges above 0.04"]) {
      expect(text).toContain(`>${label}</text>`);
    }
  });

  it("marks several targets alike: a tinted column, a full triangle and a bold label each", () => {
    const written = (targets: number[]) => svg(EDGES, { targets, tokens: ["aa", "bb", "cc"] });
    const bold = (text: string) =>
      [...text.matchAll(/font-weight="700"[^>]*>([a-c]+)<\/text>/g)].map((found) => found[1]);
    const tinted = (text: string) => count(text, 'fill-opacity="0.06"');
    expect([bold(written([2])), tinted(written([2]))]).toEqual([["cc"], 1]);
    expect([bold(written([1, 2])), tinted(written([1, 2]))]).toEqual([["bb", "cc"], 2]);
    const triangles = (text: string, fill: string) =>
      [...text.matchAll(/<path d="((?:M[^MZ]*L[^MZ]*L[^MZ]*Z)+)"([^>]*)/g)]
        .filter((found) => found[2].includes('fill="none"') === (fill === "none"))
        .map((found) => count(found[1], "Z"));
    expect([triangles(written([2]), "full"), triangles(written([2]), "none")]).toEqual([[1], [2]]);
    expect([triangles(written([1, 2]), "full"), triangles(written([1, 2]), "none")]).toEqual([[2], [1]]);
    expect(written([1, 2])).toContain("<title>Information flow to tokens 1 to 2</title>");
    expect(written([2])).toContain("<title>Information flow to token 2, cc</title>");
  });

  it("names the last of many targets, and those that were looked for, where labels are too many", () => {
    const tokens = Array.from({ length: 60 }, (_, position) => `token${position}`);
    const targets = Array.from({ length: 58 }, (_, position) => position);
    const scene = { ...sceneOf(makeGraph([], { tokens, targets, target: 57 })), matches: new Set([31]) };
    const { text } = svgPicture(scene, NOTHING, measure);
    const named = tokens.filter((token) => text.includes(`>${token}</text>`));
    expect(named.length).toBeLessThan(40);
    expect(named).toEqual(expect.arrayContaining(["token57", "token31"]));
  });

  it("leaves out what the page hides", () => {
    const graph = makeGraph(EDGES);
    const write = (of: Graph) => svgPicture(sceneOf(of), NOTHING, measure).text;
    // Both attention edges share a stroke, of one curve each.
    const curves = (text: string) => count(/d="([^"]*)" fill="none" stroke="#000001"/.exec(text)?.[1] ?? "", "C");
    expect([curves(write(graph)), curves(write(withoutFirst(graph)))]).toEqual([2, 1]);
  });

  it("closes every group that it opens", () => {
    const text = svg(EDGES, { roles: ["user", "user", "user"] });
    expect(count(text, "<g ")).toBe(count(text, "</g>"));
    expect(count(text, "<g ")).toBeGreaterThan(0);
  });

  it("holds no character that XML forbids", () => {
    expect(escapeXml('a\u0000\u000b\ufffe\udc00<&>"\u{1f600}\n')).toBe(
      "a\ufffd\ufffd\ufffd\ufffd&lt;&amp;&gt;&quot;\u{1f600}\n",
    );
  });

  it("turns and moves text as a canvas does", () => {
    const pen = new SvgPen(measure);
    pen.save();
    pen.translate(10, 20);
    pen.rotate(Math.PI / 2);
    pen.fillText("x", 1, 0);
    pen.restore();
    pen.fillText("y", 1, 0);
    const text = pen.document(10, 10, "t");
    expect(text).toContain('transform="matrix(0 1 -1 0 10 20)">x<');
    expect(text).toMatch(/x="1" y="0"[^>]*fill="#000">y</);
  });
});

describe("the size of a picture", () => {
  it("of a view is the page's", () => {
    const scene = sceneOf(makeGraph(EDGES));
    expect(pictureScene(scene, "view")).toMatchObject({ width: 600, height: 400, transform: scene.transform });
  });

  it("of a whole graph has room for every token, all of it within the plot", () => {
    const tokens = Array.from({ length: 500 }, () => "abc");
    const { graph, transform, plot, width, labels } = pictureScene(
      sceneOf(makeGraph([], { tokens, n_layers: 80, target: 499 })),
      "whole",
    );
    expect(transform.kx).toBeGreaterThanOrEqual(18);
    expect([width > 9000, labels.mode]).toEqual([true, "tilted"]);
    const box = gridBox(graph);
    const start = toScreen(transform, { x: box.minX, y: box.minY });
    const end = toScreen(transform, { x: box.maxX, y: box.maxY });
    expect(start.x).toBeGreaterThanOrEqual(plot.left - 1);
    expect(start.y).toBeGreaterThanOrEqual(plot.top - 1);
    expect(end.x).toBeLessThanOrEqual(plot.left + plot.width + 1);
    expect(end.y).toBeLessThanOrEqual(plot.top + plot.height + 1);
  });

  it("stays within what a canvas can hold", () => {
    expect(pngScale(1000, 500)).toBe(2);
    expect(pngScale(16_384, 500)).toBe(1);
    const scale = pngScale(20_000, 12_000);
    expect(20_000 * scale).toBeLessThanOrEqual(16_384);
    expect(20_000 * scale * 12_000 * scale).toBeLessThanOrEqual(2 ** 27 + 1);
  });

  it("goes with a name that any file system takes", () => {
    expect(pictureName(["<bos>", "When", " Mary", "/..\\", "שלום"], [4], "svg")).toBe(
      "llm-tt-bos-When-Mary-שלום-4.svg",
    );
    expect(pictureName(["\n", "<"], [0], "png")).toBe("llm-tt-0.png");
    expect(pictureName(["a", "b", "c", "d"], [1, 2, 3], "png")).toBe("llm-tt-abcd-1-3.png");
    expect(Array.from(pictureName(["\u{20000}".repeat(90)], [1], "png"))).toHaveLength("llm-tt--1.png".length + 48);
  });
});

describe("the minimap", () => {
  const tokens = Array.from({ length: 100 }, () => "abc");
  const scene = sceneOf(makeGraph([], { tokens, n_layers: 20, target: 99 }));

  it("has nothing to show while the view holds the whole graph", () => {
    expect(frameOf(scene)).toBeNull();
  });

  it("is of no use while next to nothing is out of view", () => {
    const { transform } = scene;
    const shifted = (share: number) => ({
      ...scene,
      transform: { ...transform, x: transform.x + share * 100 * transform.kx },
    });
    const spare = (scene.plot.width - 100 * transform.kx) / 2 / (100 * transform.kx);
    expect(frameOf(shifted(spare + 0.05))).toBeNull();
    expect(frameOf(shifted(spare + 0.08))).not.toBeNull();
  });

  it("frames the part in view", () => {
    const { plot, transform } = scene;
    const left = { x: plot.left, y: plot.top };
    const zoomed = zoomTo(transform, 4 * transform.kx, { kx: transform.kx, ky: transform.ky }, left, left);
    const frame = frameOf({ ...scene, transform: zoomed });
    const columns = plot.width / zoomed.kx;
    expect(frame?.width).toBeCloseTo((columns / 100) * MINIMAP.width - Math.max(0, -(frame?.left ?? 0)), 0);
    expect(frame?.left).toBeGreaterThanOrEqual(0);
    expect((frame?.left ?? 0) + (frame?.width ?? 0)).toBeLessThanOrEqual(MINIMAP.width);
  });

  it("holds every node", () => {
    const map = minimapTransform({ nTokens: 100, nLayers: 20 });
    const [start, end] = [toScreen(map, { x: -0.5, y: 0.5 }), toScreen(map, { x: 99.5, y: -40.5 })];
    expect([start.x, start.y, end.x, end.y].map((value) => Math.round(value))).toEqual([
      0,
      MINIMAP.height,
      MINIMAP.width,
      0,
    ]);
  });
});
