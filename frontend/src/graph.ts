// A decoded frame as a graph: which nodes its edges join, what lies on the routes, and finding an edge by name.
// No coordinates: those are in `layout.ts`.

import type { Frame, FrameArrays, FrameHeader } from "./frame";
import { nodeExists, nodeFromId, nodeId, nodeName, parseNodeName, slotCount, type NodeRef } from "./names";
import type { EdgeKey, EdgeSelection } from "./selection";

export const ATTENTION = 0;
export const RESIDUAL_TO_A = 1;
export const INTO_FFN = 2;
export const OUT_OF_FFN = 3;
export const RESIDUAL_TO_I = 4;

const KEYS: readonly EdgeKey[] = ["attention", "residual", "ffn", "ffn", "residual"];

export interface Graph {
  header: FrameHeader;
  arrays: FrameArrays;
  nEdges: number;
  nLayers: number;
  nTokens: number;
  /** Node ids (see `names.ts`) of each edge's two ends. */
  from: Uint32Array;
  to: Uint32Array;
  /** Edge indices, strongest first. */
  byWeight: Uint32Array;
  /** Ids of the nodes that an edge reaches, and the targets' last nodes. */
  routeNodes: Uint32Array;
  isRouteNode: Uint8Array;
  isRouteColumn: Uint8Array;
  /** The last node of the target, or of the last of several. */
  targetNode: number;
  /** Of each token, whether the routes lead to it. */
  isTarget: Uint8Array;
  /** Direct effects of FFN blocks, by the id of their node. */
  ffnEffects: ReadonlyMap<number, number>;
  /** The end of the scale of effects: the largest size among attention and FFN edges, which add something new to the stream; of changes, that of
   * all edges. */
  largestEffect: number;
  /** Edges that carry the highlighted head, weakest first; null when none is highlighted. */
  highlighted: readonly number[] | null;
  /** How many edges of the first token's column are there but not to be drawn or hit; null when they are drawn. */
  nHidden: number | null;
}

export function buildGraph({ header, arrays }: Frame): Graph {
  const nEdges = arrays.kind.length;
  const nLayers = header.n_layers;
  const nTokens = header.tokens.length;
  const from = new Uint32Array(nEdges);
  const to = new Uint32Array(nEdges);
  const isRouteNode = new Uint8Array(nTokens * slotCount(nLayers));
  const isRouteColumn = new Uint8Array(nTokens);
  const isTarget = new Uint8Array(nTokens);
  const lastNode = (position: number) => nodeId({ kind: "I", layer: nLayers - 1, position }, nLayers);
  for (const position of header.targets) {
    isRouteNode[lastNode(position)] = isRouteColumn[position] = isTarget[position] = 1;
  }
  for (let edge = 0; edge < nEdges; edge++) {
    const [source, destination] = endpoints(arrays, edge);
    from[edge] = nodeId(source, nLayers);
    to[edge] = nodeId(destination, nLayers);
    isRouteNode[from[edge]] = isRouteNode[to[edge]] = 1;
    isRouteColumn[source.position] = isRouteColumn[destination.position] = 1;
  }
  const ffnEffects = new Map<number, number>();
  let largestEffect = 0;
  arrays.effect?.forEach((effect, edge) => {
    const kind = arrays.kind[edge];
    const isStream = kind === RESIDUAL_TO_A || kind === RESIDUAL_TO_I;
    if (Number.isNaN(effect) || (isStream && header.compared === null)) return;
    largestEffect = Math.max(largestEffect, Math.abs(effect));
    if (kind === OUT_OF_FFN) ffnEffects.set(from[edge], effect);
  });
  const routeNodes: number[] = [];
  isRouteNode.forEach((flag, id) => {
    if (flag) routeNodes.push(id);
  });
  const byWeight = Uint32Array.from({ length: nEdges }, (_, edge) => edge);
  byWeight.sort((a, b) => arrays.weight[b] - arrays.weight[a]);
  return {
    header,
    arrays,
    nEdges,
    nLayers,
    nTokens,
    from,
    to,
    byWeight,
    routeNodes: Uint32Array.from(routeNodes),
    isRouteNode,
    isRouteColumn,
    targetNode: lastNode(header.target),
    isTarget,
    ffnEffects,
    largestEffect,
    highlighted: highlightedEdges(header, arrays, byWeight),
    nHidden: null,
  };
}

/** Whether making this token the target would change anything: of several targets each can be had alone. */
export function isOtherTarget({ header: { target, targets } }: Graph, position: number): boolean {
  return targets.length > 1 || position !== target;
}

/** The same graph with nothing drawn that leaves or reaches the first token's column; no number changes. */
export function withoutFirst(graph: Graph): Graph {
  const byWeight = graph.byWeight.filter((edge) => !touchesFirst(graph, edge));
  const { nLayers } = graph;
  return {
    ...graph,
    byWeight,
    routeNodes: graph.routeNodes.filter((id) => nodeFromId(id, nLayers).position !== 0),
    highlighted: graph.highlighted?.filter((edge) => !touchesFirst(graph, edge)) ?? null,
    nHidden: graph.nEdges - byWeight.length,
  };
}

function touchesFirst({ arrays }: Graph, edge: number): boolean {
  return arrays.source[edge] === 0 || arrays.destination[edge] === 0;
}

/** Whether an edge is one of those to draw. */
export function isShown(graph: Graph, edge: number): boolean {
  return graph.nHidden === null || !touchesFirst(graph, edge);
}

