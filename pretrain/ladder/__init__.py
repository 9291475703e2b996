"""A ladder of small runs, and the scaling law that is fitted to their validation losses.

fit.py        loss(N, D) = E + A / N^alpha + B / D^beta, with bootstrap intervals
rungs.py      which sizes and token counts fit into the budget
climb.py      train the runs, fit, predict the next size, train it too
page.py       the picture and the page
commands.py   `python -m pretrain ladder`
"""
