"""The files of a run: their names, writing them, and what goes to vessl."""
