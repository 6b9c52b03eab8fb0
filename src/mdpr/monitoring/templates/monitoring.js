// Search in the classes.
searching(Array.from(document.querySelectorAll("#classes tbody tr")))();
