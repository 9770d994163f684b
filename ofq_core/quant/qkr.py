"""QKR: the query-key product as one weight (OFQ, section 3.2).

    W_qk[h] = W_q[h]^T W_k[h],   stacked over heads to (heads * dim, dim)
    row h * dim + i: head h, query-side channel i; columns: key-side channels

The query bias folds exactly into the key side: (W_q x_i + b_q) . (W_k x_j + b_k) =
x_i^T W_qk x_j + (W_k^T b_q) . x_j + terms that are the same for every key j, and softmax over j
ignores those. So b_k drops out and b_q becomes one vector W_k^T b_q per head.
"""

from __future__ import annotations

from torch import Tensor


def qkr_product(w_q: Tensor, w_k: Tensor, heads: int) -> Tensor:
    """Stacked products W_q[h]^T W_k[h], (dim, dim) each in, (heads * dim, dim) out."""
    dim = w_q.shape[1]
    q = w_q.view(heads, -1, dim)
    k = w_k.view(heads, -1, dim)
    return (q.transpose(1, 2) @ k).view(heads * dim, dim)


def folded_query_bias(b_q: Tensor, w_k: Tensor, heads: int) -> Tensor:
    """Rows W_k[h]^T b_q[h], (dim,) and (dim, dim) in, (heads, dim) out."""
    dim = w_k.shape[1]
    return (b_q.view(heads, 1, -1) @ w_k.view(heads, -1, dim)).view(heads, dim)
