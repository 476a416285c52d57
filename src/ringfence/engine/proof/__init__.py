"""The proof: attacks that are run in a throw-away sandbox, and what became of them.

`inside` holds the attacks, programs of the standard library only, which also run without any sandbox (that
is how their tests show that they can succeed); `battery` runs them through the guest, `outside` looks from
the host at what they may have done, `report` adds the findings up.
"""
