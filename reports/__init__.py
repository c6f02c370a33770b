"""Reports of builds: HTML, Markdown, JSON and CSV, from the store alone."""
