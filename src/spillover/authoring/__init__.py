"""Experiments of one's own: `new` writes a folder to start from, `check` looks before a run does.

toml.py       text → TOML
starter.py    what a new folder holds besides the user's rows; `starter/` has its questions
controls.py   controls that can be made without a model
trained.py    questions in the trained domain, from the rows
new.py        the folder, whole or not at all
measure.py    choices under the base: nats and tokens
cautions.py   what is worth a warning, each kind with a name
match.py      placebo choices matched to the trait's
check.py      all that `spillover check` says, as data
show.py       the same for people
"""
