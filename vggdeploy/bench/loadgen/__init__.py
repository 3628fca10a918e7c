"""MLPerf LoadGen's scenarios: its runs, what they ask, and whether the answers are right."""
