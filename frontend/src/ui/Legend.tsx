// The footer: what the marks mean, and how much of the graph is drawn.

import type { FrameHeader } from "../frame";
import { edgeOpacity, edgeWidth } from "../scale";
import type { EdgeKey } from "../selection";
import type { Theme } from "../theme";

const SAMPLE_WEIGHTS = [0.05, 0.2, 0.5, 1];
const THRESHOLD_DIGITS = 2;
const SAMPLES: readonly { key: EdgeKey; label: string; meaning: string }[] = [
  {
    key: "attention",
    label: "attention",
    meaning: "Attention edges: what a token took from another, summed over heads",
  },
  { key: "residual", label: "residual", meaning: "Residual edges: what a token's own stream carried on" },
  { key: "ffn", label: "FFN", meaning: "FFN blocks (squares) and their edges: what the feed-forward block added" },
];

interface Props {
  theme: Theme;
  nEdges: number;
  /** How many were painted when not all in view could be, else null. */
  nStrongest: number | null;
  header: FrameHeader;
}

export function Legend({ theme, nEdges, nStrongest, header: { threshold, mass, renormalized } }: Props) {
  const edges = `${nEdges.toLocaleString("en")} ${nEdges === 1 ? "edge" : "edges"}`;
  const count =
    mass === null
      ? `${edges} above ${Number(threshold.toPrecision(THRESHOLD_DIGITS))}`
      : `${edges} ${nEdges === 1 ? "carries" : "carry"} ${Number((100 * mass).toPrecision(THRESHOLD_DIGITS))} % of the flow`;
  const help = [
    renormalized
      ? "Weights of a node's kept edges are divided by their sum."
      : "Weights are contributions as measured.",
    ...(nStrongest === null ? [] : ["Zoom in to see the weaker edges, too."]),
  ].join(" ");
  return (
    <div className="legend">
      {SAMPLES.map(({ key, label, meaning }) => (
        <span key={key} className="legend-item" title={meaning}>
          <svg width="26" height="12" aria-hidden="true">
            <line x1="0" y1="6" x2="26" y2="6" stroke={theme.edge[key]} strokeWidth="3" />
            {key === "ffn" && <rect x="8" y="1" width="10" height="10" fill={theme.edge[key]} />}
          </svg>
          {label}
        </span>
      ))}
      <span className="legend-item" title="Wider and darker edges carry more: their contribution, from 0 to 1">
        {SAMPLE_WEIGHTS.map((weight) => (
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
        ))}
      </span>
      <span className="legend-count" data-testid="graph-count" title={help}>
        {count}
        {nStrongest !== null && `, ${nStrongest.toLocaleString("en")} strongest drawn`}
      </span>
    </div>
  );
}
