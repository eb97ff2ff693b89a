"""One HTML file on a run or a study."""
