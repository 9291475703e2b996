"""A ladder of small runs, and the scaling law that is fitted to their validation losses.

law.py        loss(N, D) = E + A / N^alpha + B / D^beta
fit.py        fit it to runs, with bootstrap intervals
rungs.py      which sizes and token counts fit into the budget
climb.py      train the runs, fit, predict the next size, train it too
page.py       the picture and the page
use.py        choose the width of a later run by the law
commands.py   `python -m pretrain ladder`
"""
