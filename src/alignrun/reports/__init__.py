"""report.html: what a run, a tournament or a sweep has measured, on one page that needs nothing but a browser."""
