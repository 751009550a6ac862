// A pen that writes SVG: the strokes of the painters become elements, and text stays text.

import type { Pen } from "./pen";

type Matrix = readonly [number, number, number, number, number, number];

const FONT = /^(italic )?(\d+) ([\d.]+)px (.+)$/s;
const ANCHOR: Partial<Record<CanvasTextAlign, string>> = { center: "middle", right: "end", end: "end" };
/** Where the baseline lies below the point that the painters name, in sizes of the font. */
const BASELINE: Partial<Record<CanvasTextBaseline, number>> = { middle: 0.35, top: 0.85, bottom: -0.2 };
// What XML 1.0 cannot hold in any form: control characters, halves of surrogate pairs, two non-characters.
const NOT_XML = /[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu;
const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

export function escapeXml(text: string): string {
  return text.replace(NOT_XML, "\ufffd").replace(/[&<>"]/g, (char) => ENTITIES[char]);
}

interface State {
  fillStyle: string;
  strokeStyle: string;
  globalAlpha: number;
  lineWidth: number;
  lineCap: CanvasLineCap;
  font: string;
  textAlign: CanvasTextAlign;
  textBaseline: CanvasTextBaseline;
  matrix: Matrix;
  dash: readonly number[];
  /** Groups that clipping opened since the last `save`. */
  groups: number;
}

export class SvgPen implements Pen {
  fillStyle = "#000";
  strokeStyle = "#000";
  globalAlpha = 1;
  lineWidth = 1;
  lineCap: CanvasLineCap = "butt";
  font = "400 12px sans-serif";
  textAlign: CanvasTextAlign = "left";
  textBaseline: CanvasTextBaseline = "alphabetic";
  private matrix: Matrix = [1, 0, 0, 1, 0, 0];
  private dash: readonly number[] = [];
  private groups = 0;
  private path = "";
  private nIds = 0;
  private readonly saved: State[] = [];
  private readonly elements: string[] = [];

  constructor(private readonly measure: (font: string, text: string) => number) {}

  /** The whole document, `width` times `height` pixels. */
  document(width: number, height: number, title: string): string {
    const size = `width="${figure(width)}" height="${figure(height)}" viewBox="0 0 ${figure(width)} ${figure(height)}"`;
    return [
      '<?xml version="1.0" encoding="UTF-8"?>',
      `<svg xmlns="http://www.w3.org/2000/svg" ${size} role="img">`,
      `<title>${escapeXml(title)}</title>`,
      ...this.elements,
      "</svg>\n",
    ].join("\n");
  }

  save(): void {
    const { fillStyle, strokeStyle, globalAlpha, lineWidth, lineCap, font, textAlign, textBaseline } = this;
    const { matrix, dash, groups } = this;
    this.saved.push({
      ...{ fillStyle, strokeStyle, globalAlpha, lineWidth, lineCap, font, textAlign, textBaseline },
      ...{ matrix, dash, groups },
    });
    this.groups = 0;
  }

  restore(): void {
    for (; this.groups > 0; this.groups--) this.elements.push("</g>");
    Object.assign(this, this.saved.pop());
  }

  translate(x: number, y: number): void {
    const [a, b, c, d, e, f] = this.matrix;
    this.matrix = [a, b, c, d, a * x + c * y + e, b * x + d * y + f];
  }

  rotate(angle: number): void {
    const [a, b, c, d, e, f] = this.matrix;
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    this.matrix = [a * cos + c * sin, b * cos + d * sin, c * cos - a * sin, d * cos - b * sin, e, f];
  }

  beginPath(): void {
    this.path = "";
  }

  closePath(): void {
    this.path += "Z";
  }

  moveTo(x: number, y: number): void {
    this.path += `M${figure(x)} ${figure(y)}`;
  }

  lineTo(x: number, y: number): void {
    this.path += `L${figure(x)} ${figure(y)}`;
  }

  bezierCurveTo(x1: number, y1: number, x2: number, y2: number, x: number, y: number): void {
    this.path += `C${[x1, y1, x2, y2, x, y].map(figure).join(" ")}`;
  }

  /** Whole circles, which are all that painters draw, as two halves. */
  arc(x: number, y: number, radius: number): void {
    const [r, left, right, middle] = [radius, x - radius, x + radius, y].map(figure);
    this.path += `M${right} ${middle}A${r} ${r} 0 1 1 ${left} ${middle}A${r} ${r} 0 1 1 ${right} ${middle}Z`;
  }

  rect(x: number, y: number, width: number, height: number): void {
    this.path += `M${figure(x)} ${figure(y)}h${figure(width)}v${figure(height)}h${figure(-width)}Z`;
  }

  clip(): void {
    const id = this.newId();
    this.elements.push(`<clipPath id="${id}"><path d="${this.path}"/></clipPath>`, `<g clip-path="url(#${id})">`);
    this.groups += 1;
  }

  fill(): void {
    if (this.path !== "") this.push("path", `d="${this.path}" ${this.filled()}`);
  }

  stroke(): void {
    if (this.path !== "") this.push("path", `d="${this.path}" ${this.stroked()}`);
  }

  fillRect(x: number, y: number, width: number, height: number): void {
    this.push("rect", `${box(x, y, width, height)} ${this.filled()}`);
  }

  strokeRect(x: number, y: number, width: number, height: number): void {
    this.push("rect", `${box(x, y, width, height)} ${this.stroked()}`);
  }

  setLineDash(dash: readonly number[]): void {
    this.dash = dash;
  }

  measureText(text: string): { width: number } {
    return { width: this.measure(this.font, text) };
  }

  fillText(text: string, x: number, y: number): void {
    const [, italic = "", weight = "400", size = "12", family = "sans-serif"] = FONT.exec(this.font) ?? [];
    const style = [
      `font-family="${escapeXml(family)}" font-size="${size}"`,
      ...(weight === "400" ? [] : [`font-weight="${weight}"`]),
      ...(italic === "" ? [] : ['font-style="italic"']),
      ...(this.textAlign in ANCHOR ? [`text-anchor="${ANCHOR[this.textAlign] ?? ""}"`] : []),
    ].join(" ");
    const baseline = y + (BASELINE[this.textBaseline] ?? 0) * Number(size);
    const at = `x="${figure(x)}" y="${figure(baseline)}" xml:space="preserve" ${style} ${this.filled()}`;
    this.elements.push(`<text ${at}${this.transform()}>${escapeXml(text)}</text>`);
  }

  /** Fills a box with copies of a tile, the first of them at its corner. */
  fillTiles(
    at: { x: number; y: number },
    tile: { width: number; height: number },
    area: { width: number; height: number },
    paint: (pen: Pen) => void,
  ): void {
    const id = this.newId();
    const { x, y } = at;
    this.elements.push(
      `<pattern id="${id}" patternUnits="userSpaceOnUse" ${box(x, y, tile.width, tile.height)} viewBox="0 0 ${figure(tile.width)} ${figure(tile.height)}">`,
    );
    paint(this);
    this.elements.push("</pattern>", `<rect ${box(x, y, area.width, area.height)} fill="url(#${id})"/>`);
  }

  private newId(): string {
    this.nIds += 1;
    return `p${this.nIds}`;
  }

  private push(name: string, attributes: string): void {
    this.elements.push(`<${name} ${attributes}${this.transform()}/>`);
  }

  private filled(): string {
    const opacity = this.globalAlpha === 1 ? "" : ` fill-opacity="${figure(this.globalAlpha)}"`;
    return `fill="${escapeXml(this.fillStyle)}"${opacity}`;
  }

  private stroked(): string {
    return [
      `fill="none" stroke="${escapeXml(this.strokeStyle)}" stroke-width="${figure(this.lineWidth)}"`,
      ...(this.globalAlpha === 1 ? [] : [`stroke-opacity="${figure(this.globalAlpha)}"`]),
      ...(this.dash.length === 0 ? [] : [`stroke-dasharray="${this.dash.join(" ")}"`]),
    ].join(" ");
  }

  private transform(): string {
    const isIdentity = this.matrix.every((value, index) => value === (index === 0 || index === 3 ? 1 : 0));
    return isIdentity ? "" : ` transform="matrix(${this.matrix.map((value) => Number(value.toFixed(5))).join(" ")})"`;
  }
}

/** Hundredths of a pixel are more than an eye tells apart. */
function figure(value: number): string {
  return String(Number(value.toFixed(2)));
}

function box(x: number, y: number, width: number, height: number): string {
  return `x="${figure(x)}" y="${figure(y)}" width="${figure(width)}" height="${figure(height)}"`;
}
