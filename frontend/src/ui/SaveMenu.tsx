// "Save picture": which part of the graph, and as what.

import { useEffect, useRef, useState } from "react";

import type { Format, Scope } from "../picture";
import { Button } from "./Button";

const CHOICES: readonly { scope: Scope; format: Format; label: string; help: string }[] = [
  { scope: "whole", format: "png", label: "Whole graph, PNG", help: "Pixels, at twice the size of the page" },
  { scope: "whole", format: "svg", label: "Whole graph, SVG", help: "Lines and text, to be edited or printed" },
  { scope: "view", format: "png", label: "Current view, PNG", help: "Pixels, at twice the size of the page" },
  { scope: "view", format: "svg", label: "Current view, SVG", help: "Lines and text, to be edited or printed" },
];

export function SaveMenu({ onSave }: { onSave: (scope: Scope, format: Format) => void }) {
  const [isOpen, setIsOpen] = useState(false);
  const root = useRef<HTMLSpanElement>(null);
  const menu = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!isOpen) return undefined;
    menu.current?.querySelector("button")?.focus();
    // A click elsewhere; inside a shadow root the document sees only its host, hence the path.
    const close = (event: PointerEvent) => {
      if (root.current !== null && !event.composedPath().includes(root.current)) setIsOpen(false);
    };
    document.addEventListener("pointerdown", close);
    return () => {
      document.removeEventListener("pointerdown", close);
    };
  }, [isOpen]);
  const close = () => {
    setIsOpen(false);
    root.current?.querySelector("button")?.focus();
  };
  return (
    <span
      ref={root}
      className="save"
      onKeyDown={(event) => {
        if (!isOpen) return;
        const items = [...(menu.current?.querySelectorAll("button") ?? [])];
        const at = items.findIndex((item) => item.matches(":focus"));
        if (event.key === "Escape") close();
        else if (event.key === "ArrowDown") items[(at + 1) % items.length].focus();
        else if (event.key === "ArrowUp") items[(at - 1 + items.length) % items.length].focus();
        else return;
        event.preventDefault();
        event.stopPropagation();
      }}
    >
      <Button
        label="Save picture"
        testId="graph-save"
        expanded={isOpen}
        onClick={() => {
          setIsOpen(!isOpen);
        }}
      >
        <path d="M8 2v8M4.5 7L8 10.5 11.5 7M2.5 13.5h11" />
      </Button>
      {isOpen && (
        <div ref={menu} className="menu" role="menu" aria-label="Save picture">
          {CHOICES.map(({ scope, format, label, help }) => (
            <button
              key={label}
              type="button"
              role="menuitem"
              title={help}
              data-testid={`graph-save-${scope}-${format}`}
              onClick={() => {
                close();
                onSave(scope, format);
              }}
            >
              {label}
            </button>
          ))}
        </div>
      )}
    </span>
  );
}
