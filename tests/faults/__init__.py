"""Faults that were found by attack and by trial. Each stays mended: one test per fault, by its id."""
