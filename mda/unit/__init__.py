"""Units of a model, the parameter blocks they own, and their gradients."""
