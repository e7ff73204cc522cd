"""Small programs that show jaxorch at work: `python -m examples.quickstart`, `python -m examples.demo`."""
