"""A campaign from its settings to its outcomes."""
