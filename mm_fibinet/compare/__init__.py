"""Several experiments side by side: jobs and workers, leaderboard and studies, the tuner, and tuning all alike."""
