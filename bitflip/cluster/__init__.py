"""The same on Ray: workers on this machine or on many."""
