"""Accuracy tables, speed tables, and this machine's limits."""
