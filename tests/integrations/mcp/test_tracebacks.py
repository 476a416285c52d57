import pytest

from ringfence.integrations.mcp.servers.executor.tracebacks import hint_for, trim_traceback

DEEP = """---------------------------------------------------------------------------
KeyError                                  Traceback (most recent call last)
File /usr/local/lib/python3.12/site-packages/pandas/core/indexes/base.py:3805, in Index.get_loc(self, key)
   3804 try:
-> 3805     return self._engine.get_loc(casted_key)

File index.pyx:167, in pandas._libs.index.IndexEngine.get_loc()

File index.pyx:196, in pandas._libs.index.IndexEngine.get_loc()

KeyError: 'x'

The above exception was the direct cause of the following exception:

KeyError                                  Traceback (most recent call last)
Cell In[4], line 2
      1 df = load()
----> 2 df['x']

File /usr/local/lib/python3.12/site-packages/pandas/core/frame.py:4102, in DataFrame.__getitem__(self, key)
-> 4102 indexer = self.columns.get_loc(key)

File /usr/local/lib/python3.12/site-packages/pandas/core/indexes/base.py:3812, in Index.get_loc(self, key)
-> 3812     raise KeyError(key) from err

KeyError: 'x'"""


def test_frames_of_libraries_are_left_out_and_counted() -> None:
    trimmed = trim_traceback(DEEP)
    assert "----> 2 df['x']" in trimmed
    assert trimmed.endswith("KeyError: 'x'")
    assert "frames inside libraries" in trimmed
    assert "frame.py:4102" not in trimmed
    assert len(trimmed) < len(DEEP)


def test_colours_are_removed_and_short_tracebacks_stay() -> None:
    assert trim_traceback("\x1b[31mValueError\x1b[39m: no\n") == "ValueError: no"


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("ModuleNotFoundError", "No module named 'polars.frame'", "pip install polars"),
        ("MemoryError", "", "memory limit"),
        ("SystemExit", "3", "exit()"),
        ("FileNotFoundError", "[Errno 2] …: 'x.csv'", "/home/user"),
    ],
)
def test_known_failures_have_a_hint(name: str, value: str, part: str) -> None:
    assert part in (hint_for(name, value) or "")


def test_a_missing_name_is_explained_when_the_state_was_lost() -> None:
    assert hint_for("NameError", "name 'df' is not defined") is None
    assert "'df' is gone" in (hint_for("NameError", "name 'df' is not defined", state_was_lost=True) or "")
