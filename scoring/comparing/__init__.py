"""Two or more models on the same rows: is the difference more than chance, and what does it cost?"""
