// The footer: what the marks mean, and how much of the graph is drawn. Its words come from `legend.ts`.

import type { Graph } from "../graph";
import { legendCount, legendItems, type LegendItem } from "../legend";
import { DASH, edgeOpacity, edgeWidth, effectShade, type Coloring } from "../scale";
import { effectColor, type Theme } from "../theme";

interface Props {
  graph: Graph;
  theme: Theme;
  coloring: Coloring;
  /** How many were painted when not all in view could be, else null. */
  nStrongest: number | null;
}

export function Legend({ graph, theme, coloring, nStrongest }: Props) {
  const help = [
    graph.header.renormalized
      ? "Weights of a node's kept edges are divided by their sum."
      : "Weights are contributions as measured.",
    ...(graph.nHidden === null ? [] : ["Hiding the first token changes no weight."]),
    ...(nStrongest === null ? [] : ["Zoom in to see the weaker edges, too."]),
  ].join(" ");
  return (
    <div className="legend">
      {legendItems(graph, coloring).map((item) => (
        <span
          key={item.label}
          className="legend-item"
          title={item.meaning}
          data-testid={item.mark === "scale" ? "graph-effect-scale" : undefined}
        >
          {item.mark === "weights" && item.label}
          <Mark item={item} theme={theme} />
          {item.mark !== "scale" && item.mark !== "weights" && item.label}
        </span>
      ))}
      <span className="legend-count" data-testid="graph-count" title={help}>
        {legendCount(graph, nStrongest)}
      </span>
    </div>
  );
}

const STOPS = Array.from({ length: 41 }, (_, index) => index / 20 - 1);

function Mark({ item, theme }: { item: LegendItem; theme: Theme }) {
  switch (item.mark) {
    case "edge":
      return (
        <svg width="26" height="12" aria-hidden="true">
          <line x1="0" y1="6" x2="26" y2="6" stroke={theme.edge[item.key]} strokeWidth="3" />
          {item.key === "ffn" && <rect x="8" y="1" width="10" height="10" fill={theme.edge.ffn} />}
        </svg>
      );
    case "weights":
      return item.weights.map((weight) => (
        <span key={weight} className="legend-weight">
          <svg width="14" height="12" aria-hidden="true">
            <line
              x1="0"
              y1="6"
              x2="14"
              y2="6"
              stroke={theme.text}
              strokeWidth={edgeWidth(weight)}
              opacity={edgeOpacity(weight)}
            />
          </svg>
          {weight}
        </span>
      ));
    case "scale": {
      const colors = STOPS.map((share) => effectColor(theme, effectShade(share, 1)));
      return (
        <>
          <span className="legend-weight">{item.least}</span>
          <span className="legend-scale" style={{ background: `linear-gradient(to right, ${colors.join(", ")})` }} />
          <span className="legend-weight">
            {item.most} {item.label}
          </span>
        </>
      );
    }
    case "neutral":
      return (
        <svg width="26" height="12" aria-hidden="true">
          <line x1="0" y1="6" x2="26" y2="6" stroke={effectColor(theme, 0)} strokeWidth="3" opacity="0.3" />
        </svg>
      );
    case "only":
      return (
        <svg width="26" height="12" aria-hidden="true">
          <line x1="0" y1="6" x2="26" y2="6" stroke={theme.text} strokeWidth="3" strokeDasharray={DASH.join(" ")} />
        </svg>
      );
    case "role": {
      const dash = item.role === "continuation" ? "4 2" : undefined;
      return (
        <svg width="22" height="12" aria-hidden="true">
          <rect x="0" y="0" width="22" height="12" fill={theme.role[item.role]} opacity="0.22" />
          <line x1="0" y1="2" x2="22" y2="2" stroke={theme.role[item.role]} strokeWidth="4" strokeDasharray={dash} />
        </svg>
      );
    }
    case "special":
      return (
        <svg width="22" height="12" aria-hidden="true">
          <rect x="1" y="0.5" width="20" height="11" fill="none" stroke={theme.text} strokeWidth="0.75" />
        </svg>
      );
  }
}
