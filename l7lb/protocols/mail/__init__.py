"""What the mail protocols share: settings, facts, SASL, the life of a session up to its login. They import this, and
not one another.
"""
