// The keys and gestures of the graph, over it. Escape or a click on it closes it.

import { useEffect, useRef } from "react";

const KEYS: readonly [string, string][] = [
  ["\u2190 \u2192 \u2191 \u2193", "move between nodes"],
  ["Page Up, Page Down", "a layer up or down"],
  ["Home, End", "to the first or the last token"],
  ["Enter", "select the node"],
  ["E, Shift+E", "next or previous edge into it"],
  ["T", "explain what follows its token"],
  ["Escape", "clear the selection"],
  ["+ \u2212 0", "zoom in, zoom out, fit the whole graph"],
  ["Shift+arrow", "pan, as dragging the graph or the overview does"],
  ["H", "hide or show the first token\u2019s edges"],
  ["/", "find a token; Enter goes to the next match"],
  ["?", "this list"],
];
const POINTER: readonly [string, string][] = [
  ["drag, wheel, pinch", "pan and zoom"],
  ["click", "select a node or an edge; on a triangle: explain that token"],
  ["double click", "on the background: fit the whole graph"],
];

export function Help({ onClose }: { onClose: () => void }) {
  const dialog = useRef<HTMLDivElement>(null);
  useEffect(() => {
    dialog.current?.focus();
  }, []);
  return (
    <div
      ref={dialog}
      className="help"
      role="dialog"
      aria-label="Keys and gestures of the graph"
      tabIndex={-1}
      data-testid="graph-help"
      onClick={onClose}
      onKeyDown={(event) => {
        // Other keys scroll the list where it is higher than the graph.
        if (["Escape", "Enter", "?", "Tab"].includes(event.key)) {
          onClose();
          event.preventDefault();
        }
        event.stopPropagation();
      }}
    >
      <table>
        <tbody>
          {[...KEYS, ...POINTER].map(([keys, meaning]) => (
            <tr key={keys}>
              <th scope="row">{keys}</th>
              <td>{meaning}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
