"""What the chapter on datasets defines for itself: masks of packed rows keep documents apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.attention import MultiHeadAttention, causal_mask
from llm_learn.data import pack_documents

pytest.importorskip("datasets")

SLUG = "training/datasets"
EOS = 0
DOCS = st.lists(st.lists(st.integers(1, 50), max_size=7), min_size=1, max_size=6)


def pieces(document_ids: torch.Tensor) -> list[tuple[int, slice]]:
    """Each row's stretches of one document."""
    found = []
    for number, row in enumerate(document_ids.tolist()):
        starts = [i for i in range(len(row)) if i == 0 or row[i] != row[i - 1]]
        ends = [*starts[1:], len(row)]
        found += [(number, slice(a, b)) for a, b in zip(starts, ends, strict=True)]
    return found


@given(docs=DOCS, T=st.integers(1, 9))
def test_packed_documents_read_as_if_alone(chapter, docs, T):
    _, document_ids = pack_documents(docs, T, eos_id=EOS)
    torch.manual_seed(0)
    attention = MultiHeadAttention(d_model=8, num_heads=2).double()
    x = torch.randn(*document_ids.shape, 8, dtype=torch.float64)
    packed = attention(x, chapter.document_mask(document_ids))
    for row, piece in pieces(document_ids):
        alone = attention(x[row : row + 1, piece], causal_mask(piece.stop - piece.start))
        # float64; sums of at most nine terms in another order
        assert (packed[row, piece] - alone[0]).abs().max() < 1e-12


@given(docs=DOCS, T=st.integers(1, 9))
def test_what_a_token_may_read(chapter, docs, T):
    _, document_ids = pack_documents(docs, T, eos_id=EOS)
    mask = chapter.document_mask(document_ids)
    assert mask.shape == (len(document_ids), 1, T, T) and mask.dtype == torch.bool
    for row, ids in enumerate(document_ids.tolist()):
        for query in range(T):
            for key in range(T):
                allowed = key <= query and ids[key] == ids[query]
                assert mask[row, 0, query, key].item() == allowed


@given(docs=DOCS, T=st.integers(1, 9))
def test_positions_begin_again_with_each_document(chapter, docs, T):
    _, document_ids = pack_documents(docs, T, eos_id=EOS)
    positions = chapter.positions_in_document(document_ids)
    for row, piece in pieces(document_ids):
        assert positions[row, piece].tolist() == list(range(piece.stop - piece.start))


@given(docs=DOCS, T=st.integers(1, 9))
def test_documents_are_read_off_their_ends(chapter, docs, T):
    ids, document_ids = pack_documents(docs, T, eos_id=EOS)
    text = document_ids.flatten() >= 0  # filling looks like ends
    found = chapter.documents_in(ids.flatten()[text][None], EOS)[0]
    assert torch.equal(found, document_ids.flatten()[text])
