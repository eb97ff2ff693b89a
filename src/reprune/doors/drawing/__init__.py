"""Pictures as SVG text, for studies and reports."""
