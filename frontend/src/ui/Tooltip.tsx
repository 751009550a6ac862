// What the pointer is on: its name, weight and strongest parts, in a box beside it that covers nothing of it.

import {
  edgeContributions,
  edgeEffect,
  edgeHeads,
  edgeKey,
  edgeSelection,
  incomingEdges,
  onlyIn,
  type Graph,
} from "../graph";
import type { Hit } from "../hit";
import type { Point } from "../layout";
import { describeNode, edgeTitle, nodeFromId, nodeId, nodeName, type NodeRef } from "../names";
import { describeRole } from "../roles";
import { effectShade, type Coloring } from "../scale";
import { formatContributions, formatEffect, quoteToken } from "../text";
import { effectColor, type Theme } from "../theme";

const SHOWN_PARTS = 5;
const GAP = 14;

export interface Hover {
  hit: Hit;
  at: Point;
  /** Size of the canvas. */
  width: number;
  height: number;
}

interface Props {
  graph: Graph;
  theme: Theme;
  coloring: Coloring;
  hover: Hover;
}

export function Tooltip({ graph, theme, coloring, hover: { hit, at, width, height } }: Props) {
  // It opens towards the middle of the canvas, so that it never has to move once its size is known.
  const style = {
    ...(at.x > width / 2 ? { right: width - at.x + GAP } : { left: at.x + GAP }),
    ...(at.y > height / 2 ? { bottom: height - at.y + GAP } : { top: at.y + GAP }),
  };
  return (
    <div className="tooltip" role="tooltip" data-testid="graph-tooltip" style={style}>
      {hit.type === "edge" && <EdgeDetails graph={graph} theme={theme} coloring={coloring} edge={hit.edge} />}
      {hit.type === "node" && <NodeDetails graph={graph} theme={theme} node={hit.node} />}
      {hit.type === "target" && <TargetDetails graph={graph} position={hit.position} />}
    </div>
  );
}

interface EdgeDetailsProps {
  graph: Graph;
  theme: Theme;
  coloring: Coloring;
  edge: number;
}

function EdgeDetails({ graph, theme, coloring, edge }: EdgeDetailsProps) {
  const heads = edgeHeads(graph, edge);
  const effect = edgeEffect(graph, edge);
  const color =
    coloring === "contribution"
      ? theme.edge[edgeKey(graph, edge)]
      : effectColor(theme, effect === null ? 0 : effectShade(effect, graph.largestEffect));
  return (
    <>
      <div className="tooltip-title">
        <span className="swatch" style={{ background: color }} />
        {edgeTitle(edgeSelection(graph, edge))}
        <span className="tooltip-weight">{formatContributions(edgeContributions(graph, edge))}</span>
      </div>
      <End label="from" graph={graph} id={graph.from[edge]} />
      <End label="to" graph={graph} id={graph.to[edge]} />
      <Effect graph={graph} effect={effect} />
      <Only graph={graph} edge={edge} />
      {heads.length > 0 && (
        <Parts
          title={heads.length === 1 ? "head" : `${heads.length} heads`}
          color={color}
          parts={heads.map(({ head, weight, contributions }) => ({ name: `head ${head}`, weight, contributions }))}
        />
      )}
    </>
  );
}

function End({ label, graph, id }: { label: string; graph: Graph; id: number }) {
  const node = nodeFromId(id, graph.nLayers);
  return (
    <div className="tooltip-end">
      <span className="muted">{label}</span> <bdi>{describeNode(node, graph.header.tokens)}</bdi>
    </div>
  );
}

/** Which of two graphs alone has an edge. */
function Only({ graph, edge }: { graph: Graph; edge: number }) {
  const name = onlyIn(graph, edge);
  return name === null ? null : (
    <div className="muted" data-testid="graph-tooltip-only">
      drawn in <bdi>{name}</bdi> only
    </div>
  );
}

