"""A vector of the residual stream becomes words."""
