"""The evaluation report: one HTML page with inlined charts, tables and pictures."""
