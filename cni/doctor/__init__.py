"""The examination of a node: findings, what they mean, and their cures."""
