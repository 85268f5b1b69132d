"""Several experiments side by side: jobs, leaderboard, tuner."""