function highlightedEdges({ highlight }: FrameHeader, arrays: FrameArrays, byWeight: Uint32Array) {
  if (highlight === null) return null;
  const carriesHead = (edge: number) => {
    const heads = arrays.head.subarray(arrays.heads_start[edge], arrays.heads_start[edge + 1]);
    return arrays.layer[edge] === highlight.layer && heads.includes(highlight.head);
  };
  return [...byWeight].filter(carriesHead).reverse();
}

function endpoints(arrays: FrameArrays, edge: number): [NodeRef, NodeRef] {
  const layer = arrays.layer[edge];
  const position = arrays.destination[edge];
  switch (arrays.kind[edge]) {
    case INTO_FFN:
      return [
        { kind: "A", layer, position },
        { kind: "M", layer, position },
      ];
    case OUT_OF_FFN:
      return [
        { kind: "M", layer, position },
        { kind: "I", layer, position },
      ];
    case RESIDUAL_TO_I:
      return [
        { kind: "A", layer, position },
        { kind: "I", layer, position },
      ];
    default:
      return [below(layer, arrays.source[edge]), { kind: "A", layer, position }];
  }
}

/** What layer `layer` reads at a position: the layer below, or the embedding. */
function below(layer: number, position: number): NodeRef {
  return layer === 0 ? { kind: "X", layer: 0, position } : { kind: "I", layer: layer - 1, position };
}

export function edgeKey(graph: Graph, edge: number): EdgeKey {
  return KEYS[graph.arrays.kind[edge]];
}

export function edgeSelection(graph: Graph, edge: number): EdgeSelection {
  const name = (id: number) => nodeName(nodeFromId(id, graph.nLayers));
  return { type: "edge", key: edgeKey(graph, edge), from: name(graph.from[edge]), to: name(graph.to[edge]) };
}

/** The index of the edge of that name, or -1 when it is not on these routes. */
export function findEdge(graph: Graph, wanted: EdgeSelection): number {
  const { nLayers, nTokens } = graph;
  const [from, to] = [wanted.from, wanted.to].map(parseNodeName);
  if (!nodeExists(from, nLayers, nTokens) || !nodeExists(to, nLayers, nTokens)) return -1;
  const source = nodeId(from, nLayers);
  return (
    incomingEdges(graph, nodeId(to, nLayers)).find(
      (edge) => graph.from[edge] === source && edgeKey(graph, edge) === wanted.key,
    ) ?? -1
  );
}

/** Edges into a node, strongest first. */
export function incomingEdges(graph: Graph, node: number): readonly number[] {
  return edgesWith(graph, graph.to, node);
}

/** Edges out of a node, strongest first. */
export function outgoingEdges(graph: Graph, node: number): readonly number[] {
  return edgesWith(graph, graph.from, node);
}

/** What was asked before: painters ask for the same few nodes in every frame. */
const answers = new WeakMap<Uint32Array, Map<number, number[]>>();

function edgesWith(graph: Graph, ends: Uint32Array, node: number): number[] {
  let known = answers.get(ends);
  if (known === undefined) answers.set(ends, (known = new Map<number, number[]>()));
  let found = known.get(node);
  if (found === undefined) {
    found = [];
    for (let edge = 0; edge < graph.nEdges; edge++) if (ends[edge] === node) found.push(edge);
    found.sort((a, b) => graph.arrays.weight[b] - graph.arrays.weight[a]);
    known.set(node, found);
  }
  return found;
}

/** An edge's direct effect in logits; null where it has none, or nothing was asked. */
export function edgeEffect({ arrays }: Graph, edge: number): number | null {
  const effect = arrays.effect?.[edge];
  return effect === undefined || Number.isNaN(effect) ? null : effect;
}

/** What an edge contributes in each of two graphs; null where one has no such token. Alone the edge's contribution, if there is but one graph. */
export function edgeContributions({ arrays }: Graph, edge: number): (number | null)[] {
  const weight = arrays.weight[edge];
  if (arrays.side === null || arrays.effect === null) return [weight];
  const change = arrays.effect[edge];
  if (Number.isNaN(change)) return arrays.side[edge] === 1 ? [weight, null] : [null, weight];
  return bothOf(weight, change);
}

/** The larger of two numbers and their difference, second less first -> the two. */
function bothOf(larger: number, change: number): [number, number] {
  return change >= 0 ? [Math.max(0, larger - change), larger] : [larger, Math.max(0, larger + change)];
}

/** The one of two graphs that alone has an edge, by its name; null for an edge of both, or of a single graph. */
export function onlyIn({ arrays, header: { compared } }: Graph, edge: number): string | null {
  const side = arrays.side?.[edge] ?? 0;
  return compared === null || side === 0 ? null : side === 1 ? compared.first : compared.second;
}

export interface HeadShare {
  head: number;
  weight: number;
  /** Its contribution in each of two graphs, or in the one there is. */
  contributions: readonly number[];
}

/** The heads of an attention edge, as sent: by falling contribution. */
export function edgeHeads({ arrays }: Graph, edge: number): HeadShare[] {
  const heads: HeadShare[] = [];
  for (let i = arrays.heads_start[edge]; i < arrays.heads_start[edge + 1]; i++) {
    const weight = arrays.head_weight[i];
    const contributions = arrays.head_effect === null ? [weight] : bothOf(weight, arrays.head_effect[i]);
    heads.push({ head: arrays.head[i], weight, contributions });
  }
  return heads;
}
