"""SMTP and submission."""
