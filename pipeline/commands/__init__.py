"""The entry points: what is typed becomes a call, and what came of it becomes words and an exit code."""
