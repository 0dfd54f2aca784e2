"""What Hypothesis makes: ids of topics and payloads of messages, as a program may publish them."""

from hypothesis import strategies as st

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
payloads = st.dictionaries(st.text().filter(lambda key: key != "_meta"), _values, max_size=5)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
