"""Arms, effects, statistics and verdicts of finished runs: numbers, no drawing."""
