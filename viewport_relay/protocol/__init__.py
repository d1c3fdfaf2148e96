"""What is said on the wire, as values: JSON, frames, status frames, grants. Imports nothing but the reason table."""
