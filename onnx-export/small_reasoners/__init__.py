"""Trains tiny models whose long reasoning can be checked exactly, and measures what compression costs them."""
