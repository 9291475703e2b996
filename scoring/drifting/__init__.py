"""Has the text that a model reads, or what it says about it, changed since a reference?"""
