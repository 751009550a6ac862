// A mistake while drawing becomes a sentence inside the component, not a blank page.

import { Component, type ReactNode } from "react";

interface Props {
  children: ReactNode;
}

/** With another `subject` it tries again. */
export class ErrorBoundary extends Component<Props & { subject: unknown }, { message: string | null }> {
  override state: { message: string | null } = { message: null };

  static getDerivedStateFromError(error: unknown): { message: string } {
    return { message: error instanceof Error ? error.message : String(error) };
  }

  override componentDidUpdate(previous: { subject: unknown }) {
    if (this.state.message !== null && previous.subject !== this.props.subject) this.setState({ message: null });
  }

  override render() {
    if (this.state.message === null) return this.props.children;
    return <Problem>The graph could not be drawn: {this.state.message}. Reload the page to try again.</Problem>;
  }
}

export function Problem({ children }: Props) {
  return (
    <div className="problem" role="alert" data-testid="graph-problem">
      {children}
    </div>
  );
}
