"""Helpers in this folder are found by the tests of all protocols."""
