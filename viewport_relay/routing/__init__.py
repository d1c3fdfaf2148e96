"""Routing: the receivers of each frame. No I/O: values and times in, decisions out."""
