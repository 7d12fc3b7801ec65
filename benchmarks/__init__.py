"""Measurements of the engines, and the networks that they are measured on."""
