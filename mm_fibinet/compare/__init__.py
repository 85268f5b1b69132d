"""Several experiments side by side: jobs, leaderboard, significance, tuner."""
