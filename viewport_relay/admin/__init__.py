"""HTTP for operators: logs, state, metrics, and the dashboard."""
