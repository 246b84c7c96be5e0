"""The field's classic experiments: each module's `run` measures, draws one figure and writes its numbers.

`descent`, `optimizers`, `fgsm`, `linear`: `run(..., out=None, seed=0, progress=None)` returns a frozen dataclass with
`rows` (dicts of one table), `to_json()` (everything measured, with versions and settings) and `figure()`; with `out`
it also writes NAME.png, NAME.svg and numbers.json there.
"""
