"""The Streamlit app: pages and panels over an engine. No tensors and no model code."""
