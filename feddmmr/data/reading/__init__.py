"""Readers of the formats that an import takes."""
