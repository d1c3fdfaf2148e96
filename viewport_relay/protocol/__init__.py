"""The wire protocol as values: JSON, frames, status frames, grants. Imports nothing but the reason table."""
