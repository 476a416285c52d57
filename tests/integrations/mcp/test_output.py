from ringfence.integrations.mcp.servers.executor import output
from ringfence.integrations.mcp.servers.executor.output import Output, shorten, size_text


def test_short_text_is_untouched() -> None:
    assert shorten("abc", 10) == ("abc", 0)


def test_long_text_keeps_head_and_tail_and_says_exactly_how_much_is_missing() -> None:
    text = "".join(f"line {number}\n" for number in range(2000))
    cut, missing = shorten(text, 1000)
    assert cut.startswith("line 0\n")
    assert cut.endswith("line 1999\n")
    assert f"… {missing} characters" in cut
    head, _, rest = cut.partition("… ")
    tail = rest.partition("…\n")[2]
    assert len(head) + len(tail) + missing == len(text)
    assert len(cut) < 1100


def test_one_long_line_is_cut_too() -> None:
    cut, missing = shorten("x" * 5000, 300)
    assert len(cut) < 400
    assert missing == 5000 - cut.count("x")


def test_output_keeps_everything_up_to_its_limit() -> None:
    stream = Output()
    for number in range(1000):
        stream.append(f"{number}\n")
    assert stream.text == "".join(f"{number}\n" for number in range(1000))
    assert stream.last_line() == "999"


def test_output_beyond_its_limit_keeps_the_ends() -> None:
    stream = Output()
    stream.append("first")
    for _ in range(12):
        stream.append("x" * 1_000_000)
    stream.append("last")
    assert stream.total == 12_000_009
    assert stream.text.startswith("first")
    assert stream.text.endswith("last")
    kept = output.KEEP_HEAD + output.KEEP_TAIL
    assert f"{stream.total - kept} characters are not kept" in stream.text
    assert stream.last_line().endswith("last")


def test_sizes_are_readable() -> None:
    assert [size_text(size) for size in (0, 999, 1500, 2_500_000, 3_200_000_000)] == [
        "0 B",
        "999 B",
        "1.5 KB",
        "2.5 MB",
        "3.2 GB",
    ]
