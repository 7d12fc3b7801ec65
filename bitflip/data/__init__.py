"""Test sets: which are known, reading them, and the digits that come with the package."""
