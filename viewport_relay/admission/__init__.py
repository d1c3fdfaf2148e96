"""Admission: limits on upgrades, the check of a token, the platform's validation, and the HTTP client for it."""