/** The direct effect on the logit in question, if there is a question; of two graphs how a contribution changes. */
function Effect({ graph: { header }, effect }: { graph: Graph; effect: number | null }) {
  if (header.effect_of === null) return null;
  if (header.compared !== null) {
    return (
      <div className="tooltip-effect" data-testid="graph-tooltip-effect">
        {effect === null ? (
          <span className="muted">nothing to compare with</span>
        ) : (
          <>
            <span className="muted">change</span> <b>{formatEffect(effect)}</b>
          </>
        )}
      </div>
    );
  }
  return (
    <div className="tooltip-effect" data-testid="graph-tooltip-effect">
      <span className="muted">{effect === null ? "no direct effect on " : "direct effect on "}</span>
      <bdi>{header.effect_of}</bdi>
      {effect !== null && (
        <>
          {" "}
          <b>{formatEffect(effect)}</b> <span className="muted">logits</span>
        </>
      )}
    </div>
  );
}

function NodeDetails({ graph, theme, node }: { graph: Graph; theme: Theme; node: NodeRef }) {
  const id = nodeId(node, graph.nLayers);
  const parts = incomingEdges(graph, id).map((edge) => {
    const source = nodeFromId(graph.from[edge], graph.nLayers);
    const key = edgeKey(graph, edge);
    const token = `${quoteToken(graph.header.tokens[source.position])} (${source.position})`;
    return {
      name: key === "attention" ? token : key === "ffn" ? "FFN" : "residual",
      weight: graph.arrays.weight[edge],
      contributions: edgeContributions(graph, edge),
      color: theme.edge[key],
    };
  });
  return (
    <>
      <div className="tooltip-title">
        <bdi>{describeNode(node, graph.header.tokens)}</bdi>
        <span className="tooltip-name">{nodeName(node)}</span>
      </div>
      {node.kind === "X" && <RoleOf graph={graph} position={node.position} />}
      {parts.length > 0 && node.kind !== "M" && <Parts title="comes from" color={theme.text} parts={parts} />}
      {node.kind === "M" && graph.isRouteNode[id] === 1 && (
        <Effect graph={graph} effect={graph.ffnEffects.get(id) ?? null} />
      )}
      {graph.isRouteNode[id] === 0 && <div className="muted">not on the routes at this threshold</div>}
    </>
  );
}

function RoleOf({ graph, position }: { graph: Graph; position: number }) {
  const role = describeRole(graph.header.roles, position);
  return role === null ? null : <div className="muted">{role}</div>;
}

function TargetDetails({ graph, position }: { graph: Graph; position: number }) {
  const token = `${quoteToken(graph.header.tokens[position])} (${position})`;
  return (
    <div>
      {targetPhrase(graph, position)} <bdi>{token}</bdi>
    </div>
  );
}

function targetPhrase({ header, isTarget }: Graph, position: number): string {
  if (!isTarget[position]) return "click to explain what follows";
  return header.targets.length > 1
    ? `one of ${header.targets.length.toLocaleString("en")} targets; click to explain alone what follows`
    : "target: the routes explain what follows";
}

interface Part {
  name: string;
  weight: number;
  contributions: readonly (number | null)[];
  color?: string;
}

function Parts({ title, color, parts }: { title: string; color: string; parts: readonly Part[] }) {
  const most = Math.max(...parts.map((part) => part.weight));
  return (
    <table className="parts">
      <caption>{title}</caption>
      <tbody>
        {parts.slice(0, SHOWN_PARTS).map((part, index) => (
          <tr key={index}>
            <td>
              <bdi>{part.name}</bdi>
            </td>
            <td className="part-bar">
              <span style={{ width: `${(100 * part.weight) / most}%`, background: part.color ?? color }} />
            </td>
            <td className="part-weight">{formatContributions(part.contributions)}</td>
          </tr>
        ))}
      </tbody>
      {parts.length > SHOWN_PARTS && (
        <tfoot>
          <tr>
            <td colSpan={3}>and {parts.length - SHOWN_PARTS} more</td>
          </tr>
        </tfoot>
      )}
    </table>
  );
}
