"""Reports of runs: HTML pages, charts, and the summary in the terminal."""
