"""Raw text that is longer than a model reads, in pieces.

A piece ends where the text does best: between paragraphs, lines, sentences or words, in this order, in the
second half of what a piece may hold. Tokens are those of the whole text, so pieces put together are the text
again; its last one holds what ends texts. The first token of a piece has nothing before it that it could be
predicted from; where a tokenizer begins texts with a token of its own (<bos>), every piece begins with it.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Encoding

PIECE = pa.struct(
    [("completion", pa.string()), ("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.int32()))]
)
SENTENCE_END = re.compile(r"""[.!?…؟؛۔][»”"')\]]*$""")
NEAR = 8  # characters around a border that tell its kind


def pieces(text: str, encoding: Encoding, longest: int) -> list[dict]:
    """A document with its end, as rows of PIECE of at most `longest` tokens."""
    ids, spans = encoding.ids, encoding.offsets
    first = next(i for i, (_, stop) in enumerate(spans) if stop)  # behind a <bos>
    room, start, found = longest - first, first, []
    while start < len(ids):
        end = len(ids)
        if end - start > room:
            # one token is left at least beside the end of the text, which alone would be no piece
            last = min(start + room, end - 2)
            places = range(start + max(1, room // 2), last + 1)
            end = max(places, key=lambda place: (border(text, spans, place), place))
        here, there = spans[start][0], spans[end][0] if end < len(ids) else len(text)
        own = ids[:first] + ids[start:end]
        found.append({"completion": text[here:there], "input_ids": own, "trained": [max(first, 1), len(own)]})
        start = end
    return found


def border(text: str, spans: list[tuple[int, int]], place: int) -> int:
    """How good a border is before a token: 4 between paragraphs, 3 lines, 2 sentences, 1 words, 0 inside a
    word, -1 inside a character.
    """
    here = spans[place][0]
    if spans[place - 1][1] > here:
        return -1
    before, after = text[max(0, here - NEAR) : here], text[here : here + NEAR]
    said = before.rstrip()
    blank = before[len(said) :] + after[: len(after) - len(after.lstrip())]
    if "\n" in blank:
        return 4 if blank.count("\n") > 1 else 3
    return (2 if SENTENCE_END.search(said) else 1) if blank else 0


def in_pieces(rows: pa.Table) -> pa.Table:
    """A dataset's rows, documents among them as rows of their pieces: text:7.1, text:7.2 of text:7."""
    if "pieces" not in rows.column_names:
        return rows
    column = rows["pieces"].combine_chunks()
    if not pc.any(pc.greater(pc.list_value_length(column), 0)).as_py():
        return rows
    names = [
        f"{own}.{number + 1}" if count > 1 else own
        for own, count in zip(rows["id"].to_pylist(), pc.list_value_length(column).to_pylist())
        for number in range(count)
    ]
    rows, parts = rows.take(pc.list_parent_indices(column)), pc.list_flatten(column)
    columns = {field.name: pc.struct_field(parts, field.name) for field in PIECE}
    columns |= {"id": pa.array(names), "tokens": pc.list_value_length(columns["input_ids"])}
    for name, values in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    return rows
