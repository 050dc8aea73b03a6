"""Charts of the record: as SVG, as PNG, as numbers for a script, and as a table.

Invariants:

* A picture is a pure function of a :class:`~ledger.leaderboard.pictures.series.Series`, and every
  form of it is made from the same one: what the drawing shows, the table says.
* A picture is bounded: points are thinned, donors beyond the first few are summed, sizes are
  fixed, and one that was drawn is kept until its numbers or names change.
"""
