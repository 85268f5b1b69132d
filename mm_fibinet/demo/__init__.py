"""The demo: challenge-shaped data drawn from a stated model, and the score of a submission on it."""
