"""Pictures of what a backbone attends to."""
