// Names of nodes: LM-TT's ("A2_13"), the number used in arrays, and the words a person reads. No geometry, no drawing.

import type { EdgeSelection, Selection } from "./selection";
import { quoteToken } from "./text";

export type NodeKind = "X" | "A" | "M" | "I";

export interface NodeRef {
  kind: NodeKind;
  /** 0 for the token embedding X. */
  layer: number;
  position: number;
}

const NODE_NAME = /^(?:X0|([AMI])(\d+))_(\d+)$/;
const KIND_AT_SLOT: readonly NodeKind[] = ["A", "M", "I"];
const SLOTS_PER_LAYER = KIND_AT_SLOT.length;

export function nodeName(node: NodeRef): string {
  return `${node.kind}${node.layer}_${node.position}`;
}

export function parseNodeName(name: string): NodeRef | null {
  const match = NODE_NAME.exec(name);
  if (match === null) return null;
  const [, kind = "X", layer = "0", position] = match as unknown as [string, NodeKind?, string?, string?];
  return { kind, layer: Number(layer), position: Number(position) };
}

/** Slots count a column's nodes from below: X0, then A, M, I of each layer. */
export function slotCount(nLayers: number): number {
  return 1 + SLOTS_PER_LAYER * nLayers;
}

export function slotOf(node: NodeRef): number {
  return node.kind === "X" ? 0 : 1 + SLOTS_PER_LAYER * node.layer + KIND_AT_SLOT.indexOf(node.kind);
}

export function nodeAt(position: number, slot: number): NodeRef {
  if (slot === 0) return { kind: "X", layer: 0, position };
  const above = slot - 1;
  return { kind: KIND_AT_SLOT[above % SLOTS_PER_LAYER], layer: Math.floor(above / SLOTS_PER_LAYER), position };
}

export function nodeId(node: NodeRef, nLayers: number): number {
  return node.position * slotCount(nLayers) + slotOf(node);
}

export function nodeFromId(id: number, nLayers: number): NodeRef {
  const slots = slotCount(nLayers);
  return nodeAt(Math.floor(id / slots), id % slots);
}

/** Whether a graph of this size has the node at all, on its routes or not. */
export function nodeExists(node: NodeRef | null, nLayers: number, nTokens: number): node is NodeRef {
  return node !== null && node.layer < nLayers && node.position < nTokens;
}

const STAGE: Record<NodeKind, string> = { X: "embedding", A: "after attention", M: "FFN block", I: "after FFN" };

/** For example: layer 2, "·to" (13), after attention. */
export function describeNode(node: NodeRef, tokens: readonly string[]): string {
  const token = `${quoteToken(tokens[node.position] ?? "?")} (${node.position})`;
  return node.kind === "X" ? `token ${token}, ${STAGE.X}` : `layer ${node.layer}, ${token}, ${STAGE[node.kind]}`;
}

const EDGE_TITLE: Record<EdgeSelection["key"], string> = { attention: "attention", residual: "residual", ffn: "FFN" };

export function edgeTitle(edge: EdgeSelection): string {
  const layer = parseNodeName(edge.to)?.layer;
  return layer === undefined ? EDGE_TITLE[edge.key] : `${EDGE_TITLE[edge.key]}, layer ${layer}`;
}

export function describeEdge(edge: EdgeSelection, tokens: readonly string[]): string {
  const from = parseNodeName(edge.from);
  const to = parseNodeName(edge.to);
  if (from === null || to === null) return `${edgeTitle(edge)}: ${edge.from} to ${edge.to}`;
  if (edge.key !== "attention") {
    return `${edgeTitle(edge)}, ${quoteToken(tokens[to.position] ?? "?")} (${to.position}): ${edge.from} to ${edge.to}`;
  }
  const token = (node: NodeRef) => `${quoteToken(tokens[node.position] ?? "?")} (${node.position})`;
  return `${edgeTitle(edge)}: from ${token(from)} to ${token(to)}`;
}

export function describeSelection(selection: Selection, tokens: readonly string[]): string {
  if (selection.type === "edge") return describeEdge(selection, tokens);
  const node = parseNodeName(selection.node);
  return node === null ? selection.node : describeNode(node, tokens);
}

/** What routes lead to, in words: token 9, tokens 4 to 9, or 5 tokens from 2 to 9 where some between are none. */
export function describeTargets(targets: readonly number[]): string {
  const [first, last] = [targets[0], targets[targets.length - 1]];
  if (targets.length === 1) return `token ${first}`;
  const some = targets.length === last - first + 1 ? "tokens" : `${targets.length.toLocaleString("en")} tokens from`;
  return `${some} ${first} to ${last}`;
}
