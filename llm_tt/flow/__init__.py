"""A trace becomes a graph: contributions, routes, `FlowGraph`."""
