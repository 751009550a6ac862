// A button of the toolbar: an icon with a name.

interface Props {
  label: string;
  testId: string;
  onClick: () => void;
  children: React.ReactNode;
  /** For a button that stays down. */
  pressed?: boolean;
  /** For a button that opens a menu. */
  expanded?: boolean;
}

export function Button({ label, testId, onClick, children, pressed, expanded }: Props) {
  return (
    <button
      type="button"
      aria-label={label}
      aria-pressed={pressed}
      aria-haspopup={expanded === undefined ? undefined : "menu"}
      aria-expanded={expanded}
      title={label}
      data-testid={testId}
      onClick={onClick}
    >
      <svg
        width="14"
        height="14"
        viewBox="0 0 16 16"
        fill="none"
        stroke="currentColor"
        strokeWidth="1.6"
        aria-hidden="true"
      >
        {children}
      </svg>
    </button>
  );
}
