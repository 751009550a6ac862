"""A graph becomes a file: JSON, GraphML, a standalone HTML page."""
