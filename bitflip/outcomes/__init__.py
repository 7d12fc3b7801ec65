"""What happened to each image, and what that adds up to."""

NAMES = {"injections": "images", "sdc1": "critical"}
"""What fault lists, and the files of their runs, call columns that all tables have."""
