// What is said about a node or an edge, in one line: its name with its weights. The status line shows it, screen readers speak it.

import { edgeContributions, edgeEffect, edgeKey, findEdge, incomingEdges, isShown, onlyIn, type Graph } from "./graph";
import { describeNode, describeSelection, nodeFromId, nodeId, type NodeRef } from "./names";
import { describeRole } from "./roles";
import type { Selection } from "./selection";
import { formatContributions, formatEffect, quoteToken } from "./text";

/** Parts that are named one by one; more of them nobody keeps in mind. */
const NAMED_PARTS = 3;

/** For example: layer 2, "·to" (13), after attention; residual 0.612, attention from "·Mary" (2) 0.388. */
export function nodeSentence(graph: Graph, node: NodeRef): string {
  const { tokens, roles } = graph.header;
  const role = node.kind === "X" ? describeRole(roles, node.position) : null;
  const name = describeNode(node, tokens) + (role === null ? "" : `, ${role}`);
  const id = nodeId(node, graph.nLayers);
  if (graph.isRouteNode[id] === 0) return `${name}; not on the routes`;
  const parts = incomingEdges(graph, id).map((edge) => {
    const source = nodeFromId(graph.from[edge], graph.nLayers);
    const key = edgeKey(graph, edge);
    const part =
      key === "attention"
        ? `attention from ${quoteToken(tokens[source.position])} (${source.position})`
        : key === "ffn" && node.kind === "I"
          ? "FFN"
          : "residual";
    return `${part} ${formatContributions(edgeContributions(graph, edge))}`;
  });
  const more = parts.length > NAMED_PARTS ? [`${parts.length - NAMED_PARTS} more`] : [];
  const effect = graph.ffnEffects.get(id);
  const all = [...parts.slice(0, NAMED_PARTS), ...more, ...(effect === undefined ? [] : [effectPhrase(graph, effect)])];
  return all.length === 0 ? name : `${name}; ${all.join(", ")}`;
}

function effectPhrase({ header: { compared } }: Graph, effect: number): string {
  return compared === null ? `direct effect ${formatEffect(effect)} logits` : `change ${formatEffect(effect)}`;
}

/** The selection's name; of an edge also its contribution, its direct effect, and why it is not to be seen. */
export function selectionSentence(graph: Graph, selection: Selection): string {
  const text = describeSelection(selection, graph.header.tokens);
  if (selection.type === "node") return text;
  const edge = findEdge(graph, selection);
  if (edge < 0) return `${text} (not on these routes)`;
  const effect = edgeEffect(graph, edge);
  const only = onlyIn(graph, edge);
  return [
    text,
    `, contribution ${formatContributions(edgeContributions(graph, edge))}`,
    ...(effect === null ? [] : [`, ${effectPhrase(graph, effect)}`]),
    ...(only === null ? [] : [`, in ${only} only`]),
    ...(isShown(graph, edge) ? [] : [" (hidden with the first token)"]),
  ].join("");
}
