"""A cache that keeps the ids of its rows, and the head that weighs what n-gram counts say."""

import torch

from anyformer.model.config import TransformerConfig
from anyformer.model.heads import LMHead
from anyformer.model.ngram_mixture import NGramMixture, TokenCache

CONFIG = TransformerConfig(dim=8, n_layer=1, n_head=2, context=12)


def test_ids_are_kept_and_come_back_with_those_before_them():
    cache = TokenCache(CONFIG, 3)
    (rows,) = cache.append_ids(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 1, 2]]), before=2)
    assert rows.tolist() == [[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 1, 2]]
    cache.lengths = torch.tensor([4, 3, 4])
    parts = list(cache.append_ids(torch.tensor([[5], [8], [3]]), before=2))
    assert torch.cat(parts).tolist() == [[6, 7, 8], [3, 4, 5], [1, 2, 3]], "rows of equal length together"
    assert torch.cat(parts)[cache.order].tolist() == [[3, 4, 5], [6, 7, 8], [1, 2, 3]]
    assert cache.ids[:, :5].tolist() == [[1, 2, 3, 4, 5], [5, 6, 7, 8, 0], [8, 9, 1, 2, 3]]
    assert not cache.is_unbounded


def test_rows_are_copied_with_their_ids():
    cache = TokenCache(CONFIG, 2)
    list(cache.append_ids(torch.tensor([[1, 2], [3, 4]]), before=0))
    cache.lengths = 2
    cache.reorder(torch.tensor([1, 1]))
    assert cache.ids[:, :2].tolist() == [[3, 4], [3, 4]]


def test_the_head_adds_log_probabilities_with_a_weight_of_each_node():
    torch.manual_seed(0)
    head, x, log_probs = NGramMixture(LMHead(8, 5), 8), torch.randn(2, 3, 8), torch.randn(2, 3, 5)
    logits = head(torch.cat([x, log_probs], -1))
    torch.testing.assert_close(logits, head.head(x) + (1 + head.weigh(x)) * log_probs)
