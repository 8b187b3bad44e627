"""Weights in and out, through the official names as hub."""
