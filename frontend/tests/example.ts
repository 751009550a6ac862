// Frames for tests: the golden file that Python wrote, and small ones made here.

import { readFileSync } from "node:fs";

import type { Frame, FrameHeader } from "../src/frame";
import { buildGraph, type Graph } from "../src/graph";

export function goldenBytes(): Uint8Array {
  return new Uint8Array(readFileSync(new URL("./fixtures/example.frame", import.meta.url)));
}

/** kind, layer, source, destination, weight, heads, effect */
export type Edge = [number, number, number, number, number, Record<number, number>?, number?];

export function makeFrame(edges: readonly Edge[], header: Partial<FrameHeader> = {}): Frame {
  const heads = edges.map((edge) => Object.entries(edge[5] ?? {}));
  const starts = [0];
  for (const list of heads) starts.push((starts.at(-1) ?? 0) + list.length);
  const target = header.target ?? 2;
  return {
    header: {
      version: 1,
      trace: "t",
      n_layers: 2,
      tokens: ["a", " b", "c"],
      target,
      targets: [target],
      threshold: 0.04,
      renormalized: true,
      prediction: null,
      probability: null,
      selection: null,
      effect_of: null,
      mass: null,
      highlight: null,
      roles: null,
      compared: null,
      ...header,
    },
    arrays: {
      kind: Uint8Array.from(edges, (edge) => edge[0]),
      layer: Uint16Array.from(edges, (edge) => edge[1]),
      source: Uint32Array.from(edges, (edge) => edge[2]),
      destination: Uint32Array.from(edges, (edge) => edge[3]),
      weight: Float32Array.from(edges, (edge) => edge[4]),
      heads_start: Uint32Array.from(starts),
      head: Uint16Array.from(heads.flat(), ([head]) => Number(head)),
      head_weight: Float32Array.from(heads.flat(), ([, weight]) => weight),
      effect: typeof header.effect_of === "string" ? Float32Array.from(edges, (edge) => edge[6] ?? NaN) : null,
      side: null,
      head_effect: null,
    },
  };
}

export function makeGraph(edges: readonly Edge[], header: Partial<FrameHeader> = {}): Graph {
  return buildGraph(makeFrame(edges, header));
}

/** Bytes of a frame with any header and arrays, right or wrong. */
export function encode(header: Record<string, unknown>, body = new Uint8Array()): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + body.length);
  bytes.set(new TextEncoder().encode("LTT1"));
  new DataView(bytes.buffer).setUint32(4, text.length, true);
  bytes.set(text, 8);
  bytes.set(body, 8 + text.length);
  return bytes;
}
