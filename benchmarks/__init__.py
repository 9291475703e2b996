"""Figures as commands: each prints what it measured beside a peer or a limit."""
