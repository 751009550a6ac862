"""The Python side of the app's own Streamlit components. What they show is computed elsewhere."""
