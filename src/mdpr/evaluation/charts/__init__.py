"""The report's charts, one function each: tables in, a `Figure` with a static SVG and its text alternative out."""
